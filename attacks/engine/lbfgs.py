"""Limited-memory BFGS for T independent functions at once, each with its own history and line search."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.engine.curvature import CurvatureMemory
from attacks.engine.optimisers import Projection, keep_trials
from federation.errors import UsageError


@dataclass(frozen=True)
class LBFGS:
    """L-BFGS with a weak Wolfe line search by bracketing (Nocedal and Wright, "Numerical Optimization", 7.2 and 3.1).

    Args:
        history: how many pairs of steps and gradient changes each trial remembers (2 * history * D values a trial).
        decrease: sufficient-decrease constant c1.
        curvature: curvature constant c2.
        attempts: evaluations of one line search before it gives up. A trial whose search gives up restarts from
            steepest descent, and stops when that gives up as well. (It also stops where an accepted step gains no more
            than the value's rounding.)
        tolerance: a trial stops once its value is at most this share of its first value (an objective whose minimum is
            zero, such as a distance of gradients; 0 switches it off).
    """

    history: int = 100
    decrease: float = 1e-4
    curvature: float = 0.9
    attempts: int = 12
    tolerance: float = 1e-9

    def start(self, point: Tensor, evaluations: int, projection: Projection | None = None) -> LBFGSSearch:
        """Begin at `point` [T, D]. The number of evaluations changes nothing.

        Raises:
            UsageError: with a projection; the line search knows no bounds.
        """
        if projection is not None:
            raise UsageError("L-BFGS searches without bounds: leave the constraint out, or use SignedAdam")
        return LBFGSSearch(self, point)


class LBFGSSearch:
    """The state of T searches. See `optimisers.Search`.

    Each trial stands at `_base` and looks along `_direction`; `point` is the base plus `_step` times the direction.
    A step is too long without sufficient decrease, and too short where the slope is still steep; `_shortest` and
    `_longest` bracket the acceptable ones.
    """

    def __init__(self, options: LBFGS, point: Tensor) -> None:
        trials, length = point.shape
        self._options = options
        self._begun = torch.zeros(trials, dtype=torch.bool, device=point.device)
        self.point = point
        self.stopped = torch.zeros(trials, dtype=torch.bool, device=point.device)
        self.failed = self.stopped.clone()
        self._base, self._gradient, self._direction = point, torch.zeros_like(point), torch.zeros_like(point)
        self._value, self._goal, self._slope = (point.new_zeros(trials) for _ in range(3))
        self._step, self._shortest = point.new_zeros(trials), point.new_zeros(trials)
        self._longest = point.new_full((trials,), math.inf)
        self._attempt = torch.zeros(trials, dtype=torch.long, device=point.device)
        self._restarted = self.stopped.clone()
        self._memory = CurvatureMemory(trials, length, options.history, point)

    def advance(self, value: Tensor, gradient: Tensor) -> None:
        """Accept or shorten or lengthen each trial's step; those that accept choose their next direction."""
        finite = value.isfinite() & gradient.isfinite().all(1)
        first = ~self._begun
        step = self.point - self._base
        accepted, given_up = self._search_line(value, gradient, finite)
        if first.any():
            self._begun = self._begun | first
            self.failed = self.failed | (first & ~finite)
            self._goal = torch.where(first, self._options.tolerance * value, self._goal)
            self._value = torch.where(first, value, self._value)
            self._gradient = torch.where(first[:, None], gradient, self._gradient)
        self._turn(accepted | given_up | first, given_up | first, accepted, step)
        flat = self._slope >= 0
        self.stopped = self.stopped | self.failed | flat | (self._value <= self._goal)
        ahead = self._base + self._step[:, None] * self._direction
        self.point = torch.where(self.stopped[:, None], self._base, ahead)

    def keep(self, trials: Tensor) -> None:
        """See `Search.keep`."""
        keep_trials(self, trials)
        self._memory.keep(trials)

    def replace(self, trials: Tensor, point: Tensor) -> None:
        """See `Search.replace`."""
        self.point = self.point.index_copy(0, trials, point)
        self._base = self._base.index_copy(0, trials, point)
        self.stopped, self.failed, self._begun = (
            flags.index_fill(0, trials, False) for flags in (self.stopped, self.failed, self._begun)
        )

    def _search_line(self, value: Tensor, gradient: Tensor, finite: Tensor) -> tuple[Tensor, Tensor]:
        """Judge the step of every trial that has begun: which accept it, and which give their search up."""
        options, searching = self._options, self._begun & ~self.stopped
        self._attempt = self._attempt + 1
        last = self._attempt >= options.attempts
        lower = finite & (value <= self._value + options.decrease * self._step * self._slope)
        level = (gradient * self._direction).sum(1) >= options.curvature * self._slope
        accepted = lower & (level | last) & searching
        given_up = last & ~accepted & searching

        self._base = torch.where(accepted[:, None], self.point, self._base)
        self._gradient = torch.where(accepted[:, None], gradient, self._gradient)

        shorter = self._shortened(value)
        self._longest = torch.where(lower, self._longest, self._step)
        self._shortest = torch.where(lower, self._step, self._shortest)
        middle = (self._shortest + self._longest) / 2
        longer = torch.where(self._longest.isinf(), 2 * self._step, middle)
        self._step = torch.where(lower, longer, torch.where(self._shortest > 0, middle, shorter))

        gain = self._value - value
        stalled = accepted & (gain <= torch.finfo(value.dtype).eps * self._value.abs())
        self._value = torch.where(accepted, value, self._value)
        self.stopped = self.stopped | stalled | (given_up & self._restarted)
        return accepted, given_up

    def _shortened(self, value: Tensor) -> Tensor:
        """The minimiser of the parabola through the value and slope at the base and the value here, within [0.1, 0.5]
        of the step."""
        excess = value - self._value - self._slope * self._step
        minimiser = -self._slope * self._step.square() / (2 * excess)
        tenth = 0.1 * self._step
        return torch.where(minimiser.isfinite(), minimiser, tenth).clamp(tenth, 0.5 * self._step)

    def _turn(self, turning: Tensor, restart: Tensor, accepted: Tensor, step: Tensor) -> None:
        """Give the trials in `turning` a new direction and a fresh bracket.

        Those in `restart` forget their history; those in `accepted` remember their step and what it told.
        """
        if not turning.any():
            return
        direction = -self._memory.follow(accepted, step, self._gradient)
        self._memory.forget(restart)
        downhill = (direction * self._gradient).sum(1) < 0
        steepest = restart | ~downhill
        direction = torch.where(steepest[:, None], -self._gradient, direction)
        self._direction = torch.where(turning[:, None], direction, self._direction)
        self._slope = (self._direction * self._gradient).sum(1)
        # the first step along a bare gradient has no natural length: at most 1 in the sum of absolute changes
        first = (1 / self._gradient.abs().sum(1)).clamp(max=1)
        self._step = torch.where(turning, torch.where(steepest, first, torch.ones_like(first)), self._step)
        self._shortest = self._shortest.masked_fill(turning, 0)
        self._longest = self._longest.masked_fill(turning, math.inf)
        self._attempt = self._attempt.masked_fill(turning, 0)
        self._restarted = torch.where(turning, restart, self._restarted)
