"""Pixel keys on Toeplitz matrices: the keys themselves, keying against sparse products, messages, the defense."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmark.audit.chosen import ChosenFederation, chosen, spread_weights
from defenses.base import Claim, Magnitudes
from defenses.keynet.defense import KeyNet
from defenses.keynet.pixel import LARGEST_CONDITION, PixelKey
from defenses.keynet.pixel_defense import KeyNetToeplitz
from defenses.keynet.pixel_form import PixelForm
from defenses.keynet.pixel_keys import PixelKeyPolicy, PixelKeys, draw_pixel_keys, identity_pixel_keys
from defenses.keynet.pixel_message import KeyedModel
from defenses.keynet.pixel_transform import MonomialKeying, PixelTransform, SparseKeying, layer_keying
from defenses.stack import Stack
from federation.errors import MalformedMessage, UsageError
from federation.messages import raw_tensors_from_bytes, tensors_to_bytes
from federation.models import build_model
from federation.network import Network
from federation.secret_root import SecretRoot
from federation.threat import PlainModel, Position, SparseLayers
from federation.toeplitz import trace_toeplitz
from federation.weights import Weights, largest_difference, weighted_mean

ROOT = SecretRoot(b"pixel keys are drawn from this.." * 2)
CLIENTS = ("client-0", "client-1")


def key(size: int, gain_range: float = 2.0, alpha: int = 1, label: int = 0) -> PixelKey:
    return PixelKey.draw(ROOT.derive("test", label, size).reader(), size, gain_range=gain_range, alpha=alpha)


def random_weights(network: Network, seed: int = 0) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return spread_weights(network.layout, generator, smallest=0.0, largest=1.0, counter=seed)


def assert_recovers(recovered: Weights, weights: Weights, bound: float) -> None:
    assert recovered.keys() == weights.keys()
    assert all(recovered[name].dtype == tensor.dtype for name, tensor in weights.items())
    assert all(recovered[name].shape == tensor.shape for name, tensor in weights.items())
    assert largest_difference(recovered, weights) <= bound


# Keys.


@settings(deadline=None, max_examples=40)
@given(size=st.integers(1, 20), alpha=st.integers(1, 4), gain_range=st.floats(1, 8), seed=st.binary(min_size=32))
def test_a_key_is_eq_2_7_and_its_inverse_undoes_it(size: int, alpha: int, gain_range: float, seed: bytes) -> None:
    found = PixelKey.draw(SecretRoot(seed).reader(), size, gain_range=gain_range, alpha=alpha)
    permutations = np.stack([np.eye(size)[order] for order in found.permutations])
    truth = np.diag(found.gains) @ np.tensordot(found.shares, permutations, axes=1)
    matrix = found.matrix.toarray()
    assert np.allclose(matrix[:-1, :-1], truth)
    assert np.array_equal(matrix[-1], np.eye(size + 1)[-1])
    assert np.array_equal(matrix[:, -1], np.eye(size + 1)[-1])
    if found.condition_number < 1e6:
        assert np.allclose(found.inverse.toarray() @ matrix, np.eye(size + 1), atol=1e-8)
    assert found.gains.min() >= 1 / gain_range * (1 - 1e-12)
    assert found.gains.max() <= gain_range * (1 + 1e-12)
    assert found.is_monomial == (alpha == 1)


@pytest.mark.parametrize("alpha", [1, 2, 5])
def test_condition_numbers_bound_those_of_numpy(alpha: int) -> None:
    found = key(30, alpha=alpha)
    block = found.matrix.toarray()[:-1, :-1]
    truth = max(np.linalg.cond(block, order) for order in (1, np.inf))
    assert found.condition_number == pytest.approx(truth, rel=1e-6)


def test_a_singular_mixture_has_no_finite_condition() -> None:
    orders = np.array([[0, 1], [1, 0]])
    assert PixelKey(orders, np.array([0.5, 0.5]), np.ones(2)).condition_number > LARGEST_CONDITION


@pytest.mark.parametrize(
    ("orders", "shares", "gains", "fault"),
    [
        ([[0, 0]], [1.0], [1.0, 1.0], "does not hold every entry"),
        ([[0, 1]], [1.0], [1.0, -1.0], "gains are not all between"),
        ([[0, 1]], [1.0], [1.0, math.nan], "gains are not all between"),
        ([[0, 1]], [0.5], [1.0, 1.0], "of sum 1"),
        ([[0, 1], [1, 0]], [1.5, -0.5], [1.0, 1.0], "positive numbers"),
        ([[0, 1]], [1.0], [1.0], "do not fit"),
        ([[0.0, 1.0]], [1.0], [1.0, 1.0], "int64"),
    ],
)
def test_what_is_no_key_is_refused(orders: Any, shares: Any, gains: Any, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        PixelKey(np.array(orders), np.array(shares), np.array(gains))


def lenet5() -> Network:
    return Network(lambda: build_model("lenet5", (1, 12, 12), 10, seed=0), (1, 12, 12), 10)


def lenet_zhu() -> Network:
    return Network(lambda: build_model("lenet-zhu", (1, 12, 12), 10, seed=0), (1, 12, 12), 10)


class Everything(nn.Module):
    """Batch normalisation, a depthwise convolution on a map of one pixel, maximum pooling, a residual sum, a product."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.pool = nn.MaxPool2d(3)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.norm(self.conv(x))))
        x = self.depthwise(x) + x
        return self.fc((x * x.sigmoid()).flatten(1))


