"""Claims about pixel keys, scored: the truth, what keyed matrices leave open, other poses, and guesses."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from defenses.base import MalformedKeyClaim
from defenses.keynet.key_claims import GAINS_CLAIMED, LARGEST_GAIN_ERROR, MEAN_GAIN_ERROR, MEDIAN_GAIN_ERROR
from defenses.keynet.pixel import PixelKey
from defenses.keynet.pixel_claims import PIXELS_PLACED, PIXELS_PLACED_BEST
from defenses.keynet.pixel_defense import KeyNetToeplitz
from defenses.keynet.pixel_form import PixelForm
from defenses.keynet.pixel_keys import PixelKeys
from defenses.stages import KeyMaterial, KeysInForce
from federation.models.base import seeded_initialisation
from federation.network import Network
from federation.secret_root import SecretRoot

Integers = npt.NDArray[np.int64]

RIGHT = {
    PIXELS_PLACED: 1.0,
    PIXELS_PLACED_BEST: 1.0,
    GAINS_CLAIMED: 1.0,
    LARGEST_GAIN_ERROR: pytest.approx(0.0, abs=1e-12),
    MEAN_GAIN_ERROR: pytest.approx(0.0, abs=1e-12),
    MEDIAN_GAIN_ERROR: pytest.approx(0.0, abs=1e-12),
}


def two_convolutions() -> nn.Module:
    """Maps of 2 x 8 x 8, 4 x 8 x 8, and behind pooling 4 x 4 x 4 and 3 x 4 x 4; then units."""
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5)),
    )


def strided() -> nn.Module:
    """A stride that keeps pixels of unlike parity apart and leaves the last row and column unread: 2 x 9 x 9."""
    return nn.Sequential(nn.Conv2d(2, 4, 2, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))


class Issued:
    """Keys of one network, and claims about them by what stands at each keyed place."""

    def __init__(self, build: Callable[[], nn.Module], side: int, stage: KeyNetToeplitz | None = None) -> None:
        def seeded() -> nn.Module:
            with seeded_initialisation(0):
                return build()

        self.network = Network(seeded, (2, side, side), 5)
        self.stage = stage or KeyNetToeplitz()
        self.form = PixelForm.of(self.network)
        self.material = self.draw(b"k")
        self.keys = self.read(self.material).spaces

    def draw(self, seed: bytes) -> KeyMaterial:
        return self.stage.draw_keys(self.network, "client-0", SecretRoot(seed * 64))

    def read(self, material: KeyMaterial) -> PixelKeys:
        return PixelKeys.from_bytes(material.secret, self.form)

    def score(self, claims: Mapping[str, Tensor]) -> Mapping[str, float]:
        return self.stage.score_key_claims(claims, self.network, KeysInForce("client-0", self.material))

    def renamed(self, names: Callable[[Integers], Integers]) -> dict[str, Tensor]:
        """The true places, each map's entries [channels, height, width] under other numbers."""
        claims = {}
        for space, key in zip(self.form.network.spaces, self.keys, strict=True):
            numbers = np.arange(space.size).reshape(space.shape)
            renamed = names(numbers) if len(space.shape) == 3 else numbers
            claims[f"places.{space.index}"] = torch.from_numpy(renamed.ravel()[key.permutation].copy())
        return claims


def claimed(keys: tuple[PixelKey, ...]) -> dict[str, Tensor]:
    places = {f"places.{index}": torch.from_numpy(key.permutation) for index, key in enumerate(keys)}
    return places | {f"gains.{index}": torch.from_numpy(key.gains) for index, key in enumerate(keys)}


@pytest.fixture(scope="module")
def issued() -> Issued:
    return Issued(two_convolutions, 8)


@pytest.mark.parametrize(("build", "side"), [(two_convolutions, 8), (strided, 9)])
def test_true_keys_are_wholly_right(build: Callable[[], nn.Module], side: int) -> None:
    issued = Issued(build, side)
    assert issued.score(claimed(issued.keys)) == RIGHT


def test_guesses_are_near_chance(issued: Issued) -> None:
    scores = [issued.score(claimed(issued.read(issued.draw(bytes([seed]))).spaces)) for seed in range(10)]
    # at best the agreement of a pixel, times the luck of the best of eight poses and of the order of channels
    assert all(score[PIXELS_PLACED] <= score[PIXELS_PLACED_BEST] < 0.12 for score in scores)
    assert np.mean([score[PIXELS_PLACED] for score in scores]) < 0.06
    assert np.mean([score[MEAN_GAIN_ERROR] for score in scores]) == pytest.approx(2 * np.log(2) / 3, rel=0.1)


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("transposed", [False, True])
def test_another_pose_is_wrong_but_for_an_oracle(issued: Issued, turns: int, transposed: bool) -> None:
    def posed(maps: Integers) -> Integers:
        return np.rot90(maps.swapaxes(1, 2) if transposed else maps, turns, axes=(1, 2))

    scores = issued.score(issued.renamed(posed))
    assert scores[PIXELS_PLACED_BEST] == 1
    if turns or transposed:
        assert scores[PIXELS_PLACED] < 0.3
    else:
        assert scores[PIXELS_PLACED] == 1


