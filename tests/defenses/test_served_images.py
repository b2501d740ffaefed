"""Inference between parties: messages that whoever runs the network reads, and can run, without any key."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses.base import MalformedKeyClaim
from defenses.inference import Inference
from defenses.keynet.inference import KeyedNetwork, decrypt_outputs
from defenses.keynet.pixel_defense import KeyNetToeplitz
from defenses.keynet.served import KeyedImageOwner
from defenses.registry import build_defense
from federation.errors import MalformedMessage, UsageError
from federation.messages import raw_tensors_from_bytes, tensors_to_bytes
from federation.models import build_model
from federation.network import Network
from federation.secret_root import SecretRoot
from federation.toeplitz import toeplitz_of
from federation.weights import weights_of

ROOT = SecretRoot(b"keys of images that are served.." * 2)
SHAPE = (1, 14, 14)
LENET = Network(lambda: build_model("lenet-zhu", SHAPE, 10, seed=0), SHAPE, 10)


def inference_of(name: str, **options: Any) -> Inference:
    found = build_defense(name, [{name: options}] if options else None).inference
    assert found is not None
    return found


def pictures(count: int = 3) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("options", [{"gain_range": 1.0}, {}, {"alpha": 3}], ids=["permutations", "gains", "soft"])
@pytest.mark.parametrize("model", ["lenet-zhu", "lenet5"])
def test_whoever_reads_the_messages_can_run_the_network(model: str, options: dict[str, Any]) -> None:
    shape = SHAPE if model == "lenet-zhu" else (1, 28, 28)
    network = Network(lambda: build_model(model, shape, 10, seed=0), shape, 10)
    plain = network.build().eval()
    images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    inference = inference_of("keynet-toeplitz", **options)
    owner = inference.owner(network, weights_of(plain), ROOT)
    assert isinstance(owner, KeyedImageOwner)
    layers = inference.read_network(owner.network(), network)
    read = torch.stack([inference.read_image(owner.image(image, eight_bit=False), network) for image in images])
    traced = toeplitz_of(network)
    results = KeyedNetwork(traced, layers).run(read.double().numpy())
    with torch.no_grad():
        due = plain(images).double()
    torch.testing.assert_close(decrypt_outputs(results, owner.keys.outputs(traced)), due, atol=1e-3, rtol=0)


def test_a_published_key_hides_nothing() -> None:
    inference = KeyNetToeplitz().leaky_twin().inference
    assert inference.hidden_by == frozenset()
    owner = inference.owner(LENET, weights_of(LENET.build()), ROOT)
    image = pictures()[0]
    read = inference.read_image(owner.image(image, eight_bit=False), LENET)
    assert torch.equal(read, torch.cat([image.flatten(), torch.ones(1)]))


def test_in_clear_everything_is_as_it_is() -> None:
    inference, image = inference_of("plain"), pictures()[0]
    owner = inference.owner(LENET, weights_of(LENET.build()), ROOT)
    assert inference.read_network(owner.network(), LENET) == {}
    for eight_bit in (False, True):
        assert torch.equal(inference.read_image(owner.image(image, eight_bit=eight_bit), LENET), image.flatten())


def test_keys_are_the_roots_alone() -> None:
    inference, weights, image = inference_of("keynet-toeplitz"), weights_of(LENET.build()), pictures()[0]
    sent = [
        (owner.network(), owner.image(image, eight_bit=False))
        for root in (ROOT, ROOT, ROOT.derive("another"))
        for owner in [inference.owner(LENET, weights, root)]
    ]
    assert sent[0] == sent[1]
    assert sent[0][0] != sent[2][0]
    assert sent[0][1] != sent[2][1]


def test_a_picture_is_the_keyed_image_stretched_and_rounded() -> None:
    inference, image = inference_of("keynet-toeplitz"), pictures()[0]
    owner = inference.owner(LENET, weights_of(LENET.build()), ROOT)
    exact, picture = (
        inference.read_image(owner.image(image, eight_bit=bits), LENET).double() for bits in (False, True)
    )
    values = exact[:-1]
    assert (picture.min(), picture.max()) == (0, 255)
    due = (values - values.min()) / (values.max() - values.min()) * 255
    assert float((picture - due).abs().max()) <= 0.5 + 1e-4


@pytest.mark.parametrize("name", ["keynet", "qsgd", "keynet-quantized", "paillier"])
def test_other_defenses_encrypt_no_images(name: str) -> None:
    assert build_defense(name).inference is None


def test_a_network_that_no_key_passes_is_refused_by_name() -> None:
    network = Network(
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10)), SHAPE, 10
    )
    with pytest.raises(UsageError, match="max_pool2d: pixel keys split its windows"):
        inference_of("keynet-toeplitz").owner(network, weights_of(network.build()), ROOT)


@pytest.mark.parametrize("name", ["plain", "keynet-toeplitz"])
@pytest.mark.parametrize("change", ["cut", "missing", "renamed", "type"])
def test_a_malformed_network_is_refused(name: str, change: str) -> None:
    inference = inference_of(name)
    payload = inference.owner(LENET, weights_of(LENET.build()), ROOT).network()
    tensors = raw_tensors_from_bytes(payload, "a network")
    first = next(key for key in tensors if tensors[key].is_floating_point())
    changed = {
        "cut": lambda: payload[:-1],
        "missing": lambda: tensors_to_bytes({key: item for key, item in tensors.items() if key != first}),
        "renamed": lambda: tensors_to_bytes({f"{key}x" if key == first else key: tensors[key] for key in tensors}),
        "type": lambda: tensors_to_bytes(
            {key: tensors[key].double() if key == first else tensors[key] for key in tensors}
        ),
    }[change]()
    with pytest.raises(MalformedMessage, match="served network"):
        inference.read_network(changed, LENET)


@pytest.mark.parametrize("name", ["plain", "keynet-toeplitz"])
@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"image": torch.zeros(3)},
        {"image": torch.zeros(14 * 14 + 1, dtype=torch.float64)},
        {"image": torch.full((14 * 14 + 1,), float("nan"))},
        {"image": torch.zeros(14 * 14 + 1), "more": torch.zeros(1)},
    ],
    ids=["nothing", "short", "float64", "not a number", "more"],
)
def test_a_malformed_image_is_refused(name: str, tensors: dict[str, Tensor]) -> None:
    with pytest.raises(MalformedMessage, match="served image"):
        inference_of(name).read_image(tensors_to_bytes(tensors), LENET)


def test_claims_are_scored_by_the_key_of_the_image() -> None:
    inference = inference_of("keynet-toeplitz")
    owner = inference.owner(LENET, weights_of(LENET.build()), ROOT)
    assert isinstance(owner, KeyedImageOwner)
    key: Any = owner.keys.image.linear
    claims = {"places.0": torch.from_numpy(key.permutation.copy()), "gains.0": torch.from_numpy(key.gains.copy())}
    scores = inference.score_key_claims(claims, LENET, ROOT)
    assert scores["share of pixels placed rightly"] == 1
    assert scores["largest error of log gains"] < 1e-12
    others = inference.score_key_claims(claims, LENET, ROOT.derive("another"))
    assert others["share of pixels placed rightly"] < 0.1
    with pytest.raises(MalformedKeyClaim):
        inference.score_key_claims({"places.1": torch.arange(3)}, LENET, ROOT)