def everything() -> Network:
    return Network(Everything, (2, 8, 9), 5)


NETWORKS: Mapping[str, Callable[[], Network]] = {
    "lenet5": lenet5, "lenet-zhu": lenet_zhu, "everything": everything,
}  # fmt: skip


def test_keys_follow_from_the_root_and_nothing_else() -> None:
    form = PixelForm.of(lenet5())
    state = np.random.get_state()[1].tolist()  # noqa: NPY002  the state that must not be used
    first = draw_pixel_keys(form, ROOT, PixelKeyPolicy()).to_bytes()
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002
    assert draw_pixel_keys(form, ROOT, PixelKeyPolicy()).to_bytes() == first
    assert draw_pixel_keys(form, ROOT.derive("round", 1), PixelKeyPolicy()).to_bytes() != first


def test_only_image_and_pooled_maps_get_soft_keys() -> None:
    form = PixelForm.of(lenet5())
    keys = draw_pixel_keys(form, ROOT, PixelKeyPolicy(alpha=3))
    soft = {space.shape for space, found in zip(form.network.spaces, keys.spaces, strict=True) if not found.is_monomial}
    assert soft == {(1, 12, 12), (6, 6, 6), (16, 1, 1)}
    assert max(keys.condition_numbers) <= 1e3
    assert keys.spaces[-1].is_permutation


