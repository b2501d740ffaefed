"""Gradient matching for all trials of a cell: one call, as many at once as a width that follows from the problem's size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attacks.engine.candidates import Layout
from attacks.engine.evaluation import (
    Evaluator,
    Problem,
    chunk_width,
    compiled_evaluator,
    eager_evaluator,
    worth_compiling,
)
from attacks.engine.gradients import CandidateUpdate, Gradients, select_trials, trial_count
from attacks.engine.matches import Matches
from attacks.engine.minimise import Evaluation, Step, minimise
from attacks.engine.objectives import Objective, has_signal
from attacks.engine.optimisers import Optimiser, Projection
from attacks.engine.priors import Constraint, Prior
from federation.errors import UsageError
from federation.normalisation import Normalisation

Progress = Callable[[int, int], None]
"""(trial-evaluations done, trial-evaluations in the budget)."""

Trace = Callable[[int, Tensor, Tensor, Tensor], None]
"""(evaluations so far, indices of the trials evaluated [n], their objectives [n], their images in [0, 1] there
[n, m, C, H, W])."""


def match_gradients(
    update: CandidateUpdate,
    target: Gradients,
    *,
    shape: tuple[int, int, int, int],
    classes: int,
    normalisation: Normalisation,
    objective: Objective,
    optimiser: Optimiser,
    evaluations: int,
    generator: torch.Generator,
    labels: Tensor | None = None,
    priors: Sequence[Prior] = (),
    constraint: Constraint | None = None,
    width: int | None = None,
    compiled: bool | None = None,
    progress: Progress | None = None,
    trace: Trace | None = None,
) -> Matches:
    """Find, for every trial, images (and labels) whose simulated update matches the observed one.

    Candidates live in the network's normalised input space and start at N(0, 1) there, drawn trial by trial.

    Args:
        update: the client's training as the attacker simulates it, such as `SingleGradient`.
        target: the observed updates, name -> [T, *parameter shape]; their device and dtype are used throughout.
        shape: (m, C, H, W) of a trial's batch.
        classes: K.
        normalisation: of the client's pixels.
        objective: distance of updates.
        optimiser: how to minimise it.
        evaluations: budget of gradient evaluations a trial, >= 1.
        generator: source of the starting points.
        labels: soft or one-hot labels [T, m, K]; where None, label logits are optimised with the images.
        priors: penalties on the images.
        constraint: where the images must stay, for optimisers that can project.
        width: trials evaluated at once, by `chunk_width` where None; the next takes the place of one that ended.
        compiled: whether to compile; by `worth_compiling` where None.
        progress: told the trial-evaluations done after each step.
        trace: told objectives and images after each step, once for all trials that have spent equally many evaluations.
            Where trials outnumber the width, those that wait begin at evaluation 1 when a place becomes free.

    Raises:
        UsageError: for shapes, counts or options that do not fit together.
    """
    trials = trial_count(target)
    layout = Layout(shape, classes, joint_labels=labels is None)
    _check(trials, layout, normalisation, labels, evaluations)
    like = next(iter(target.values()))
    start = layout.draw(trials, generator).to(like)
    labels = None if labels is None else labels.to(like)
    result = _prior_guess(layout, normalisation, like, labels, has_signal(target))
    (pending,) = result.signal.nonzero(as_tuple=True)
    if not len(pending):
        return result

    width = chunk_width(len(pending), layout, target, like.device) if width is None else width
    problem = Problem(layout, update, objective, priors)
    if worth_compiling(update, len(pending), evaluations) if compiled is None else compiled:
        evaluator = compiled_evaluator(problem, min(width, len(pending)))
    else:
        evaluator = eager_evaluator(problem)
    report = _Report(pending, layout, normalisation, evaluations, progress, trace)
    best = minimise(
        optimiser,
        start[pending],
        _evaluations(evaluator, select_trials(target, pending), None if labels is None else labels[pending]),
        evaluations,
        width=width,
        projection=None if constraint is None else _on_points(constraint, layout),
        report=report.step if progress or trace else None,
    )
    result.images[pending] = normalisation.invert(layout.images(best.point))
    if labels is None:
        result.labels[pending] = layout.labels(best.point)
    result.objective[pending] = best.value
    result.evaluations[pending] = best.evaluations
    result.failed[pending] = best.failed
    return result


def _check(trials: int, layout: Layout, normalisation: Normalisation, labels: Tensor | None, evaluations: int) -> None:
    if evaluations < 1:
        raise UsageError(f"the budget is {evaluations} evaluations; at least 1 is needed")
    expected = (trials, layout.shape[0], layout.classes)
    if labels is not None and tuple(labels.shape) != expected:
        raise UsageError(f"labels are {tuple(labels.shape)}; expected {expected}")
    if len(normalisation.mean) != layout.shape[1]:
        raise UsageError(f"images have {layout.shape[1]} channels, the normalisation {len(normalisation.mean)}")


def _prior_guess(
    layout: Layout, normalisation: Normalisation, like: Tensor, labels: Tensor | None, signal: Tensor
) -> Matches:
    """What is returned of a trial that nothing was tried for."""
    trials = len(signal)
    if labels is None:
        labels = like.new_full((trials, layout.shape[0], layout.classes), 1 / layout.classes)
    return Matches(
        images=normalisation.invert(like.new_zeros(trials, *layout.shape)),
        labels=labels.clone(),
        objective=like.new_full((trials,), math.inf),
        evaluations=torch.zeros(trials, dtype=torch.long, device=like.device),
        failed=torch.zeros_like(signal),
        signal=signal,
    )


def _on_points(constraint: Constraint, layout: Layout) -> Projection:
    """The constraint on images as one on points."""
    return lambda point: layout.with_images(point, constraint(layout.images(point)))


def _evaluations(evaluator: Evaluator, target: Gradients, labels: Tensor | None) -> Callable[[Tensor], Evaluation]:
    """For some trials of a chunk, the evaluation with their targets and labels."""

    def evaluation_of(trials: Tensor) -> Evaluation:
        theirs = select_trials(target, trials)
        given = None if labels is None else labels[trials]
        return lambda point: evaluator(point, theirs, given)

    return evaluation_of


class _Report:
    """Passes the steps of the trials in `pending` on to the caller's progress and trace."""

    def __init__(
        self,
        pending: Tensor,
        layout: Layout,
        normalisation: Normalisation,
        evaluations: int,
        progress: Progress | None,
        trace: Trace | None,
    ) -> None:
        self._pending, self._layout, self._normalisation = pending, layout, normalisation
        self._evaluations, self._progress, self._trace = evaluations, progress, trace
        self._done = torch.zeros_like(pending)

    def step(self, step: Step) -> None:
        if self._trace is not None:
            images = self._normalisation.invert(self._layout.images(step.point))
            for evaluations in step.evaluations.unique().tolist():
                chosen = step.evaluations == evaluations
                self._trace(evaluations, self._pending[step.trials[chosen]], step.value[chosen], images[chosen])
        if self._progress is not None:
            # a trial that ended before its budget was spent is through all the same
            self._done[step.trials] = step.evaluations.masked_fill(step.ended, self._evaluations)
            self._progress(int(self._done.sum()), len(self._pending) * self._evaluations)
