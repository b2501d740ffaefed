"""Driving a search for T trials through its budget: counting evaluations, keeping each trial's best point."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.engine.optimisers import Search

Evaluation = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Points [n, D] of n trials -> their values [n] and gradients [n, D]."""

Report = Callable[[int, Tensor, Tensor, Tensor], None]
"""(evaluations so far, indices of the trials evaluated [n], their values [n], where they were evaluated [n, D])."""


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
    search: Search, evaluation_of: Callable[[Tensor], Evaluation], evaluations: int, report: Report | None = None
) -> Minima:
    """Run `search` until every trial stopped or spent `evaluations`.

    Args:
        search: a search that was just started.
        evaluation_of: given the indices [n] of the trials still in the batch, the function that evaluates them. Once half
            of a batch has stopped, the batch is narrowed to the rest.
        evaluations: budget of each trial.
        report: told points and values after each step.
    """
    trials = torch.arange(len(search.point), device=search.point.device)
    point = search.point.clone()
    value = point.new_full((len(trials),), math.inf)
    spent = torch.zeros_like(trials)
    failed = torch.zeros_like(search.failed)
    evaluate = evaluation_of(trials)
    for step in range(1, evaluations + 1):
        here = search.point
        running = ~search.stopped
        found, gradient = evaluate(here)
        better = running & found.isfinite() & (found < value[trials])
        point[trials] = torch.where(better[:, None], here, point[trials])
        value[trials] = torch.where(better, found, value[trials])
        spent[trials] += running
        search.advance(found, gradient)
        failed[trials] = search.failed
        if report is not None:
            report(step, trials[running], found[running], here[running])
        left = int((~search.stopped).sum())
        if not left:
            break
        if 2 * left <= len(trials):
            (kept,) = (~search.stopped).nonzero(as_tuple=True)
            search.keep(kept)
            trials = trials[kept]
            evaluate = evaluation_of(trials)
    return Minima(point, value, spent, failed)