def test_badly_conditioned_keys_are_refused() -> None:
    with pytest.raises(UsageError, match="32 keys of alpha 16 for 144 entries have conditions over 4"):
        draw_pixel_keys(PixelForm.of(lenet5()), ROOT, PixelKeyPolicy(gain_range=2, alpha=16, largest_condition=4))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"gain_range": 0.5}, "gain range is between 1"),
        ({"alpha": 0}, "alpha is between 1"),
        ({"outputs": "none"}, "outputs are"),
        ({"largest_condition": 1e9}, "condition bound is between"),
        ({"gain_range": 100.0}, "narrow them or raise the bound"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        KeyNetToeplitz(**options).check(lenet5())


@pytest.mark.parametrize("name", NETWORKS)
def test_keys_come_back_from_their_bytes(name: str) -> None:
    form = PixelForm.of(NETWORKS[name]())
    keys = draw_pixel_keys(form, ROOT, PixelKeyPolicy(alpha=2))
    assert PixelKeys.from_bytes(keys.to_bytes(), form).to_bytes() == keys.to_bytes()


def test_malformed_keys_are_refused() -> None:
    form = PixelForm.of(everything())
    tensors = raw_tensors_from_bytes(draw_pixel_keys(form, ROOT, PixelKeyPolicy()).to_bytes(), "keys")
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    two = tensors["norm.weight.permutations"].repeat(2, 1)
    cases = {
        "missing or unknown": {name: tensor for name, tensor in tensors.items() if name != "0.gains"},
        "does not hold every entry": {**tensors, "0.permutations": torch.zeros_like(tensors["0.permutations"])},
        "it has 6 entries, not 144": {**tensors, **{f"0.{part}": tensors[f"norm.weight.{part}"].clone() for part in
                                                    ("permutations", "shares", "gains")}},
        "it mixes 2 permutations": {**tensors, "norm.weight.permutations": two, "norm.weight.shares": half},
        "conditioned worse": {**tensors, "4.permutations": torch.tensor([[0, 1, 2, 3, 4, 5], [1, 0, 3, 2, 5, 4]]),
                              "4.shares": half, "4.gains": torch.ones(6, dtype=torch.float64)},
    }  # fmt: skip
    assert form.network.spaces[4].size == 6
    for fault, changed in cases.items():
        with pytest.raises(MalformedMessage, match=fault):
            PixelKeys.from_bytes(tensors_to_bytes(changed), form)


# Keying one layer.


@st.composite
def small_networks(draw: st.DrawFn) -> Network:
    """One to three convolutions of any kind, with or without normalisation, activations and pooling, and a linear layer."""
    channels, height, width = draw(st.integers(1, 2)), draw(st.integers(5, 8)), draw(st.integers(5, 8))
    shape, modules = (channels, height, width), list[nn.Module]()
    for _ in range(draw(st.integers(1, 3))):
        groups = draw(st.integers(1, 2)) if channels % 2 == 0 else 1
        outputs = groups * draw(st.integers(1, 3))
        kernel, stride, padding = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(0, 2))
        if min(height, width) + 2 * padding < kernel:
            padding = 2
        bias = draw(st.booleans())
        modules.append(nn.Conv2d(channels, outputs, kernel, stride, padding, groups=groups, bias=bias))
        channels = outputs
        height, width = ((size + 2 * padding - kernel) // stride + 1 for size in (height, width))
        extra = draw(st.sampled_from(["none", "norm", "sigmoid", "relu"]))
        if extra != "none":
            modules.append({"norm": nn.BatchNorm2d(channels), "sigmoid": nn.Sigmoid(), "relu": nn.ReLU()}[extra])
        if min(height, width) >= 2 and draw(st.booleans()):
            modules.append(draw(st.sampled_from([nn.AvgPool2d(2, stride=1), nn.MaxPool2d(2, stride=1)])))
            height, width = height - 1, width - 1
    modules += [nn.Flatten(), nn.Linear(channels * height * width, 3, bias=draw(st.booleans()))]
    return Network(lambda: nn.Sequential(*modules), shape, 3)


@settings(deadline=None, max_examples=40)
@given(small_networks(), st.binary(min_size=32, max_size=32), st.sampled_from([1.0, 3.0]))
def test_the_relabelling_is_the_sparse_product(network: Network, seed: bytes, gain_range: float) -> None:
    form, policy = PixelForm.of(network), PixelKeyPolicy(gain_range, outputs="monomial")
    keys = draw_pixel_keys(form, SecretRoot(seed), policy)
    rng = np.random.default_rng(0)
    for step in form.layers.values():
        pair = keys.spaces[step.space], keys.spaces[step.source_spaces[0]]
        fast, product = MonomialKeying(step.layout, *pair), SparseKeying(step.layout, *pair)
        assert isinstance(layer_keying(step.layout, *pair), MonomialKeying)
        values = rng.normal(size=step.layout.value_count).astype(np.float32)
        keyed, oracle = fast.matrix(values), product.product(values)
        assert np.array_equal(keyed.indptr, oracle.indptr)
        assert np.array_equal(keyed.indices, oracle.indices)
        assert np.allclose(keyed.data, oracle.data, rtol=2.0**-23, atol=0)
        recovered = fast.recover(keyed.data)
        assert np.allclose(recovered, product.recover(keyed.data), rtol=2.0**-23, atol=0)
        placed = step.layout.placements > 0
        assert np.allclose(recovered[placed], values[placed], rtol=2.0**-22, atol=0)
        assert not recovered[~placed].any()


REFERENCE_KEYED = [
    [12, 6, 0, 16, 0, 5, 20],
    [6, 2.25, 0, 10, 0, 2, 5],
    [2, 2, 2, 0, 1.25, 0, 10],
    [40, 16, 24, 64, 9, 14, 40],
    [1, 0.625, 0.75, 1, 0.375, 0.5, 2.5],
    [8, 3.5, 5, 0, 2, 0, 10],
    [0, 0, 0, 0, 0, 0, 1],
]
REFERENCE_STRIDED = [
    [5, 6, 8, 9, 0, 0, 0, 0, 10],
    [0, 0, 2, 3, 5, 6, 8, 9, 10],
    [0, 0, 0, 0, 0, 0, 0, 0, 1],
]


def test_the_authors_package_keys_the_same_matrices() -> None:
    """A.dot(W).dot(Ainv) with W from `sparse_toeplitz_conv2d` of github.com/visym/keynet (07c1ed08), on the same keys.

    The kernel is 1 to 9 with bias 10: on a 2x3 image under the keys below, and unkeyed with stride 2 on a 4x2 image.
    """
    values = np.arange(1, 11, dtype=np.float32)
    layouts = []
    for stride, shape in ((1, (1, 2, 3)), (2, (1, 4, 2))):
        layer = nn.Sequential(nn.Conv2d(1, 1, 3, stride, padding=1))
        (step,) = trace_toeplitz(layer, shape).linear
        layouts.append(step.layout)
    output = PixelKey(np.array([[3, 0, 5, 1, 4, 2]]), np.ones(1), np.array([2, 0.5, 1, 4, 0.25, 1]))
    source = PixelKey(np.array([[1, 4, 2, 0, 5, 3]]), np.ones(1), np.array([0.5, 2, 1, 0.25, 4, 2]))
    for keying in (MonomialKeying, SparseKeying):
        assert np.array_equal(keying(layouts[0], output, source).matrix(values).toarray(), REFERENCE_KEYED)
    assert np.array_equal(layouts[1].matrix(values).toarray(), REFERENCE_STRIDED)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(lambda: build_model("lenet5", (1, 28, 28), 10, seed=0), (1, 28, 28), 10)
    form = PixelForm.of(network)
    keys, step = draw_pixel_keys(form, ROOT, PixelKeyPolicy()), form.layers["conv2"]
    keying = MonomialKeying(step.layout, keys.spaces[step.space], keys.spaces[step.source_spaces[0]])
    values = np.random.default_rng(0).normal(size=step.layout.value_count).astype(np.float32)
    alone = keying.protect(values), keying.recover(keying.protect(values))
    monkeypatch.setattr("os.cpu_count", lambda: threads)
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    assert np.array_equal(keying.protect(values), alone[0])
    assert np.array_equal(keying.recover(alone[0]), alone[1])


def test_a_value_is_the_mean_of_its_entries() -> None:
    layout = PixelForm.of(lenet5()).layers["conv1"].layout
    keying = MonomialKeying(layout, key(layout.shape[0] - 1), key(layout.shape[1] - 1, label=1))
    values = np.linspace(1, 2, layout.value_count, dtype=np.float32)
    entries = keying.protect(values)
    entry = int(np.flatnonzero(keying.structure.data == 12)[0])
    off = entries[entry] * np.float32(0.01)
    entries[entry] += off
    moved = keying.recover(entries) - values
    assert moved[12] == pytest.approx(0.01 * values[12] / layout.placements[12], rel=1e-2)
    assert np.abs(np.delete(moved, 12)).max() < 1e-6


def test_values_that_cancel_keep_their_places() -> None:
    layout = PixelForm.of(lenet5()).layers["conv1"].layout
    pair = key(layout.shape[0] - 1), key(layout.shape[1] - 1, alpha=2, label=1)
    keying = SparseKeying(layout, *pair)
    values = np.zeros(layout.value_count, np.float32)
    values[:3] = 1
    keyed = keying.matrix(values)
    assert keyed.nnz == keying.structure.nnz
    assert np.allclose(keyed.toarray(), keying.product(values).toarray(), atol=1e-6)


# A whole model.


@settings(deadline=None, max_examples=40)
@given(small_networks(), st.binary(min_size=32, max_size=32), st.sampled_from([1.0, 2.0]), st.integers(1, 3))
def test_recovering_undoes_protecting_and_averaging_commutes(
    network: Network, seed: bytes, gain_range: float, alpha: int
) -> None:
    defense = KeyNetToeplitz(gain_range=gain_range, alpha=alpha)
    form = PixelForm.of(network)
    keys = draw_pixel_keys(form, SecretRoot(seed), defense.policy)
    transform = PixelTransform(form, keys)
    contributions = [random_weights(network, number) for number in range(2)]
    bound = defense.stated_error(Magnitudes(1.0, 1.0, 2))
    keyed = [transform.protect(weights) for weights in contributions]
    for weights, model in zip(contributions, keyed, strict=True):
        assert_recovers(transform.recover(model, "a model"), weights, bound)
    shares = (0.25, 0.75)
    pairs = list(zip(shares, keyed, strict=True))
    mean = KeyedModel(
        {name: scipy.sparse.csr_array(sum(share * model.matrices[name] for share, model in pairs))
         for name in form.layers},
        {name: sum(share * model.vectors[name] for share, model in pairs) for name in form.vectors},
        {name: keyed[1].counters[name] for name in form.counter_names},
    )  # fmt: skip
    for matrix, model in ((mean.matrices[name], keyed[0].matrices[name]) for name in form.layers):
        assert np.array_equal(matrix.indices, model.indices)
    plain = weighted_mean(network.layout, contributions, shares)
    assert_recovers(transform.recover(mean, "a mean"), plain, bound)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("gain_range", [1.0, 2.0])
def test_models_come_back_from_their_bytes(name: str, gain_range: float) -> None:
    network = NETWORKS[name]()
    form = PixelForm.of(network)
    transform = PixelTransform(form, draw_pixel_keys(form, ROOT, PixelKeyPolicy(gain_range)))
    weights = random_weights(network)
    payload = transform.protect(weights).to_bytes()
    bound = KeyNetToeplitz(gain_range=gain_range).stated_error(Magnitudes(1.0, 1.0, 1))
    recovered = transform.recover(KeyedModel.from_bytes(payload, form, "a model"), "a model")
    assert_recovers(recovered, weights, bound if gain_range > 1 else 0.0)


def test_what_stands_in_no_matrix_is_carried_under_keys_of_its_own() -> None:
    network = everything()
    form = PixelForm.of(network)
    assert form.vectors == {
        **dict.fromkeys(("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"), 6),
        "depthwise.separate": 6 * 8,
    }
    weights = random_weights(network)
    keys = draw_pixel_keys(form, ROOT, PixelKeyPolicy(1.0))
    model = PixelTransform(form, keys).protect(weights)
    taps = weights["depthwise.weight"].reshape(6, 9)
    outer = np.delete(taps.numpy(), 4, axis=1).ravel()
    assert np.array_equal(model.vectors["depthwise.separate"], outer[keys.vectors["depthwise.separate"].permutation])
    assert sorted(model.vectors["norm.weight"]) == sorted(weights["norm.weight"].numpy())
    assert model.vectors["norm.weight"].tolist() != weights["norm.weight"].tolist()
    orders = {tuple(found.permutation) for name, found in keys.vectors.items() if name.startswith("norm")}
    assert len(orders) == 4
    assert model.counters["norm.num_batches_tracked"] == weights["norm.num_batches_tracked"]


def test_identity_keys_send_the_toeplitz_matrices_themselves() -> None:
    network = lenet5()
    form, weights = PixelForm.of(network), random_weights(network)
    model = PixelTransform(form, identity_pixel_keys(form)).protect(weights)
    for name, step in form.layers.items():
        assert (model.matrices[name] - step.layout.matrix(step.fill(weights)).astype(np.float32)).nnz == 0


@pytest.mark.parametrize(
    ("part", "change", "fault"),
    [
        ("indptr", lambda t: t + 1, "row pointers"),
        ("indptr", lambda t: t.flip(0), "row pointers"),
        ("indptr", lambda t: t[:-1], "row pointers"),
        ("indptr", lambda t: t[:0], "row pointers"),
        ("indptr", lambda t: t.long(), "torch.int64"),
        ("indices", lambda t: t - 1, "columns are not all between"),
        ("indices", lambda t: t.flip(0), "do not increase"),
        ("indices", lambda t: t[:-1], "row pointers"),
        ("data", lambda t: t[:-1], "columns for"),
        ("data", lambda t: t.double(), "torch.float64"),
        ("data", lambda t: t[None], r"\(1, "),
        ("data", lambda t: torch.cat([t[:-1], torch.tensor([math.nan])]), "not finite"),
        ("data", lambda t: torch.cat([t[:-1], torch.tensor([2.0])]), "last row"),
    ],
)
def test_malformed_matrices_are_refused(part: str, change: Callable[[Tensor], Tensor], fault: str) -> None:
    network = everything()
    form = PixelForm.of(network)
    payload = PixelTransform(form, draw_pixel_keys(form, ROOT, PixelKeyPolicy())).protect(random_weights(network))
    tensors = raw_tensors_from_bytes(payload.to_bytes(), "a model")
    changed = {**tensors, f"conv.{part}": change(tensors[f"conv.{part}"])}
    with pytest.raises(MalformedMessage, match=f"upload: (layer 'conv'|tensor 'conv.{part}').*{fault}"):
        KeyedModel.from_bytes(tensors_to_bytes(changed), form, "upload")


def test_another_keys_places_are_refused() -> None:
    network = lenet5()
    form, weights = PixelForm.of(network), random_weights(network)
    one, other = (
        PixelTransform(form, draw_pixel_keys(form, ROOT.derive(name), PixelKeyPolicy())) for name in ("one", "other")
    )
    with pytest.raises(MalformedMessage, match="upload: the entries of layer 'conv1' stand in other places"):
        other.recover(one.protect(weights), "upload")


def test_weights_of_another_network_are_refused() -> None:
    form = PixelForm.of(lenet5())
    transform = PixelTransform(form, identity_pixel_keys(form))
    with pytest.raises(MalformedMessage, match="weights to be keyed"):
        transform.protect(random_weights(lenet_zhu()))


# The defense.


def played(stack: Stack, network: Network) -> tuple[ChosenFederation, Any]:
    federation = ChosenFederation(stack, network, ROOT)
    federation.start(random_weights(network))
    return federation, federation.play(0, {name: chosen(random_weights(network, 1)) for name in CLIENTS})


@pytest.mark.parametrize("name", NETWORKS)
def test_without_a_key_one_reads_sparse_layers(name: str) -> None:
    network = NETWORKS[name]()
    federation, record = played(Stack("full", [KeyNetToeplitz()]), network)
    view = federation.view(record, Position.SERVER)
    assert isinstance(view, SparseLayers)
    assert view.hidden_by == {"keynet-toeplitz"}
    form = PixelForm.of(network)
    for layers in (view.before, *view.after.values()):
        assert {name: matrix.shape for name, matrix in layers.items()} == {
            **{name: step.layout.shape for name, step in form.layers.items()},
            **{name: (size, 1) for name, size in form.vectors.items()},
        }
    transform = PixelTransform(
        form, draw_pixel_keys(form, ROOT.derive("stage", "keynet-toeplitz", 0), PixelKeyPolicy())
    )
    sent = transform.protect(record.trained["client-1"])
    assert all((view.after["client-1"][name] - matrix).nnz == 0 for name, matrix in sent.matrices.items())
    aggregate = federation.view(record, Position.AGGREGATE)
    assert not isinstance(aggregate, PlainModel)


def test_with_a_clients_key_one_reads_the_model() -> None:
    network = lenet5()
    federation, record = played(Stack("full", [KeyNetToeplitz(alpha=2)]), network)
    view = federation.view(record, Position.COLLUSION)
    assert isinstance(view, PlainModel)
    assert not view.hidden_by
    assert_recovers(view.after["client-0"], record.trained["client-0"], federation.stated_error(record))


def test_a_keyed_stage_further_in_hides_as_well() -> None:
    federation, record = played(Stack("both", [KeyNet(), KeyNetToeplitz()]), lenet5())
    view = federation.view(record, Position.SERVER)
    assert isinstance(view, SparseLayers)
    assert view.hidden_by == {"keynet", "keynet-toeplitz"}


def test_clients_with_different_keys_are_not_averaged() -> None:
    network, stage = lenet5(), KeyNetToeplitz()
    federation, record = played(Stack("full", [stage]), network)
    form = PixelForm.of(network)
    stranger = PixelTransform(form, draw_pixel_keys(form, ROOT.derive("other"), PixelKeyPolicy()))
    uploads = {name: stranger.protect(random_weights(network)).to_bytes() for name in CLIENTS}
    context = federation.parties.server
    with pytest.raises(MalformedMessage, match=r"contribution of client-0: .* all clients need one key"):
        stage.server(stage.draw_keys(network, "server", ROOT), network).combine(
            uploads, context.state, record, lambda sender, weights: weights
        )


def test_the_server_refuses_to_re_key() -> None:
    stage = KeyNetToeplitz()
    server = stage.server(stage.draw_keys(lenet5(), "server", ROOT), lenet5())
    with pytest.raises(UsageError, match="use one key for all clients"):
        server.remap(b"", lambda weights: weights)


def test_claims_follow_the_keys() -> None:
    network = everything()
    claims = KeyNetToeplitz().claims(network)
    assert [name for name, claim in claims.items() if claim is Claim.PLAIN] == ["norm.num_batches_tracked"]
    identity = KeyNetToeplitz(outputs="identity").claims(network)
    assert [name for name, claim in identity.items() if claim is Claim.PLAIN] == [
        "norm.num_batches_tracked", "fc.bias",
    ]  # fmt: skip
    assert set(KeyNetToeplitz().leaky_twin().claims(network).values()) == {Claim.PLAIN}
    single = Network(lambda: nn.Sequential(nn.Flatten(), nn.Linear(1, 1)), (1, 1, 1), 1)
    assert set(KeyNetToeplitz(gain_range=1.0).claims(single).values()) == {Claim.PLAIN}
    assert KeyNetToeplitz().claims(single)["1.weight"] is Claim.TRANSFORMED


def test_layers_that_are_called_twice_and_other_dtypes_are_refused() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x)).flatten(1)

    with pytest.raises(UsageError, match=r"layer 'conv' .*called more than once"):
        KeyNetToeplitz().check(Network(Shared, (1, 3, 3), 9))

    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(2, dtype=torch.float64))
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(1))

    with pytest.raises(UsageError, match=r"tensor 'table' is torch.float64"):
        KeyNetToeplitz().check(Network(Doubled, (1, 2, 2), 2))
