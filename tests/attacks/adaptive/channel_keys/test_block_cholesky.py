"""Block-sparse Cholesky against dense linear algebra."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.adaptive.block_cholesky import BlockCholesky, SymmetricBlocks, elimination_order


@st.composite
def systems(draw: st.DrawFn) -> tuple[SymmetricBlocks, torch.Tensor]:
    """A sum of squares over some cliques of blocks, in the order of elimination, and the same matrix densely."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    blocks = range(len(sizes))
    cliques = draw(st.lists(st.lists(st.sampled_from(blocks), unique=True, min_size=1), max_size=6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    order = elimination_order(cliques, sizes)
    starts = [sum(sizes[:block]) for block in blocks]
    slices = [slice(starts[block], starts[block] + sizes[block]) for block in order]
    diagonal = 0.1 + torch.rand(sum(sizes), generator=generator, dtype=torch.float64)
    matrix, dense = SymmetricBlocks(slices, diagonal), torch.diag(diagonal)
    for clique in cliques:
        numbers = sorted(order.index(block) for block in clique)
        places = torch.cat([torch.arange(slices[number].start, slices[number].stop) for number in numbers])
        rows = torch.randn(3, len(places), generator=generator, dtype=torch.float64)
        matrix.add(numbers, rows.T @ rows)
        dense[places[:, None], places] += rows.T @ rows
    return matrix, dense


@settings(max_examples=60, deadline=None)
@given(system=systems())
def test_it_solves_and_inverts_as_dense_algebra_does(system: tuple[SymmetricBlocks, torch.Tensor]) -> None:
    matrix, dense = system
    torch.testing.assert_close(matrix.dense(), dense)
    torch.testing.assert_close(matrix.diagonal(), dense.diagonal())
    added = torch.linspace(0, 1, len(dense), dtype=torch.float64)
    right = torch.linspace(-1, 2, len(dense), dtype=torch.float64)
    factor = BlockCholesky(matrix, added)
    whole = dense + torch.diag(added)
    torch.testing.assert_close(factor.solve(right), torch.linalg.solve(whole, right), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(factor.inverse_diagonal(), torch.linalg.inv(whole).diagonal(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(matrix.dense(), dense)


def test_a_chain_fills_nothing_in() -> None:
    """Whatever the order in which a chain's links are numbered, eliminating it leaves blocks of zeros as they are."""
    chain = [3, 0, 4, 1, 5, 2]
    links = list(itertools.pairwise(chain))
    order = elimination_order(links, [2] * 6)
    assert sorted(order) == list(range(6))
    slices = [slice(2 * block, 2 * block + 2) for block in order]
    matrix = SymmetricBlocks(slices, torch.full((12,), 5.0, dtype=torch.float64))
    for link in links:
        matrix.add(sorted(order.index(block) for block in link), torch.ones(4, 4, dtype=torch.float64))
    factor = BlockCholesky(matrix, torch.zeros(12, dtype=torch.float64))
    assert sum(len(rows) for _, rows, _ in factor._columns) == len(links)


def test_what_is_not_positive_definite_is_refused() -> None:
    matrix = SymmetricBlocks([slice(0, 2)], torch.tensor([1.0, -1.0], dtype=torch.float64))
    with pytest.raises(torch.linalg.LinAlgError):
        BlockCholesky(matrix, torch.zeros(2, dtype=torch.float64))
