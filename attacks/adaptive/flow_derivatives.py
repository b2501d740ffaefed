"""Derivatives of the rescaling equations by gains, space by space: a channel's equation has its neighbours' gains alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.adaptive.block_cholesky import elimination_order


@dataclass(frozen=True)
class Part:
    """The derivatives of one space's equations: by the unknowns that they have in them.

    Attributes:
        rows: which equations.
        blocks: the spaces of the unknowns, as blocks in the order of elimination.
        unknowns: which, block by block.
        start: where its matrix begins in a buffer of all parts.
    """

    rows: slice
    blocks: tuple[int, ...]
    unknowns: Tensor
    start: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, len(self.unknowns)


class FlowDerivatives:
    """Where each product stands in the derivatives of the flows: those of a space's equations by its neighbours' gains.

    Args:
        sizes: of the spaces, whose channels are places 0, 1, ..., the constant input of biases the last.
        writes, reads: [N], places of the products.
        equations, unknown: the spaces whose channels have equations, and unknown gains, in order.
    """

    def __init__(
        self, sizes: Sequence[int], writes: Tensor, reads: Tensor, equations: Sequence[int], unknown: Sequence[int]
    ) -> None:
        of_place = torch.repeat_interleave(torch.arange(len(sizes) + 1), torch.tensor([*sizes, 1]))
        linked = torch.eye(len(sizes) + 1, dtype=torch.bool)
        linked[of_place[writes], of_place[reads]] = True
        linked |= linked.T.clone()
        cliques = [[number for number, other in enumerate(unknown) if linked[space, other]] for space in equations]
        order = elimination_order(cliques, [sizes[space] for space in unknown])
        starts = starts_of([sizes[space] for space in unknown])
        self.slices = [slice(starts[number], starts[number] + sizes[unknown[number]]) for number in order]
        self.parts: list[Part] = []
        line = torch.full((len(of_place),), -1)  # where an equation begins in the buffer
        column = torch.full((len(sizes) + 1, len(sizes) + 1), -1)  # where a space begins among those of an equation
        self._length = done = 0
        for space, clique in zip(equations, cliques, strict=True):
            blocks = [block for block, number in enumerate(order) if number in clique]
            unknowns = [torch.arange(self.slices[block].start, self.slices[block].stop) for block in blocks]
            part = Part(
                slice(done, done + sizes[space]),
                tuple(blocks),
                torch.cat([*unknowns, torch.empty(0, dtype=torch.int64)]),
                self._length,
            )
            line[of_place == space] = part.start + torch.arange(sizes[space]) * part.shape[1]
            column[space, [unknown[order[block]] for block in blocks]] = torch.tensor(
                starts_of([len(each) for each in unknowns]), dtype=torch.int64
            )
            self.parts.append(part)
            self._length += part.shape[0] * part.shape[1]
            done += sizes[space]
        channel = torch.cat([torch.arange(size) for size in (*sizes, 1)])

        def found(rows: Tensor, unknowns: Tensor) -> tuple[Tensor, Tensor]:
            """Which of these pairs of places are of an equation and one of its unknowns, and where each is buffered."""
            begins = column[of_place[rows], of_place[unknowns]]
            (chosen,) = (begins >= 0).nonzero(as_tuple=True)
            return chosen, (line[rows] + begins + channel[unknowns])[chosen]

        self._added = found(writes, reads), found(reads, writes)
        self._taken = found(writes, writes), found(reads, reads)

    def at(self, terms: Tensor) -> list[tuple[Part, Tensor]]:
        """The parts with their derivatives [equations, unknowns] at terms [N]."""
        buffer = terms.new_zeros(self._length)
        for chosen, places in self._added:
            buffer.index_add_(0, places, terms[chosen])
        for chosen, places in self._taken:
            buffer.index_add_(0, places, terms[chosen], alpha=-1)
        lengths = [part.shape[0] * part.shape[1] for part in self.parts]
        return [(part, values.view(part.shape)) for part, values in zip(self.parts, buffer.split(lengths), strict=True)]


def starts_of(sizes: Sequence[int]) -> list[int]:
    """Where each of some runs begins when they stand one after the other."""
    return [sum(sizes[:index]) for index in range(len(sizes))]