def test_the_order_of_channels_is_open_in_hidden_maps_and_colours_are_not(issued: Issued) -> None:
    scores = issued.score(issued.renamed(lambda maps: maps[::-1]))
    sizes = [space.size for space in issued.form.network.spaces if len(space.shape) == 3]
    assert sizes == [128, 256, 64, 48]
    assert scores[PIXELS_PLACED] == 1 - 128 / sum(sizes)
    assert scores[PIXELS_PLACED_BEST] == 1


def test_other_orders_in_sets_that_a_stride_keeps_apart_are_an_oracles_for_colours() -> None:
    issued = Issued(strided, 9)

    def swapped(maps: Integers) -> Integers:
        names = maps.copy()
        if maps.shape[1] == 9:
            names[:, ::2, 1::2] = maps[::-1, ::2, 1::2]
        return names

    scores = issued.score(issued.renamed(swapped))
    read, hidden = 2 * 64, 4 * 16
    assert scores[PIXELS_PLACED] == 1 - (read / 4) / (read + hidden)
    assert scores[PIXELS_PLACED_BEST] == 1


def test_one_order_of_channels_holds_for_a_whole_map(issued: Issued) -> None:
    def half(maps: Integers) -> Integers:
        names = maps.copy()
        names[:, : maps.shape[1] // 2] = maps[::-1, : maps.shape[1] // 2]
        return names

    scores = issued.score(issued.renamed(half))
    assert scores[PIXELS_PLACED_BEST] == pytest.approx(0.5, abs=0.06)  # of three channels the middle one stays


def test_a_factor_for_each_channel_is_open_and_one_for_a_pixel_is_not(issued: Issued) -> None:
    claims = claimed(issued.keys)
    key = issued.keys[1]
    factors = np.array([0.5, 2.0, 3.0, 1.0])[key.permutation // 64]
    claims["gains.1"] = torch.from_numpy(key.gains * factors)
    assert issued.score(claims) == RIGHT
    claims["gains.1"][np.flatnonzero(key.permutation == 7)] *= np.e
    scores = issued.score(claims)
    assert scores[LARGEST_GAIN_ERROR] == pytest.approx(1 - 1 / 64)
    assert scores[MEAN_GAIN_ERROR] == pytest.approx(2 * (1 - 1 / 64) / (128 + 256 + 64 + 48))


def test_what_is_not_claimed_is_not_found(issued: Issued) -> None:
    whole = claimed(issued.keys)
    places, gains = whole["places.0"].clone(), whole["gains.0"].clone()
    places[:28], gains[:28] = -1, float("nan")
    scores = issued.score({"places.0": places, "gains.0": gains})
    assert scores[PIXELS_PLACED] == scores[PIXELS_PLACED_BEST] == 100 / 496
    assert scores[GAINS_CLAIMED] == 100 / 496
    assert scores[LARGEST_GAIN_ERROR] < 1e-12


def test_of_units_nothing_is_asked(issued: Issued) -> None:
    last = issued.form.network.spaces[-1]
    assert last.shape == (5,)
    assert issued.score({f"places.{last.index}": torch.arange(5), f"gains.{last.index}": torch.ones(5)}) == {}


def test_no_claim_about_soft_keys_is_right() -> None:
    issued = Issued(two_convolutions, 8, KeyNetToeplitz(gain_range=1.0, alpha=3))
    assert not issued.keys[0].is_monomial
    assert issued.score({"places.0": torch.arange(128)}) == {PIXELS_PLACED: 0.0, PIXELS_PLACED_BEST: 0.0}


def test_gains_that_are_one_by_the_public_options_are_not_asked_for() -> None:
    issued = Issued(two_convolutions, 8, KeyNetToeplitz(gain_range=1.0))
    assert issued.score(claimed(issued.keys)) == {PIXELS_PLACED: 1.0, PIXELS_PLACED_BEST: 1.0}


def test_the_leaky_twin_has_no_key_to_claim(issued: Issued) -> None:
    keys = KeysInForce("client-0", KeyMaterial())
    assert issued.stage.leaky_twin().score_key_claims(claimed(issued.keys), issued.network, keys) == {}


def test_what_cannot_be_a_claim_is_refused(issued: Issued) -> None:
    with pytest.raises(MalformedKeyClaim, match=r"places\.0: shape \(5,\), the space has 128 entries"):
        issued.score({"places.0": torch.arange(5)})
