"""Driving a search for T trials through its budget: counting evaluations, keeping each trial's best point."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.engine.optimisers import Optimiser, Projection

Evaluation = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Points [n, D] of n trials -> their values [n] and gradients [n, D]."""


@dataclass(frozen=True)
class Step:
    """What one batched evaluation found, of the n trials that it was for.

    Attributes:
        trials: their indices, [n].
        evaluations: how many each has spent, this one included, [n].
        value: [n].
        point: where they were evaluated, [n, D].
        ended: those that were evaluated for the last time, bool [n].
    """

    trials: Tensor
    evaluations: Tensor
    value: Tensor
    point: Tensor
    ended: Tensor


Report = Callable[[Step], None]


@dataclass(frozen=True)
class Minima:
    """Attributes:
    point: the best point that each trial evaluated, [T, D]; its start where none was finite.
    value: the value there, [T]; infinite where none was finite.
    evaluations: how many each trial spent, [T].
    failed: see `Search.failed`, [T].
    """

    point: Tensor
    value: Tensor
    evaluations: Tensor
    failed: Tensor


def minimise(
    optimiser: Optimiser,
    start: Tensor,
    evaluation_of: Callable[[Tensor], Evaluation],
    evaluations: int,
    *,
    width: int | None = None,
    projection: Projection | None = None,
    report: Report | None = None,
) -> Minima:
    """Minimise until every trial stopped or spent `evaluations`.

    Up to `width` trials are evaluated together. One that ended makes room for the next that waits, so that nobody waits for
    the slowest of a batch; once none waits and half of the batch has ended, the batch is narrowed to the rest.

    Args:
        optimiser: how to minimise.
        start: where each trial begins, [T, D].
        evaluation_of: given the indices [n] of the trials in the batch, the function that evaluates them.
        evaluations: budget of each trial, >= 1.
        width: trials evaluated together; all where None.
        projection: onto the allowed points, for optimisers that can project.
        report: told of each step.
    """
    count = len(start)
    width = count if width is None else min(width, count)
    trials = torch.arange(width, device=start.device)
    begun = width
    search = optimiser.start(start[:width], evaluations, projection)
    best = start.clone()
    value = start.new_full((count,), math.inf)
    spent = torch.zeros(count, dtype=torch.long, device=start.device)
    failed = torch.zeros(count, dtype=torch.bool, device=start.device)
    ended = torch.zeros_like(search.stopped)
    evaluate = evaluation_of(trials)
    while True:
        here, running = search.point, ~ended
        found, gradient = evaluate(here)
        better = running & found.isfinite() & (found < value[trials])
        best[trials] = torch.where(better[:, None], here, best[trials])
        value[trials] = torch.where(better, found, value[trials])
        spent[trials] += running
        search.advance(found, gradient)
        failed[trials] = search.failed
        ended = search.stopped | (spent[trials] >= evaluations)
        if report is not None:
            report(Step(trials[running], spent[trials[running]], found[running], here[running], ended[running]))
        (free,) = ended.nonzero(as_tuple=True)
        if len(free) and begun < count:
            free = free[: count - begun]
            following = torch.arange(begun, begun + len(free), device=start.device)
            begun += len(free)
            search.replace(free, start[following])
            trials, ended = trials.index_copy(0, free, following), ended.index_fill(0, free, False)
            evaluate = evaluation_of(trials)
        left = int((~ended).sum())
        if not left:
            return Minima(best, value, spent, failed)
        if 2 * left <= len(trials):
            (kept,) = (~ended).nonzero(as_tuple=True)
            search.keep(kept)
            trials, ended = trials[kept], ended[kept]
            evaluate = evaluation_of(trials)
