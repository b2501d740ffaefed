"""Claims about channel keys, scored: the truth, guesses, the right frame and epoch, and what cannot be a claim."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmark.audit.chosen import CLIENTS
from defenses.base import MalformedKeyClaim
from defenses.keynet.defense import KeyNet
from defenses.keynet.key_claims import (
    CHANNELS_PLACED,
    GAINS_CLAIMED,
    LARGEST_GAIN_ERROR,
    MEAN_GAIN_ERROR,
    MEDIAN_GAIN_ERROR,
    read_key_claims,
)
from defenses.keynet.keys import ChannelKeys, draw_keys
from defenses.keynet.monomial import ChannelKey
from defenses.keynet.policy import KeyPolicy
from defenses.keyrings import keyring_from_bytes
from defenses.plain import Plain
from defenses.quantization import Quantization
from defenses.stack import Stack
from defenses.stages import Codec
from federation.messages import SERVER
from federation.models import build_model
from federation.network import Network
from federation.rounds import Federation
from federation.secret_root import SecretRoot

NETWORK = Network(lambda: build_model("lenet5", (1, 28, 28), 10, seed=0), (1, 28, 28), 10)
ROOT = SecretRoot(b"keys that claims are scored by .." * 2)


class Issued:
    """A defense whose agent has issued the keys of a round."""

    def __init__(self, stage: KeyNet, number: int = 0, codec: Codec | None = None) -> None:
        self.defense = Stack("keyed", [stage, codec or Plain()])
        self.stage = stage
        self.parties = self.defense.parties(NETWORK, CLIENTS, ROOT)
        Federation(self.parties, dict.fromkeys(CLIENTS, 1), seed=0).issue_keys(number, CLIENTS)

    def keys(self, client: str = CLIENTS[0]) -> ChannelKeys:
        """As the client holds them."""
        material = keyring_from_bytes(self.parties.held(client), self.defense.stages, "a client's state")
        return ChannelKeys.from_bytes(material["keynet"].secret, NETWORK.channels, self.stage.policy)

    def score(
        self, claims: Mapping[str, Tensor], victim: str = CLIENTS[0], holds: tuple[str, ...] = ()
    ) -> Mapping[str, float]:
        held = {name: self.parties.held(name) for name in holds}
        return self.defense.score_key_claims(
            claims, network=NETWORK, victim=victim, held=held, keys=self.parties.held(victim)
        )


def claimed(keys: ChannelKeys) -> dict[str, Tensor]:
    parts = {"places": "permutation", "gains": "gains"}
    return {
        f"{part}.{space}": torch.from_numpy(getattr(key, attribute))
        for space, key in enumerate(keys.monomial)
        for part, attribute in parts.items()
    }


RIGHT = {
    CHANNELS_PLACED: 1.0,
    GAINS_CLAIMED: 1.0,
    LARGEST_GAIN_ERROR: 0.0,
    MEAN_GAIN_ERROR: 0.0,
    MEDIAN_GAIN_ERROR: 0.0,
}


@pytest.mark.parametrize("stage", [KeyNet(), KeyNet(outputs="monomial"), KeyNet(rotation=2)], ids=str)
def test_true_keys_are_wholly_right(stage: KeyNet) -> None:
    issued = Issued(stage)
    assert issued.score(claimed(issued.keys())) == RIGHT


def test_guesses_are_near_chance() -> None:
    issued = Issued(KeyNet())
    scores = [
        issued.score(claimed(draw_keys(NETWORK.channels, SecretRoot(bytes([seed]) * 32), KeyPolicy(2.0))))
        for seed in range(20)
    ]
    hidden = [space.size for space in NETWORK.channels.spaces if space.role != "input"]
    chance = len(hidden) / sum(hidden)  # one fixed point a permutation
    assert np.mean([score[CHANNELS_PLACED] for score in scores]) == pytest.approx(chance, abs=0.01)
    # |x - y| of two numbers uniform on an interval is a third of its length on average
    assert np.mean([score[MEAN_GAIN_ERROR] for score in scores]) == pytest.approx(2 * np.log(2) / 3, rel=0.05)
    assert all(score[LARGEST_GAIN_ERROR] < 2 * np.log(2) for score in scores)


def test_what_is_not_claimed_is_not_found() -> None:
    issued = Issued(KeyNet())
    keys, whole = issued.keys(), claimed(issued.keys())
    sizes = [key.size for key in keys.keys[1:]]
    outputs = NETWORK.channels.spaces[-1]
    assert outputs.role == "output"
    gains = whole["gains.1"].clone()
    gains[0] = float("nan")
    gains[1] *= 1.5
    places = whole["places.2"].clone()
    places[:4] = -1
    scores = issued.score({"gains.1": gains, "places.2": places, "gains.0": torch.full((1,), 3.0)})
    assert scores[CHANNELS_PLACED] == (len(places) - 4) / sum(sizes)
    assert scores[GAINS_CLAIMED] == (len(gains) - 1) / (sum(sizes) - outputs.size)
    assert scores[LARGEST_GAIN_ERROR] == pytest.approx(np.log(1.5))
    assert scores[MEAN_GAIN_ERROR] == pytest.approx(np.log(1.5) / (len(gains) - 1))
    assert scores[MEDIAN_GAIN_ERROR] == 0


@pytest.mark.parametrize(
    "claims",
    [{}, {"places.0": torch.zeros(1, dtype=torch.int64), "gains.0": torch.ones(1)}, {"gains.5": torch.ones(10)}],
    ids=["nothing", "the image", "outputs without gains"],
)
def test_what_has_no_key_gives_no_finding(claims: dict[str, Tensor]) -> None:
    assert NETWORK.channels.spaces[5].role == "output"
    assert Issued(KeyNet()).score(claims) == {}


def test_under_rotation_the_keys_are_those_of_the_epoch_observed() -> None:
    first, later = Issued(KeyNet(rotation=2), 1), Issued(KeyNet(rotation=2), 2)
    assert later.score(claimed(later.keys())) == RIGHT
    assert first.score(claimed(first.keys())) == RIGHT
    assert later.score(claimed(first.keys()))[CHANNELS_PLACED] < 0.2
    assert later.score(claimed(first.keys()))[MEAN_GAIN_ERROR] > 0.1


def test_the_server_reads_all_epochs_in_its_own_frame() -> None:
    first, later = Issued(KeyNet(rotation=2), 0), Issued(KeyNet(rotation=2), 2)
    in_frame = claimed(first.keys())  # nothing lies between the frames in the first epoch
    scores = later.score(in_frame, holds=(SERVER,))
    assert scores[CHANNELS_PLACED] == 1
    assert scores[LARGEST_GAIN_ERROR] < 1e-12
    assert later.score(claimed(later.keys()), holds=(SERVER,))[CHANNELS_PLACED] < 0.2


def test_with_keys_of_their_own_the_victims_count_on_the_wire_and_one_frame_for_the_server() -> None:
    issued = Issued(KeyNet(per_client=True))
    first, second = (claimed(issued.keys(client)) for client in CLIENTS[:2])
    assert issued.score(first) == RIGHT
    assert issued.score(second)[CHANNELS_PLACED] < 0.2
    assert issued.score(second, victim=CLIENTS[1]) == RIGHT
    frame = draw_keys(NETWORK.channels, ROOT.derive("stage", "keynet", 0), KeyPolicy(2.0))
    for client in CLIENTS[:2]:
        scores = issued.score(claimed(frame), victim=client, holds=(SERVER,))
        assert scores[CHANNELS_PLACED] == 1
        assert scores[LARGEST_GAIN_ERROR] < 1e-12


def test_no_claim_about_keys_that_mix_is_right() -> None:
    issued = Issued(KeyNet(kind="soft"))
    scores = issued.score(claimed(draw_keys(NETWORK.channels, ROOT, KeyPolicy(2.0, outputs="identity"))))
    sizes = [space.size for space in NETWORK.channels.spaces]
    assert scores[CHANNELS_PLACED] <= sizes[-1] / sum(sizes)
    assert GAINS_CLAIMED not in scores


def test_without_a_secret_key_there_is_nothing_to_score() -> None:
    issued = Issued(KeyNet())
    claims = claimed(issued.keys())
    assert Issued(KeyNet(publish_key=True)).score(claims) == {}
    plain = Stack("plain", [Plain()])
    assert plain.score_key_claims(claims, network=NETWORK, victim=CLIENTS[0], held={}, keys=b"") == {}


def test_in_a_stack_the_keyed_stage_is_found() -> None:
    issued = Issued(KeyNet(), codec=Quantization(127, "max", 512))
    assert issued.score(claimed(issued.keys())) == RIGHT


@pytest.mark.parametrize(
    ("claims", "line"),
    [
        ({"gains": torch.ones(6)}, "'gains' is neither 'places.SPACE' nor 'gains.SPACE', SPACE under 3"),
        ({"gains.3": torch.ones(6)}, "'gains.3' is neither"),
        ({"gains.-1": torch.ones(6)}, "'gains.-1' is neither"),
        ({"order.1": torch.ones(6)}, "'order.1' is neither"),
        ({"gains.1": torch.ones(5)}, "gains.1: shape (5,), the space has 6 entries"),
        ({"gains.1": torch.ones(6, 1)}, "gains.1: shape (6, 1), the space has 6"),
        ({"gains.1": torch.tensor([1.0, 1, 1, 1, 1, 0])}, "gains.1: gains are positive and finite"),
        ({"gains.1": torch.tensor([1.0, 1, 1, 1, 1, torch.inf])}, "gains.1: gains are positive and finite"),
        ({"gains.1": torch.ones(6, dtype=torch.int64)}, "gains.1: gains are floating-point numbers, not torch.int64"),
        ({"places.1": torch.ones(6)}, "places.1: places are integers, not torch.float32"),
        ({"places.1": torch.tensor([0, 1, 2, 3, 4, 4])}, "places.1: not each of 0 to 5 once at most"),
        ({"places.1": torch.tensor([0, 1, 2, 3, 4, 6])}, "places.1: not each of 0 to 5 once at most"),
        ({"places.1": torch.tensor([0, 1, 2, 3, 4, -2])}, "places.1: not each of 0 to 5 once at most"),
    ],
    ids=str,
)
def test_what_cannot_be_a_claim_is_refused_in_one_line(claims: dict[str, Tensor], line: str) -> None:
    with pytest.raises(MalformedKeyClaim) as refused:
        read_key_claims(claims, [1, 6, 10])
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)


def test_a_key_is_had_back_from_its_product(monomial_pair: Callable[[int], tuple[ChannelKey, ChannelKey]]) -> None:
    first, second = monomial_pair(12)
    back = second.after(first).before(second)
    assert np.array_equal(back.permutation, first.permutation)
    np.testing.assert_allclose(back.gains, first.gains, rtol=1e-15)
    np.testing.assert_allclose(np.linalg.inv(second.matrix) @ second.after(first).matrix, back.matrix, atol=1e-12)


@pytest.fixture
def monomial_pair() -> Callable[[int], tuple[ChannelKey, ChannelKey]]:
    def draw(size: int) -> tuple[ChannelKey, ChannelKey]:
        generator = np.random.default_rng(size)
        one, other = (ChannelKey(generator.permutation(size), np.exp(generator.uniform(-1, 1, size))) for _ in range(2))
        return one, other

    return draw
