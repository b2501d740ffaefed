"""Colour refinement: graphs that are renumbered are matched edge by edge; NetworkX counts the symmetries."""

from __future__ import annotations

import networkx
import numpy as np
import pytest
import scipy.sparse
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from networkx.algorithms.isomorphism import GraphMatcher

from attacks.adaptive.grid.refinement import Matching, match_graphs
from attacks.adaptive.grid.template import POSES, ConvolutionTemplate, inverse_pose, posed


def graph(edges: np.ndarray) -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array(edges.astype(np.uint64))


def matched(first: np.ndarray, second: np.ndarray) -> Matching | None:
    same = np.zeros(first.shape[1], np.uint64)
    return match_graphs(graph(first), graph(second), same, same)


def symmetries(edges: np.ndarray) -> int:
    """How often a graph maps onto itself, rows to rows, by NetworkX."""
    whole = networkx.Graph()
    whole.add_nodes_from((("row", index), {"side": 0}) for index in range(edges.shape[0]))
    whole.add_nodes_from((("column", index), {"side": 1}) for index in range(edges.shape[1]))
    whole.add_edges_from((("row", row), ("column", column)) for row, column in np.argwhere(edges))
    matcher = GraphMatcher(whole, whole, node_match=lambda one, other: one["side"] == other["side"])
    return sum(1 for _ in matcher.isomorphisms_iter())


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(2, 5), columns=st.integers(2, 6), seed=st.integers(0, 10_000))
def test_a_renumbered_graph_is_matched_edge_by_edge(rows: int, columns: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    edges = generator.random((rows, columns)) < 0.5
    assume(len(np.unique(edges, axis=0)) == rows and len(np.unique(edges, axis=1).T) == columns)
    row_order, column_order = generator.permutation(rows), generator.permutation(columns)
    second = edges[row_order][:, column_order]
    found = matched(edges, second)
    assert found is not None
    assert np.array_equal(edges[found.rows][:, found.columns], second)
    assert found.choices == symmetries(edges)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000))
def test_another_graph_is_not_matched(seed: int) -> None:
    generator = np.random.default_rng(seed)
    edges = generator.random((5, 6)) < 0.5
    other = edges.copy()
    other[0, 0] ^= True
    assert matched(edges, other) is None
    moved = edges.copy()
    moved[0, :2], moved[1, :2] = edges[1, :2], edges[0, :2]
    found = matched(edges, moved)
    assert found is None or np.array_equal(edges[found.rows][:, found.columns], moved)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [((4, 4), (3, 3), (1, 1), (1, 1)), ((4, 5), (3, 3), (1, 1), (1, 1)), ((5, 5), (3, 3), (2, 2), (1, 1))],
)
def test_the_symmetries_of_a_grid_are_its_poses(
    size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> None:
    template = ConvolutionTemplate.of((1, *size), 1, kernel, stride=stride, padding=padding)
    edges = template.support.toarray() > 0
    assert len(template.symmetries) == symmetries(edges)


@pytest.mark.parametrize("pose", POSES)
def test_poses_are_the_eight_of_a_square_and_have_inverses(pose: int) -> None:
    grid = np.arange(12).reshape(3, 4)
    assert np.array_equal(posed(posed(grid, pose), inverse_pose(pose)), grid)
    square = np.arange(9).reshape(3, 3)
    assert len({posed(square, each).tobytes() for each in POSES}) == 8
