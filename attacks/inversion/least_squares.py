"""Least squares by conjugate gradients on the normal equations (CGLS), for T systems together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.inversion.equations import LayerEquations, Sides

_LOOK = 8
"""Iterations from one look at which systems have converged to the next."""


@dataclass(frozen=True)
class Solutions:
    """Attributes:
    maps: [T, C, H, W].
    residual: norm of what is left of the right hand sides over their own, [T]; 1 where these are 0.
    iterations: that each system took, [T].
    """

    maps: Tensor
    residual: Tensor
    iterations: Tensor

    @classmethod
    def none_yet(cls, maps: Tensor) -> Solutions:
        """Before anything was tried."""
        return cls(
            maps, torch.ones_like(maps[:, 0, 0, 0]), torch.zeros(len(maps), dtype=torch.long, device=maps.device)
        )

    def followed_by(self, later: Solutions) -> Solutions:
        """What was found later, with the iterations of both."""
        return Solutions(later.maps, later.residual, self.iterations + later.iterations)


def solve(equations: LayerEquations, start: Tensor, *, iterations: int, tolerance: float) -> Solutions:
    """Minimise the residual of each system from `start` [T, C, H, W] (Bjorck 1996, algorithm 7.4.1, preconditioned).

    In single precision the method diverges once it has converged, so each system is frozen when the squared norm of its
    preconditioned normal residual has fallen to `tolerance` of the first; systems that are through leave the batch.
    """
    maps = start.clone()
    spent = torch.zeros(len(start), dtype=torch.long, device=start.device)
    trials = torch.arange(len(start), device=start.device)
    state = _State.begin(equations, start)
    for step in range(iterations):
        if step % _LOOK == 0:
            (kept,) = state.running(tolerance).nonzero(as_tuple=True)
            if not len(kept):
                break
            if 4 * len(kept) <= 3 * len(trials):
                maps[trials] = state.maps
                trials, state = trials[kept], state.select(kept)
        running = state.running(tolerance)
        spent[trials] += running
        state.advance(running)
    maps[trials] = state.maps
    left = equations.right.minus(equations.forward(maps), torch.ones_like(maps[:, 0, 0, 0]))
    whole = equations.right.squared()
    residual = torch.where(whole > 0, (left.squared() / whole).sqrt(), torch.ones_like(whole))
    return Solutions(maps, residual, spent)


@dataclass
class _State:
    """Where T systems stand: their solution, residual, search direction and squared preconditioned normal residual."""

    equations: LayerEquations
    maps: Tensor
    residual: Sides
    direction: Tensor
    normal: Tensor
    first: Tensor

    @classmethod
    def begin(cls, equations: LayerEquations, start: Tensor) -> _State:
        one = torch.ones_like(start[:, 0, 0, 0])
        residual = equations.right.minus(equations.forward(start), one)
        steepest = equations.adjoint(residual)
        direction = equations.preconditioned(steepest)
        normal = _inner(steepest, direction)
        return cls(equations, start, residual, direction, normal, normal)

    def running(self, tolerance: float) -> Tensor:
        """Which systems have not converged, bool [T]."""
        return self.normal > tolerance * self.first

    def advance(self, running: Tensor) -> None:
        """One iteration of the systems in `running`, bool [T]."""
        along = self.equations.forward(self.direction)
        step = self.normal / along.squared().clamp_min(torch.finfo(self.maps.dtype).tiny) * running
        self.maps = self.maps + step.view(-1, 1, 1, 1) * self.direction
        self.residual = self.residual.minus(along, step)
        steepest = self.equations.adjoint(self.residual)
        towards = self.equations.preconditioned(steepest)
        normal = _inner(steepest, towards)
        ratio = normal / self.normal.clamp_min(torch.finfo(self.maps.dtype).tiny)
        self.direction = towards + ratio.view(-1, 1, 1, 1) * self.direction
        self.normal = torch.where(running, normal, self.normal)

    def select(self, trials: Tensor) -> _State:
        """Of the systems with the given indices."""
        return _State(
            self.equations.select(trials),
            *(self.maps[trials], self.residual.select(trials), self.direction[trials]),
            *(self.normal[trials], self.first[trials]),
        )


def _inner(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).flatten(1).sum(1)
