"""Claims about keys that move and scale, read with distrust, and how right those about channel keys are.

An attack claims of a space "places.SPACE", which entry stands at each keyed place (-1: not known), and "gains.SPACE", the
factor at each keyed place (NaN: not known), as `ChannelKey` and `PixelKey` have them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from defenses.base import MalformedKeyClaim
from defenses.keynet.keys import ChannelKeys, Key
from defenses.keynet.monomial import ChannelKey, Floats, Integers

CHANNELS_PLACED = "share of channels placed rightly"
"""Of all channels that the key permutes; those that nothing is claimed of are not."""

GAINS_CLAIMED = "share of gains claimed"
LARGEST_GAIN_ERROR = "largest error of log gains"
MEAN_GAIN_ERROR = "mean error of log gains"
MEDIAN_GAIN_ERROR = "median error of log gains"
"""All three of the gains that are claimed, absolute, in natural logarithms."""


@dataclass(frozen=True, eq=False)
class SpaceClaim:
    """What is claimed of one space's key.

    Attributes:
        places: [entries], which entry stands at each keyed place, -1 where that is not said; None: nothing is.
        gains: [entries], the positive factor at each keyed place, NaN where that is not said; None: nothing is.
    """

    places: Integers | None = None
    gains: Floats | None = None


def read_key_claims(claims: Mapping[str, Tensor], sizes: Sequence[int]) -> dict[int, SpaceClaim]:
    """The claims by space.

    Args:
        claims: as an attack gave them.
        sizes: how many entries each space has.

    Raises:
        MalformedKeyClaim: for a name that is none, another size than the space has, or what are no places or gains.
    """
    places: dict[int, Integers] = {}
    gains: dict[int, Floats] = {}
    for name, claim in claims.items():
        part, _, number = name.partition(".")
        space = int(number) if number.isascii() and number.isdigit() else len(sizes)
        if part not in ("places", "gains") or space >= len(sizes):
            raise MalformedKeyClaim(f"{name!r} is neither 'places.SPACE' nor 'gains.SPACE', SPACE under {len(sizes)}")
        if tuple(claim.shape) != (sizes[space],):
            raise MalformedKeyClaim(f"{name}: shape {tuple(claim.shape)}, the space has {sizes[space]} entries")
        if part == "places":
            places[space] = _read_places(name, claim)
        else:
            gains[space] = _read_gains(name, claim)
    return {space: SpaceClaim(places.get(space), gains.get(space)) for space in sorted(places.keys() | gains.keys())}


def _read_places(name: str, claim: Tensor) -> Integers:
    values = claim.numpy()
    if values.dtype.kind not in "iu":
        raise MalformedKeyClaim(f"{name}: places are integers, not {claim.dtype}")
    found = values.astype(np.int64)
    known = found[found != -1]
    if np.any((known < 0) | (known >= len(found))) or len(np.unique(known)) < len(known):
        raise MalformedKeyClaim(f"{name}: not each of 0 to {len(found) - 1} once at most, or -1 where it is not known")
    return found


def _read_gains(name: str, claim: Tensor) -> Floats:
    if not claim.dtype.is_floating_point:
        raise MalformedKeyClaim(f"{name}: gains are floating-point numbers, not {claim.dtype}")
    found: Floats = claim.double().numpy()
    known = found[~np.isnan(found)]
    if np.any(known <= 0) or np.any(np.isinf(known)):
        raise MalformedKeyClaim(f"{name}: gains are positive and finite, or NaN where they are not known")
    return found


def score_channel_claims(
    claims: Mapping[str, Tensor], keys: ChannelKeys, permuted: Iterable[int], scaled: Iterable[int]
) -> dict[str, float]:
    """Findings about claimed channel keys, by name.

    Nothing is left open: the image's channels are not keyed, so that every other channel has a place and a gain that are
    its own. A key that mixes channels has neither, and no claim about it is right.

    Args:
        claims: as an attack gave them.
        keys: the true ones.
        permuted, scaled: the spaces whose channels they move and scale.

    Raises:
        MalformedKeyClaim: see `read_key_claims`.
    """
    found = read_key_claims(claims, [key.size for key in keys.keys])
    placed = _placed({space: keys.keys[space] for space in permuted}, found)
    true = {space: key for space in scaled if isinstance(key := keys.keys[space], ChannelKey)}
    errors = [
        np.log(gains / true[space].gains)
        for space, claim in found.items()
        if space in true and (gains := claim.gains) is not None
    ]
    return placed | gain_scores(errors, sum(key.size for key in true.values()))


def gain_scores(errors: Sequence[Floats], total: int) -> dict[str, float]:
    """Findings about gains.

    Args:
        errors: differences of logarithms, by space; NaN where nothing is claimed.
        total: how many gains there are to find.
    """
    if not errors:
        return {}
    sizes = np.abs(np.concatenate(errors))
    sizes = sizes[~np.isnan(sizes)]
    scores = {GAINS_CLAIMED: len(sizes) / total}
    if len(sizes):
        figures = {LARGEST_GAIN_ERROR: sizes.max(), MEAN_GAIN_ERROR: sizes.mean(), MEDIAN_GAIN_ERROR: np.median(sizes)}
        scores |= {name: float(value) for name, value in figures.items()}
    return scores


def _placed(permuted: Mapping[int, Key], found: Mapping[int, SpaceClaim]) -> dict[str, float]:
    claimed = {space: claim.places for space, claim in found.items() if space in permuted and claim.places is not None}
    if not claimed:
        return {}
    right = sum(
        int((places == key.permutation).sum())
        for space, places in claimed.items()
        if isinstance(key := permuted[space], ChannelKey)
    )
    return {CHANNELS_PLACED: right / sum(key.size for key in permuted.values())}
