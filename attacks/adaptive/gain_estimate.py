"""Gains of channel keys by nonlinear least squares on the rescaling equations, with an honest error.

The equations are solved jointly in x = log e, by Levenberg-Marquardt from x = 0. (Layer by layer they are linear, but
then each layer has to be determined by its own equations alone: some LeNet-5 layers need 40 updates, where all
equations together need two.) What the scheme publishes of the gains is the prior: log e has mean 0 and the variance of
their distribution. Channels that no update moves keep gain 1 and the prior's error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from attacks.adaptive.block_cholesky import BlockCholesky
from attacks.adaptive.rescaling import RescalingEquations

MOST_UNKNOWNS = 20_000
"""Channels up to which the equations are solved; time grows with the cube of those of neighbouring layers."""

_FIRST_NOISE = 0.1
_LEAST_NOISE = 1e-7
_PRIOR_EQUATIONS = 4.0
_FEWEST_FREE = 0.1
_SETTLED = 0.2
_PASSES = 8
_ITERATIONS = 60
_NEAR = 0.01
"""Standard deviations from the minimum at which it is reached."""
_STUCK = 1e12


@dataclass(frozen=True)
class GainEstimate:
    """Gains by channel space, and how sure they are.

    Attributes:
        gains: float64 [channels], d of each place, by the index of the space.
        error: expected error of log d: its standard deviation were the errors of all updates the same, averaged over a
            space's channels as far as the updates moved them, of the worst space. Where the equations are no more than
            what they determine, so that nothing checks them, what the scheme publishes is all that is sure.
        residual: what is left of a channel's equations at the solution over the magnitude of their terms, both in the
            root mean square, of the median channel: 0 where every update obeys them.
        updates: how many updates were used.
    """

    gains: Mapping[int, Tensor]
    error: float
    residual: float
    updates: int


def estimate_gains(equations: RescalingEquations, gain_range: float, factors: int = 1) -> GainEstimate:
    """Solve for the gains.

    Args:
        equations: at least one unknown.
        gain_range: s > 1; under the public scheme d is a product of gains that are log-uniform on [1/s, s].
        factors: how many.
    """
    spread, bound = math.log(gain_range) * math.sqrt(factors / 3), math.log(gain_range) * factors
    logs = torch.zeros(len(equations.unknown), dtype=torch.float64)
    prior = 1 / (2 * spread) ** 2
    noise = torch.full(equations.equations.shape, _FIRST_NOISE, dtype=torch.float64)
    for _ in range(_PASSES):
        scale, rounding = _scale(equations, logs), equations.rounding(logs)
        logs, variances = _minimised(equations, logs, ((noise * scale).square() + rounding).sqrt(), prior)
        flows, sizes = equations.flows(logs)
        saying = (flows != 0).sum(0)
        free = 1 - (len(logs) - prior * float(variances.sum())) / max(int(saying.sum()), 1)
        previous, noise = noise, _noise(flows / scale, saying, free)
        if float((noise / previous).log().abs().mean()) < _SETTLED:
            break
    errors = (variances * len(equations)).sqrt() / 2
    if free < _FEWEST_FREE:
        errors = torch.full_like(errors, spread)  # the equations leave nothing over by which they could be checked
    return GainEstimate(
        gains={space: (values / 2).clamp(-bound, bound).exp() for space, values in equations.by_space(logs).items()},
        error=_error(equations, errors),
        residual=_residual(flows, sizes),
        updates=len(equations),
    )


def _noise(relative: Tensor, saying: Tensor, free: float) -> Tensor:
    """Noise of each channel's equations [E], relative to their scale: its own as far as there are equations to tell.

    Args:
        relative: what is left of the equations, [T, E].
        saying: how many of a channel's equations say anything, [E].
        free: share of all equations that are not used up by determining gains.
    """
    squares = relative.square().sum(0) / max(free, _FEWEST_FREE)
    own = squares[saying > 0] / saying[saying > 0]
    usual = own.median() if len(own) else torch.tensor(_FIRST_NOISE**2)
    return ((squares + _PRIOR_EQUATIONS * usual) / (saying + _PRIOR_EQUATIONS)).sqrt().clamp_min(_LEAST_NOISE)


class _Minimum(NamedTuple):
    logs: Tensor
    variances: Tensor


def _minimised(equations: RescalingEquations, logs: Tensor, deviations: Tensor, prior: float) -> _Minimum:
    """The minimum [U] of the squared flows over their variances plus prior * logs^2, and each one's variance [U]."""
    damping = 1e-3
    flows = equations.flows(logs)[0] / deviations
    cost = _cost(flows, logs, prior)
    slope, curvature = equations.normal(flows, logs, deviations, prior)
    for _ in range(_ITERATIONS):
        step = -BlockCholesky(curvature, damping * curvature.diagonal()).solve(slope)
        if damping < 1 and float(-slope @ step) < _NEAR**2:
            break
        tried_flows = equations.flows(logs + step)[0] / deviations
        tried_cost = _cost(tried_flows, logs + step, prior)
        if not tried_cost < cost:  # a value that is not finite is no improvement either
            if damping > _STUCK:
                break
            damping *= 8
            continue
        logs, flows, cost, damping = logs + step, tried_flows, tried_cost, damping / 8
        slope, curvature = equations.normal(flows, logs, deviations, prior)
    return _Minimum(logs, BlockCholesky(curvature, torch.zeros_like(logs)).inverse_diagonal())


def _cost(flows: Tensor, logs: Tensor, prior: float) -> float:
    return float(flows.square().sum() + prior * logs.square().sum())


def _scale(equations: RescalingEquations, logs: Tensor) -> Tensor:
    """What each channel's equations [E] are divided by: their mean magnitude; 1 where nothing moves."""
    size = equations.flows(logs)[1].mean(0)
    return torch.where(size > 0, size, 1.0)


def _residual(flows: Tensor, sizes: Tensor) -> float:
    left, size = flows.norm(dim=0), sizes.norm(dim=0)
    return float((left[size > 0] / size[size > 0]).median()) if bool(size.any()) else 0.0


def _error(equations: RescalingEquations, deviations: Tensor) -> float:
    """The largest over spaces of the mean deviation, weighted by how much the updates moved each channel."""
    moved, by_space = equations.by_space(equations.moved()), equations.by_space(deviations)
    weighted = [
        float((values * moved[space]).sum() / moved[space].sum())
        for space, values in by_space.items()
        if bool(moved[space].any())
    ]
    return max(weighted, default=float(deviations.mean()))
