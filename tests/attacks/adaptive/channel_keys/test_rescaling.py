"""The rescaling identity holds for the networks that it is claimed for, and shows the gains of keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attacks.adaptive.block_cholesky import BlockCholesky
from attacks.adaptive.rescaling import KeyedUpdate, RescalingEquations, conserves
from federation.network import Network
from federation.weights import Weights, weights_of


def hidden(network: Network) -> frozenset[int]:
    return frozenset(space.index for space in network.channels.spaces if space.role == "hidden")


def update(tools: Any, digits: Any, network: Network, images: slice, weights: Weights | None = None) -> KeyedUpdate:
    before = weights or weights_of(network.build())
    return KeyedUpdate(before, tools.step(network, before, digits.normalised[images], digits.labels[images]))


def violation(equations: RescalingEquations, logs: Tensor) -> float:
    flows, sizes = equations.flows(logs)
    return float(flows.norm() / sizes.norm())


@pytest.mark.parametrize("name", ["lenet5", "residual", "depthwise", "residual-norm", "concatenated"])
@pytest.mark.parametrize("images", [slice(0, 1), slice(0, 7)], ids=["one image", "a batch"])
def test_every_update_obeys_it(tools: Any, digits: Any, name: str, images: slice) -> None:
    network = tools.network(name)
    equations = RescalingEquations(network, [update(tools, digits, network, images)], hidden(network))
    assert len(equations.equations) == len(equations.unknown)
    # batch norm's epsilon is 1e-5, against variances of some 0.1
    assert violation(equations, torch.zeros(len(equations.unknown), dtype=torch.float64)) < 1e-4


def test_not_where_gains_do_not_pass(tools: Any) -> None:
    spaces = tools.network("residual-tanh").channels.spaces
    assert not any(map(conserves, spaces))
    assert [space.role for space in tools.network("lenet5").channels.spaces if conserves(space)] == ["hidden"] * 4


@pytest.mark.parametrize("name", ["lenet5", "residual", "residual-norm", "concatenated"])
def test_under_keys_it_holds_at_the_true_gains_alone(tools: Any, play: Callable[..., Any], name: str) -> None:
    network = tools.network(name)
    keyed = play(tools.keynet(), name, rounds=2)
    views = [observation.view for observation in keyed.observations]
    updates = [KeyedUpdate(view.before, after) for view in views for after in view.after.values()]
    equations = RescalingEquations(network, updates, hidden(network))
    by_space = [torch.from_numpy(key.gains).log() * 2 for key in keyed.keys.monomial]
    true = torch.cat([by_space[index] for index in equations.spaces])
    assert violation(equations, true) < 1e-4
    assert violation(equations, torch.zeros_like(true)) > 0.01
    assert violation(equations, -true) > 0.01


def test_derivatives_are_those_of_the_flows(tools: Any, digits: Any) -> None:
    network = tools.network("residual")
    updates = [update(tools, digits, network, slice(index, index + 1)) for index in range(2)]
    equations = RescalingEquations(network, updates, hidden(network))
    point = torch.randn(len(equations.unknown), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for number in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda logs, n=number: equations.flows(logs)[0][n], point)
        torch.testing.assert_close(equations.derivatives(point, number), jacobian)


def test_a_layer_that_reads_what_it_writes_says_nothing_of_itself(tools: Any, digits: Any) -> None:
    network = tools.network("residual")
    one = update(tools, digits, network, slice(0, 1))
    spaces = {name: axes for name, axes in network.channels.axes.items() if axes.in_spaces}
    assert spaces["conv1.weight"].in_spaces == spaces["conv2.weight"].out_spaces, "a residual sum joins them"
    equations = RescalingEquations(network, [one], hidden(network))
    values = torch.arange(len(equations.unknown), dtype=torch.float64)
    assert {space: len(found) for space, found in equations.by_space(values).items()} == {1: 8, 2: 12}
    assert torch.equal(torch.cat(list(equations.by_space(values).values())), values)


def test_several_steps_obey_it_to_second_order(tools: Any, digits: Any) -> None:
    network = tools.network("lenet5")
    before = weights_of(network.build())

    def violated(rate: float) -> float:
        after = before
        for index in range(4):
            batch = slice(10 * index, 10 * index + 10)
            after = tools.step(network, after, digits.normalised[batch], digits.labels[batch], rate=rate)
        equations = RescalingEquations(network, [KeyedUpdate(before, after)], hidden(network))
        return violation(equations, torch.zeros(len(equations.unknown), dtype=torch.float64))

    assert violated(0.08) < 0.02
    assert violated(0.02) == pytest.approx(violated(0.08) / 4, rel=0.2)


@pytest.mark.parametrize("name", ["lenet5", "residual-norm", "depthwise", "concatenated"])
def test_normal_equations_by_blocks_are_the_dense_ones(tools: Any, digits: Any, name: str) -> None:
    network = tools.network(name)
    updates = [update(tools, digits, network, slice(index, index + 1)) for index in range(3)]
    equations = RescalingEquations(network, updates, hidden(network))
    generator = torch.Generator().manual_seed(0)
    point = torch.randn(len(equations.unknown), generator=generator, dtype=torch.float64)
    deviations = 0.1 + torch.rand(len(equations.equations), generator=generator, dtype=torch.float64)
    flows = equations.flows(point)[0] / deviations
    slope, curvature = equations.normal(flows, point, deviations, 0.3)
    jacobian = torch.cat([equations.derivatives(point, number) / deviations[:, None] for number in range(3)])
    torch.testing.assert_close(slope, 0.3 * point + jacobian.T @ flows.flatten())
    dense = jacobian.T @ jacobian + 0.3 * torch.eye(len(point), dtype=torch.float64)
    torch.testing.assert_close(curvature.dense(), dense)
    factor = BlockCholesky(curvature, torch.zeros_like(point))
    torch.testing.assert_close(factor.solve(slope), torch.linalg.solve(dense, slope), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(factor.inverse_diagonal(), torch.linalg.inv(dense).diagonal(), rtol=1e-6, atol=1e-12)
