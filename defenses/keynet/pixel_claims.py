"""How right claims about pixel keys are, up to what keyed matrices leave open.

What = A_1 W A_0^-1 with an unknown W does not tell, and no figure here asks for:

- which keyed entry of a hidden map belongs to which channel's name: a claim is right up to an order of the channels (and
  where no tap connects two sets of pixels, as a stride may leave them, up to one for each set);
- a factor for each channel of each such set, which could as well be the kernels': errors of log gains are taken from
  their mean;
- anything of units and of maps of one pixel, and of entries that meet no weight.

It does not tell the pose of the maps and the order of the image's colours either. These an attack may know from images,
and so the figure in the attacker's own frame asks for them; the other, in the best pose and order, is an oracle's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import scipy.sparse
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from defenses.keynet.key_claims import SpaceClaim, gain_scores, read_key_claims
from defenses.keynet.monomial import Floats, Integers
from defenses.keynet.pixel import PixelKey
from federation.toeplitz import Linear, PixelSpace, ToeplitzNetwork

PIXELS_PLACED = "share of pixels placed rightly"
PIXELS_PLACED_BEST = "share of pixels placed rightly, best pose and colours (oracle)"
"""Of all entries of keyed maps that meet a weight, up to an order of hidden channels; unclaimed ones are not."""

_POSES = range(8)


def score_pixel_claims(
    claims: Mapping[str, Tensor], keys: Sequence[PixelKey], network: ToeplitzNetwork, scaled: Collection[int]
) -> dict[str, float]:
    """Findings about claimed pixel keys, by name.

    A key that mixes pixels has neither places nor gains, and no claim about it is right.

    Args:
        claims: as an attack gave them.
        keys: the true ones, by space.
        network: the layers.
        scaled: the spaces whose keys have gains.

    Raises:
        MalformedKeyClaim: see `read_key_claims`.
    """
    found = read_key_claims(claims, [space.size for space in network.spaces])
    maps = {space.index: known for space in network.spaces if (known := _KeyedMap.of(space, network)) is not None}
    total = sum(int(known.met.sum()) for known in maps.values())
    scores: dict[str, float] = {}
    claimed = {index: claim for index, claim in found.items() if index in maps}
    if any(claim.places is not None for claim in claimed.values()):
        for name, best in ((PIXELS_PLACED, False), (PIXELS_PLACED_BEST, True)):
            right = sum(maps[index].placed(claim, keys[index], best=best) for index, claim in claimed.items())
            scores[name] = right / total
    with_gains = {index: known for index, known in maps.items() if index in scaled and keys[index].is_monomial}
    errors = [
        with_gains[index].gain_errors(claim.gains, keys[index])
        for index, claim in claimed.items()
        if index in with_gains and claim.gains is not None
    ]
    gains = sum(int(known.comparable.sum()) for known in with_gains.values())
    return scores | gain_scores(errors, gains)


@dataclass(frozen=True, eq=False)
class _KeyedMap:
    """What is public of a space of maps around which keyed matrices stand.

    Attributes:
        shape: (channels, height, width).
        is_image: whether its channels have an order of their own.
        met: [entries], whether any weight meets the entry.
        sets: [pixels], number of the set of pixels that taps connect.
    """

    shape: tuple[int, ...]
    is_image: bool
    met: npt.NDArray[np.bool_]
    sets: Integers

    @classmethod
    def of(cls, space: PixelSpace, network: ToeplitzNetwork) -> _KeyedMap | None:
        """None for units and maps of one pixel, and for what no keyed matrix reads or writes."""
        readers = [step for step in network.weighted if step.source_spaces[0] == space.index]
        written = any(step.space == space.index for step in network.weighted)
        pixels = space.size // space.shape[0]
        if len(space.shape) != 3 or pixels == 1 or not (readers or written):
            return None
        met = np.full(space.size, written)
        for step in readers:
            met[_reads(step)[0]] = True
        connected = np.zeros(pixels, np.int64) if written else _connected(readers, space.size)[:pixels]
        return cls(space.shape, space.role == "input", met, connected)

    @property
    def pixels(self) -> int:
        """Of one channel."""
        return len(self.sets)

    def placed(self, claim: SpaceClaim, key: PixelKey, *, best: bool) -> int:
        """How many entries stand where the claim says; `best` in the pose, and for images the order, that is best."""
        if claim.places is None or not key.is_monomial:
            return 0
        known = (claim.places >= 0) & self.met[key.permutation]
        claimed, true = (np.divmod(entries[known], self.pixels) for entries in (claim.places, key.permutation))
        in_order = self.is_image and not best
        return max(
            self._agreeing((claimed[0], pose[claimed[1]]), true, in_order=in_order)
            for pose in (self._poses if best else self._poses[:1])
        )

    def _agreeing(self, claimed: tuple[Integers, Integers], true: tuple[Integers, Integers], *, in_order: bool) -> int:
        """Entries of equal pixel and channel, in the order of channels that agrees most in each set of pixels."""
        channels = self.shape[0]
        same = claimed[1] == true[1]
        counts = np.zeros((int(self.sets.max()) + 1, channels, channels), np.int64)
        np.add.at(counts, (self.sets[true[1][same]], claimed[0][same], true[0][same]), 1)
        if in_order:
            return int(np.trace(counts, axis1=1, axis2=2).sum())
        return sum(int(count[linear_sum_assignment(count, maximize=True)].sum()) for count in counts)

    def gain_errors(self, gains: Floats, key: PixelKey) -> Floats:
        """[comparable entries], differences of log gains less their mean over each channel of a set of pixels."""
        kept = self.comparable[key.permutation]
        errors, group = np.log(gains / key.gains)[kept], self._groups[key.permutation][kept]
        known = ~np.isnan(errors)
        size = np.maximum(np.bincount(group[known], minlength=group.max() + 1), 1)
        means = np.bincount(group[known], weights=errors[known], minlength=group.max() + 1) / size
        return np.asarray(errors - means[group])

    @cached_property
    def comparable(self) -> npt.NDArray[np.bool_]:
        """[entries], whether a weight meets the entry and another one of its channel and set of pixels."""
        return np.asarray(self.met & (np.bincount(self._groups, weights=self.met)[self._groups] > 1))

    @cached_property
    def _groups(self) -> Integers:
        """[entries], a number for each channel of each set of pixels."""
        sets = int(self.sets.max()) + 1
        return np.asarray((np.arange(self.shape[0])[:, None] * sets + self.sets).ravel(), np.int64)

    @cached_property
    def _poses(self) -> list[Integers]:
        """[pixels] by pose, first as they are: which pixel each is in a reflection or turn of those that weights meet."""
        height, width = self.shape[1:]
        grid = np.arange(self.pixels).reshape(height, width)
        rows, columns = np.nonzero(self.met[: self.pixels].reshape(height, width))
        reach = slice(0, int(rows.max()) + 1), slice(0, int(columns.max()) + 1)
        found = []
        for pose in _POSES:
            moved = np.rot90(grid[reach].T if pose >= 4 else grid[reach], pose % 4)
            if moved.shape == grid[reach].shape:
                whole = grid.copy()
                whole[reach] = moved
                found.append(whole.ravel())
        return found


def _reads(step: Linear) -> tuple[Integers, Integers]:
    """Which entries a layer's weights meet, and with which of its values, both [entries of its matrix]."""
    layout = step.layout
    rows = np.repeat(np.arange(layout.shape[0]), np.diff(layout.indptr))
    inside = (rows < layout.shape[0] - 1) & (layout.indices < layout.shape[1] - 1)
    return layout.indices[inside].astype(np.int64), layout.sources[inside].astype(np.int64)


def _connected(readers: Sequence[Linear], size: int) -> Integers:
    """[size], the set of each entry: two are in one where a layer meets them with the same value.

    Where no value meets two entries, as in a fully connected layer, nothing is told apart: all are in one set.
    """
    columns, values, offset = [], [], size
    for step in readers:
        entries, sources = _reads(step)
        columns.append(entries)
        values.append(sources + offset)
        offset += step.layout.value_count
    pairs = np.concatenate(columns), np.concatenate(values)
    links = scipy.sparse.coo_array((np.ones(len(pairs[0])), pairs), shape=(offset, offset))
    labels = connected_components(links, directed=False)[1][:size]
    met = labels[np.unique(pairs[0])]
    if len(np.unique(met)) == len(met):
        return np.zeros(size, np.int64)
    return np.asarray(np.unique(labels, return_inverse=True)[1], np.int64)
