"""Minimising T independent functions together, one batched evaluation a step.

An optimiser is a configuration; `start` makes a search. A search says where to evaluate next (`point`), is told what was
found there (`advance`), and never evaluates anything itself: whoever drives it counts every evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Projection = Callable[[Tensor], Tensor]
"""Points [T, D] -> the nearest allowed points [T, D]."""


class Search(Protocol):
    """T minimisations under way.

    Attributes:
        point: where each trial wants to be evaluated next, [T, D].
        stopped: trials that have nothing left to evaluate, bool [T]: converged, stuck or failed.
        failed: trials that met a value or gradient that was not finite and could not step around it, bool [T].
    """

    point: Tensor
    stopped: Tensor
    failed: Tensor

    def advance(self, value: Tensor, gradient: Tensor) -> None:
        """Take in the values [T] and gradients [T, D] at `point`, and move `point` on. Stopped trials stay."""
        ...

    def keep(self, trials: Tensor) -> None:
        """Go on with the trials of the given indices [n] alone."""
        ...

    def replace(self, trials: Tensor, point: Tensor) -> None:
        """Give the places of the trials of the given indices [n] to new ones, which begin at `point` [n, D]."""
        ...


class Optimiser(Protocol):
    """A way to minimise, fully configured."""

    def start(self, point: Tensor, evaluations: int, projection: Projection | None = None) -> Search:
        """Begin at `point` [T, D] with up to `evaluations` >= 1 steps a trial; raises UsageError where it cannot project."""
        ...


def keep_trials(state: object, trials: Tensor) -> None:
    """Narrow every tensor attribute of `state`, each of leading size T, to the given trials [n]."""
    for name, value in list(vars(state).items()):
        if isinstance(value, Tensor):
            setattr(state, name, value[trials])


@dataclass(frozen=True)
class SignedAdam:
    """Adam on the sign of the gradient, with step decay (Geiping et al. 2020).

    Args:
        rate: first learning rate, in units of the variables.
        decay: factor on the rate at each milestone.
        milestones: where to decay, as fractions of the budget.
        betas: Adam's decay rates of the first and second moment.
    """

    rate: float = 0.1
    decay: float = 0.1
    milestones: tuple[float, ...] = (3 / 8, 5 / 8, 7 / 8)
    betas: tuple[float, float] = (0.9, 0.999)

    def start(self, point: Tensor, evaluations: int, projection: Projection | None = None) -> SignedAdamSearch:
        """Begin at `point` [T, D]; every later point is projected."""
        return SignedAdamSearch(self, point, evaluations, projection)


class SignedAdamSearch:
    """The state of T signed Adam runs. See `Search`."""

    def __init__(self, options: SignedAdam, point: Tensor, evaluations: int, projection: Projection | None) -> None:
        self.point = point
        self.stopped = torch.zeros(len(point), dtype=torch.bool, device=point.device)
        self.failed = self.stopped.clone()
        self._options = options
        self._projection = projection
        self._schedule = _schedule(options, evaluations, point)
        self._first = torch.zeros_like(point)
        self._second = torch.zeros_like(point)
        self._steps = torch.zeros(len(point), dtype=torch.long, device=point.device)

    def advance(self, value: Tensor, gradient: Tensor) -> None:
        """One Adam step on the gradient's sign."""
        # a sum shows what is not finite in a fifth of the time that looking at each value takes
        self.failed = self.failed | ~(value + gradient.sum(1)).isfinite()
        self.stopped = self.failed
        first_decay, second_decay = self._options.betas
        sign = gradient.sign()
        self._first.lerp_(sign, 1 - first_decay)
        self._second.lerp_(sign.square_(), 1 - second_decay)
        rate, correction = self._schedule[self._steps].unsqueeze(-1).unbind(1)
        deviation = (self._second / correction).sqrt_().add_(1e-8)
        moved = torch.addcdiv(self.point, self._first * rate, deviation, value=-1)
        if self._projection is not None:
            moved = self._projection(moved)
        self.point = torch.where(self.stopped[:, None], self.point, moved)
        # a trial that ended may be evaluated along with the others, its schedule is over
        self._steps = (self._steps + 1).clamp(max=len(self._schedule) - 1)

    def keep(self, trials: Tensor) -> None:
        """See `Search.keep`."""
        schedule = self._schedule
        keep_trials(self, trials)
        self._schedule = schedule

    def replace(self, trials: Tensor, point: Tensor) -> None:
        """See `Search.replace`."""
        self.point = self.point.index_copy(0, trials, point)
        self.stopped, self.failed = (flags.index_fill(0, trials, False) for flags in (self.stopped, self.failed))
        for state in (self._first, self._second, self._steps):
            state[trials] = 0


def _schedule(options: SignedAdam, evaluations: int, like: Tensor) -> Tensor:
    """Of each step, the rate over the first moment's correction, and the second moment's correction: [evaluations, 2]."""
    milestones = [int(fraction * evaluations) for fraction in options.milestones]
    first_decay, second_decay = options.betas
    rows = [
        (
            options.rate * options.decay ** sum(step >= mark for mark in milestones) / (1 - first_decay ** (step + 1)),
            1 - second_decay ** (step + 1),
        )
        for step in range(evaluations)
    ]
    return torch.tensor(rows, dtype=torch.float64).to(like)
