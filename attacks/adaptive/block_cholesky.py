"""Symmetric matrices in blocks of which most are zero, their Cholesky factors, and the diagonals of their inverses.

A block is a set of unknowns, such as the channels of one space; unknowns that no equation relates leave a block of zeros.
Eliminating a block relates those that it was related to, so that blocks with few such unknowns go first (the greedy
minimum-degree order; George and Liu 1989). The inverse is computed where the factor has blocks only, from the last to the
first (Takahashi, Fagan and Chin 1973): its diagonal needs no more.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor


def elimination_order(cliques: Iterable[Collection[int]], sizes: Sequence[int]) -> list[int]:
    """The blocks in the order in which they are to be eliminated.

    Args:
        cliques: sets of blocks that equations relate to each other.
        sizes: unknowns of each block.
    """
    related: dict[int, set[int]] = {block: set() for block in range(len(sizes))}
    for clique in cliques:
        for block in clique:
            related[block] |= set(clique) - {block}
    order = []
    while related:
        block = min(related, key=lambda each: (sum(sizes[other] for other in related[each]), each))
        others = related.pop(block)
        for other in others:
            related[other] = (related[other] | others) - {other, block}
        order.append(block)
    return order


class SymmetricBlocks:
    """A symmetric float64 matrix, of which the blocks on and below the diagonal are kept where they are not zero.

    Args:
        slices: where each block's unknowns stand in vectors, in the order of elimination.
        diagonal: [unknowns] to begin with.
    """

    def __init__(self, slices: Sequence[slice], diagonal: Tensor) -> None:
        self.slices = slices
        self.blocks = {(index, index): torch.diag(diagonal[part]) for index, part in enumerate(slices)}

    def add(self, indices: Sequence[int], matrix: Tensor) -> None:
        """Add a symmetric matrix over the unknowns of some blocks, one block after the other."""
        sizes = [len(self.blocks[index, index]) for index in indices]
        for row, strip in zip(indices, matrix.split(sizes, 0), strict=True):
            for column, block in zip(indices, strip.split(sizes, 1), strict=True):
                if row >= column:
                    known = self.blocks.get((row, column))
                    self.blocks[row, column] = block.clone() if known is None else known.add_(block)

    def diagonal(self) -> Tensor:
        """[unknowns]."""
        found = [self.blocks[index, index].diagonal() for index in range(len(self.slices))]
        return _placed(found, self.slices)

    def dense(self) -> Tensor:
        """[unknowns, unknowns], the whole of it."""
        size = sum(len(self.blocks[index, index]) for index in range(len(self.slices)))
        whole = torch.zeros(size, size, dtype=torch.float64)
        for (row, column), block in self.blocks.items():
            whole[self.slices[row], self.slices[column]] = block
            whole[self.slices[column], self.slices[row]] = block.T
        return whole


class BlockCholesky:
    """L of L L^T, block column by block column.

    Args:
        matrix: positive definite.
        added: [unknowns], added to its diagonal.
    """

    def __init__(self, matrix: SymmetricBlocks, added: Tensor) -> None:
        self._slices = matrix.slices
        left = dict(matrix.blocks)
        self._columns: list[tuple[Tensor, list[int], Tensor]] = []  # each one's own block, rows below, and their blocks
        for index, part in enumerate(matrix.slices):
            own = torch.linalg.cholesky(left.pop((index, index)) + torch.diag(added[part]))
            rows = [row for row in range(index + 1, len(matrix.slices)) if (row, index) in left]
            below = torch.cat([left.pop((row, index)) for row in rows]) if rows else own.new_zeros(0, len(own))
            below = torch.linalg.solve_triangular(own.T, below, upper=True, left=False)
            self._columns.append((own, rows, below))
            strips = below.split([self._size(row) for row in rows])
            for (row, upper), (column, lower) in itertools.product(zip(rows, strips, strict=True), repeat=2):
                if row >= column:
                    known = left.get((row, column))
                    left[row, column] = -upper @ lower.T if known is None else known - upper @ lower.T

    def solve(self, values: Tensor) -> Tensor:
        """[unknowns], the matrix's inverse times `values`."""
        found = [values[part].clone() for part in self._slices]
        for index, (own, rows, below) in enumerate(self._columns):
            found[index] = torch.linalg.solve_triangular(own, found[index][:, None], upper=False)[:, 0]
            for row, strip in zip(rows, below.split([self._size(row) for row in rows]), strict=True):
                found[row] = found[row] - strip @ found[index]
        for index, (own, rows, below) in reversed(list(enumerate(self._columns))):
            if rows:
                found[index] = found[index] - below.T @ torch.cat([found[row] for row in rows])
            found[index] = torch.linalg.solve_triangular(own.T, found[index][:, None], upper=True)[:, 0]
        return _placed(found, self._slices)

    def inverse_diagonal(self) -> Tensor:
        """[unknowns], the diagonal of the matrix's inverse."""
        inverse: dict[tuple[int, int], Tensor] = {}
        for index, (own, rows, below) in reversed(list(enumerate(self._columns))):
            inverse[index, index] = torch.cholesky_inverse(own)
            if not rows:
                continue
            ratio = torch.linalg.solve_triangular(own, below, upper=False, left=False)
            known = torch.cat(
                [
                    torch.cat([inverse[row, each] if row >= each else inverse[each, row].T for each in rows], dim=1)
                    for row in rows
                ]
            )
            beside = -known @ ratio
            inverse[index, index] -= ratio.T @ beside
            for row, strip in zip(rows, beside.split([self._size(row) for row in rows]), strict=True):
                inverse[row, index] = strip
        return _placed([inverse[index, index].diagonal() for index in range(len(self._slices))], self._slices)

    def _size(self, index: int) -> int:
        return self._slices[index].stop - self._slices[index].start


def _placed(parts: Sequence[Tensor], slices: Sequence[slice]) -> Tensor:
    """Each block's values where its unknowns stand in vectors."""
    whole = parts[0].new_empty(sum(len(part) for part in parts))
    for part, place in zip(parts, slices, strict=True):
        whole[place] = part
    return whole
