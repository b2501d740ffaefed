"""Channel spaces of concatenations: against maps written out by hand, and single channels by brute force."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from functional_networks import IMAGE, Functional, with_head
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import DisjointSet
from torch import Tensor, nn

from federation.channel_solver import SpaceSolver
from federation.channels import TensorAxes, trace_channels
from federation.vision import models


def test_concatenated_parts_stay_what_they_are() -> None:
    network = with_head(
        lambda n, x: n.c(F.relu(n.norm(torch.cat([x, F.relu(n.a(x)), torch.cat([n.b(x), x], 1)], dim=-3)))),
        a=nn.Conv2d(8, 4, 1), b=nn.Conv2d(8, 2, 1), norm=nn.BatchNorm2d(22), c=nn.Conv2d(22, 8, 1),
    )  # fmt: skip
    channel_map = trace_channels(network, IMAGE)
    stem, a, b = 1, 2, 3
    assert channel_map.axes["c.weight"] == TensorAxes((4,), (stem, a, b, stem))
    assert channel_map.axes["norm.running_var"] == TensorAxes((stem, a, b, stem))
    assert [space.size for space in channel_map.spaces] == [3, 8, 4, 2, 8, 5]
    assert [[passage.operation for passage in space.passages] for space in channel_map.spaces[1:4]] == [
        ["batch_norm", "relu"], ["relu", "batch_norm", "relu"], ["batch_norm", "relu"],
    ]  # fmt: skip


def test_a_flattened_concatenation_is_read_part_by_part() -> None:
    network = Functional(
        lambda n, x: n.head(torch.cat([n.a(x), x], 1).flatten(1)), a=nn.Conv2d(3, 4, 1), head=nn.Linear(7 * 64, 5)
    )
    channel_map = trace_channels(network, IMAGE)
    assert channel_map.axes["head.weight"] == TensorAxes((2,), (1, 0), 64)
    assert [space.role for space in channel_map.spaces] == ["input", "hidden", "output"]


def test_concatenated_results_are_the_outputs_part_by_part() -> None:
    network = Functional(lambda n, x: torch.cat((n.a(x), n.b(x)), 1), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 2, 1))
    assert [space.role for space in trace_channels(network, IMAGE).spaces] == ["input", "output", "output"]


def test_sums_of_concatenations_join_them_part_by_part() -> None:
    network = with_head(
        lambda n, x: n.e(torch.cat([n.a(x), n.b(x)], 1) + torch.cat([n.c(x), n.d(x)], 1)),
        a=nn.Conv2d(8, 4, 1), b=nn.Conv2d(8, 2, 1), c=nn.Conv2d(8, 4, 1), d=nn.Conv2d(8, 2, 1), e=nn.Conv2d(6, 8, 1),
    )  # fmt: skip
    axes = trace_channels(network, IMAGE).axes
    assert axes["e.weight"].in_spaces == (2, 3)
    assert [axes[f"{name}.weight"].out_spaces for name in "abcd"] == [(2,), (3,), (2,), (3,)]


def test_a_layer_that_is_added_to_a_concatenation_writes_its_parts() -> None:
    """As in Inception-ResNet: x + f(x) with x concatenated."""

    def forward(n: Any, x: Tensor) -> Tensor:
        x = torch.cat([n.a(x), n.b(x)], 1)
        return n.d(x + n.c(F.relu(x)))

    network = with_head(forward, a=nn.Conv2d(8, 4, 1), b=nn.Conv2d(8, 2, 1), c=nn.Conv2d(6, 6, 1), d=nn.Conv2d(6, 8, 1))
    channel_map = trace_channels(network, IMAGE)
    assert channel_map.axes["c.weight"] == TensorAxes((2, 3), (2, 3))
    assert channel_map.axes["c.bias"] == TensorAxes((2, 3))
    assert [space.size for space in channel_map.spaces] == [3, 8, 4, 2, 8, 5]
    assert len(channel_map.spaces[2].origins) == 2


def test_grouped_convolutions_of_concatenations_write_as_many_parts() -> None:
    network = with_head(
        lambda n, x: n.c(n.grouped(torch.cat([n.a(x), n.b(x), n.b(F.relu(x))], 1))),
        a=nn.Conv2d(8, 6, 1), b=nn.Conv2d(8, 2, 1), grouped=nn.Conv2d(10, 15, 3, groups=5), c=nn.Conv2d(15, 8, 1),
    )  # fmt: skip
    channel_map = trace_channels(network, IMAGE)
    assert channel_map.axes["grouped.weight"] == TensorAxes((4, 5, 6), (2, 3, 3), groups=5)
    assert [(s.size, s.blocks, s.block_family) for s in channel_map.spaces] == [
        (3, 1, None), (8, 1, None), (6, 3, 0), (2, 1, 1), (9, 3, 0), (3, 1, 1), (3, 1, 1), (8, 1, None), (5, 1, None),
    ]  # fmt: skip


@pytest.mark.parametrize("architecture", ["densenet121", "googlenet", "squeezenet1_0"])
def test_known_networks_of_concatenations_are_mapped(architecture: str) -> None:
    options = {"aux_logits": False, "init_weights": False} if architecture == "googlenet" else {}
    with torch.device("meta"):
        network = getattr(models, architecture)(weights=None, num_classes=10, **options)
    channel_map = trace_channels(network, (3, 64, 64))
    assert channel_map.axes.keys() == network.state_dict().keys()
    sizes = [space.size for space in channel_map.spaces]
    for name, tensor in network.state_dict().items():
        axes = channel_map.axes[name]
        assert sum(sizes[space] for space in axes.out_spaces) == (tensor.shape[0] if tensor.ndim else 0)
        assert tensor.ndim < 2 or sum(sizes[space] for space in axes.in_spaces) == tensor.shape[1]
    parts = Counter(len(axes.in_spaces) for axes in channel_map.axes.values())
    if architecture == "densenet121":  # Table 1 of Huang et al. 2017: 6, 12, 24 and 16 layers that add 32 channels each
        assert max(parts) == 24 + 1
        assert Counter(sizes)[32] == 6 + 12 + 24 + 16
    else:
        assert max(parts) == {"googlenet": 4, "squeezenet1_0": 2}[architecture]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_spaces_are_those_of_single_channels(data: st.DataObject) -> None:
    """Brute force: channels that any sum makes the same are one class, and spaces are the same where all of theirs are."""
    widths = data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=5))
    solver, starts = SpaceSolver(), [sum(widths[:index]) for index in range(len(widths))]
    for index, width in enumerate(widths):
        solver.add(width, f"layer {index}")
        solver.declare(str(index), TensorAxes((index,)))
    classes = DisjointSet(range(sum(widths)))
    sequences = st.lists(st.integers(0, len(widths) - 1), min_size=1, max_size=3).map(tuple)
    for one, other in data.draw(st.lists(st.tuples(sequences, sequences), max_size=6)):
        channels = [[starts[space] + at for space in side for at in range(widths[space])] for side in (one, other)]
        if len(channels[0]) == len(channels[1]):
            solver.join(one, other)
            for pair in zip(*channels, strict=True):
                classes.merge(*pair)
    channel_map = solver.solve((0,), (len(widths) - 1,))
    found: dict[tuple[int, int], set[int]] = {}
    for index in range(len(widths)):
        channel = starts[index]
        for space in channel_map.axes[str(index)].out_spaces:
            for place in range(channel_map.spaces[space].size):
                found.setdefault((space, place), set()).add(channel)
                channel += 1
    assert sorted(map(sorted, found.values())) == sorted(map(sorted, classes.subsets()))
