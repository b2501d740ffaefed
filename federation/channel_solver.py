"""Which channels of a network are the same, solved from what its operations say of them.

A sum may join a concatenation to the results of one layer, or to another concatenation: then spaces are cut where either
has a border, and every piece is a space of its own.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from scipy.cluster.hierarchy import DisjointSet

from federation.channel_map import ChannelMap, ChannelSpace, Passage, Role, TensorAxes
from federation.errors import UsageError

Spaces: TypeAlias = tuple[int, ...]
_Piece: TypeAlias = tuple[int, int]
"""A space as it was added, and the channel with which the piece begins."""


@dataclass(frozen=True)
class _Run:
    """Consecutive channels of a space as it was added, in units (the groups of a convolution) of `width` channels."""

    space: int
    start: int
    width: int


@dataclass(frozen=True)
class _Likeness:
    """Two runs of as many units: the same channels, or the groups that a convolution reads and writes.

    Attributes:
        runs: both.
        units: how many.
        layer: where the grouped convolution stands; None where the channels are the same.
    """

    runs: tuple[_Run, _Run]
    units: int
    layer: str | None = None


class SpaceSolver:
    """Collects what must hold between channel spaces and solves it once.

    Spaces are numbered as they are added; `solve` renumbers the pieces that stay distinct, in the same order.
    """

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._origins: list[str] = []
        self._same: list[_Likeness] = []
        self._grouped: list[_Likeness] = []
        self._passages: list[tuple[int, Passage]] = []
        self._axes: dict[str, TensorAxes] = {}

    def add(self, size: int, origin: str) -> int:
        """A new space of `size` channels, begun by the node that stands at `origin`."""
        self._sizes.append(size)
        self._origins.append(origin)
        return len(self._sizes) - 1

    def join(self, one: Spaces, other: Spaces) -> None:
        """Two sequences of spaces hold the same channels in the same order; their total sizes must be equal."""
        starts, other_starts = self._starts(one), self._starts(other)
        assert starts[-1] == other_starts[-1], "only as many channels can be the same"
        borders = sorted({*starts, *other_starts})
        for start, stop in itertools.pairwise(borders):
            runs = self._run(one, starts, start), self._run(other, other_starts, start)
            self._same.append(_Likeness(runs, stop - start))

    def pass_through(self, spaces: Spaces, passage: Passage) -> None:
        """Values of `spaces` pass an operation that is not linear."""
        self._passages += [(space, passage) for space in spaces]

    def link_groups(self, in_spaces: Spaces, out_space: int, groups: int) -> None:
        """A grouped convolution reads ones and writes the other: groups move as a whole, in the same order in both.

        Raises:
            UsageError: where a group reads channels of two spaces.
        """
        layer, starts = self._origins[out_space], self._starts(in_spaces)
        width, out_width = starts[-1] // groups, self._sizes[out_space] // groups
        for space, (start, stop) in zip(in_spaces, itertools.pairwise(starts), strict=True):
            if start % width or stop % width:
                raise _torn(layer, width)
            runs = _Run(space, 0, width), _Run(out_space, start // width * out_width, out_width)
            self._grouped.append(_Likeness(runs, (stop - start) // width, layer))

    def declare(self, tensor: str, axes: TensorAxes) -> None:
        """`tensor` lies along these spaces; where it was declared before, the channels of both must be the same."""
        earlier = self._axes.setdefault(tensor, axes)
        if earlier.in_expansion != axes.in_expansion:
            raise UsageError(f"tensor {tensor!r} reads feature maps of different sizes; give each use its own layer")
        self.join(earlier.out_spaces, axes.out_spaces)
        self.join(earlier.in_spaces, axes.in_spaces)

    def solve(self, input_spaces: Spaces, output_spaces: Spaces) -> ChannelMap:
        """The map of the distinct spaces.

        Raises:
            UsageError: where convolutions with different numbers of groups meet in one space, or a group is cut.
        """
        pieces = _Pieces(self._sizes, self._same, self._grouped)
        blocks, families = self._solve_blocks(pieces)
        roles: dict[int, Role] = dict.fromkeys(pieces.numbers(output_spaces), "output")
        roles |= dict.fromkeys(pieces.numbers(input_spaces), "input")
        passages: dict[int, dict[Passage, None]] = defaultdict(dict)  # in order, each once
        for space, passage in self._passages:
            for index in pieces.numbers((space,)):
                passages[index][passage] = None
        origins: dict[int, dict[str, None]] = defaultdict(dict)
        for space, place in enumerate(self._origins):
            for index in pieces.numbers((space,)):
                origins[index][place] = None
        spaces = tuple(
            ChannelSpace(
                index,
                size,
                roles.get(index, "hidden"),
                frozenset(passage.operation for passage in passages[index]),
                blocks.get(index, 1),
                families.get(index),
                tuple(passages[index]),
                tuple(origins[index]),
            )
            for index, size in enumerate(pieces.sizes)
        )
        axes = {
            name: TensorAxes(
                pieces.numbers(found.out_spaces), pieces.numbers(found.in_spaces), found.in_expansion, found.groups
            )
            for name, found in self._axes.items()
        }
        return ChannelMap(spaces, axes)

    def _starts(self, spaces: Spaces) -> list[int]:
        """Where each of the spaces begins in their sequence, and where the last one ends."""
        return [*itertools.accumulate((self._sizes[space] for space in spaces), initial=0)]

    def _run(self, spaces: Spaces, starts: Sequence[int], channel: int) -> _Run:
        """The channels of a sequence of spaces from one on."""
        part = max(index for index in range(len(spaces)) if starts[index] <= channel)
        return _Run(spaces[part], channel - starts[part], 1)

    def _solve_blocks(self, pieces: _Pieces) -> tuple[dict[int, int], dict[int, int]]:
        """Blocks and number of the family, for each distinct space that has any."""
        first: dict[int, tuple[int, str]] = {}
        families: DisjointSet = DisjointSet()
        for link in self._grouped:
            read, written = (pieces.numbers_of_run(run, link.units) for run in link.runs)
            for index, units in itertools.chain.from_iterable(zip(read, written, strict=True)):
                layer = link.layer or ""
                earlier_units, earlier_layer = first.setdefault(index, (units, layer))
                if earlier_units != units:
                    raise UsageError(
                        f"{earlier_layer} has {earlier_units} groups and {layer} has {units} on the same channels; "
                        "use one number of groups there, or put an ungrouped convolution between them"
                    )
                families.add(index)
            for (index, _), (other, _) in zip(read, written, strict=True):
                families.merge(index, other)
        number = {root: place for place, root in enumerate(dict.fromkeys(families[index] for index in first))}
        blocks = {index: units for index, (units, _) in first.items()}
        return blocks, {index: number[families[index]] for index in first}


class _Pieces:
    """Spaces cut wherever what they are like has a border, and which of the pieces are the same.

    Args:
        sizes: of the spaces as they were added.
        same: runs of the same channels.
        grouped: runs of groups that a convolution reads and writes.

    Attributes:
        sizes: of the distinct pieces, numbered in the order in which they first appear.

    Raises:
        UsageError: where a cut falls into a group.
    """

    def __init__(self, sizes: Sequence[int], same: Sequence[_Likeness], grouped: Sequence[_Likeness]) -> None:
        self._cuts = [{0, size} for size in sizes]
        while sum(self._spread(likeness) for likeness in (*same, *grouped)):
            pass
        joined: DisjointSet = DisjointSet((space, start) for space in range(len(sizes)) for start in self._of(space))
        for likeness in same:
            one, other = (self._within(run, likeness.units) for run in likeness.runs)
            for pair in zip(one, other, strict=True):
                joined.merge(*pair)
        roots = dict.fromkeys(joined[piece] for piece in joined)
        number = {root: index for index, root in enumerate(roots)}
        self._number = {piece: number[joined[piece]] for piece in joined}
        self.sizes = [self._length(piece) for piece in {self._number[piece]: piece for piece in joined}.values()]

    def numbers(self, spaces: Spaces) -> Spaces:
        """The distinct pieces of a sequence of spaces."""
        return tuple(self._number[space, start] for space in spaces for start in self._of(space))

    def numbers_of_run(self, run: _Run, units: int) -> list[tuple[int, int]]:
        """The distinct pieces of a run, and the units of each."""
        return [(self._number[piece], self._length(piece) // run.width) for piece in self._within(run, units)]

    def _of(self, space: int) -> list[int]:
        return sorted(self._cuts[space])[:-1]

    def _length(self, piece: _Piece) -> int:
        space, start = piece
        return min(cut for cut in self._cuts[space] if cut > start) - start

    def _within(self, run: _Run, units: int) -> list[_Piece]:
        stop = run.start + units * run.width
        return [(run.space, start) for start in self._of(run.space) if run.start <= start < stop]

    def _spread(self, likeness: _Likeness) -> int:
        """Cut both runs where either is cut or ends; the number of new cuts."""
        borders: set[int] = {0, likeness.units}
        for run in likeness.runs:
            stop = run.start + likeness.units * run.width
            inside = [cut - run.start for cut in self._cuts[run.space] if run.start <= cut <= stop]
            if any(cut % run.width for cut in inside):
                raise _torn(likeness.layer or "", run.width)
            borders |= {cut // run.width for cut in inside}
        new = 0
        for run in likeness.runs:
            cuts = {run.start + border * run.width for border in borders} - self._cuts[run.space]
            self._cuts[run.space] |= cuts
            new += len(cuts)
        return new


def _torn(layer: str, width: int) -> UsageError:
    return UsageError(
        f"{layer}: a border between concatenated parts falls into one of its groups of {width} channels; let every part "
        "end where a group ends, or put an ungrouped convolution before it"
    )
