"""One batched evaluation: the total objective of every trial and its gradient, eagerly or compiled."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.func import grad_and_value

from attacks.engine.candidates import Layout
from attacks.engine.chain import ChainGradient
from attacks.engine.gradients import CandidateUpdate, Gradients
from attacks.engine.objectives import Objective
from attacks.engine.priors import Prior

_log = logging.getLogger(__name__)

COMPILE_FROM = 500_000
"""Trial-evaluations from which compiling pays: it costs 15 to 60 s and saves 0.1 to 0.4 ms each on a CPU."""

_LARGEST_KEPT = 31 * 2**20

_CPU_VALUES, _CPU_TRIALS = 2**26, 32
_ACCELERATOR_VALUES, _ACCELERATOR_TRIALS = 2**32, 4096


@dataclass(frozen=True)
class Problem:
    """What is minimised: distance of the candidate's update to the target, plus the priors' penalties."""

    layout: Layout
    update: CandidateUpdate
    objective: Objective
    priors: Sequence[Prior] = ()

    def value(self, point: Tensor, target: Gradients, labels: Tensor | None) -> Tensor:
        """Totals [T] at points [T, D]; `labels` [T, m, K] where they are not part of the point."""
        images = self.layout.images(point)
        candidate = self.update(images, self.layout.labels(point) if labels is None else labels)
        total = self.objective(candidate, target)
        for prior in self.priors:
            total = total + prior(images)
        return total


class Evaluator(Protocol):
    """Values [T] and gradients [T, D] at points [T, D]."""

    def __call__(self, point: Tensor, target: Gradients, labels: Tensor | None) -> tuple[Tensor, Tensor]: ...


def eager_evaluator(problem: Problem) -> Evaluator:
    """Evaluate by plain autograd over `problem.value`. Trials do not mix, so the gradient of their sum is each one's own.

    (`torch.func.grad` would record the backward pass as well, at up to 1.2 times the time.)
    """

    _reuse_freed_memory()

    def evaluate(point: Tensor, target: Gradients, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        variable = point.detach().requires_grad_()
        value = problem.value(variable, target, labels)
        (gradient,) = torch.autograd.grad(value.sum(), variable)
        return value.detach(), gradient

    return evaluate


def compiled_evaluator(problem: Problem, width: int) -> Evaluator:
    """Evaluate through `torch.compile`, specialised to `width` trials; eagerly where nothing can be compiled here.

    Fewer trials are padded with copies of the first. The warning names the reason of a fallback; an error that is not the
    compiler's shows again in the eager evaluation.
    """

    def total(point: Tensor, target: dict[str, Tensor], labels: Tensor | None) -> tuple[Tensor, Tensor]:
        value = problem.value(point, target, labels)
        return value.sum(), value

    # the compiler keeps a few versions of a function, then silently runs it uncompiled: every problem is a new version
    torch.compiler.reset()
    # all of it in torch.func: autograd around a compiled inner gradient loses second derivatives (torch 2.13)
    compiled = torch.compile(grad_and_value(total, has_aux=True), dynamic=False)
    eager = eager_evaluator(problem)
    usable: bool | None = None

    def evaluate(point: Tensor, target: Gradients, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        nonlocal usable
        if usable is False:
            return eager(point, target, labels)
        trials = len(point)
        padded = {name: _pad(value, width) for name, value in target.items()}
        padded_labels = None if labels is None else _pad(labels, width)
        try:
            gradient, (_, value) = compiled(_pad(point, width), padded, padded_labels)
        except RuntimeError as error:
            if usable:
                raise
            usable = False
            _log.warning("torch.compile failed, going on without it: %s", str(error).partition("\n")[0])
            return eager(point, target, labels)
        usable = True
        return value[:trials].detach(), gradient[:trials].detach()

    return evaluate


def worth_compiling(update: CandidateUpdate, trials: int, evaluations: int) -> bool:
    """Whether T trials of so many evaluations repay the compiler's time; decided by the configuration alone.

    Never where the update is written in closed form, which is as fast without it.
    """
    return not isinstance(update, ChainGradient) and trials * evaluations >= COMPILE_FROM


def chunk_width(trials: int, layout: Layout, target: Gradients, device: torch.device) -> int:
    """How many trials to evaluate at once, from the sizes of the problem alone, never from free memory.

    A trial is reckoned at 12 copies of its update and 256 values for each image value; chunks are of even size.
    """
    update_values = sum(value[0].numel() for value in target.values())
    per_trial = 12 * update_values + 256 * layout.image_values
    values, most = (_CPU_VALUES, _CPU_TRIALS) if device.type == "cpu" else (_ACCELERATOR_VALUES, _ACCELERATOR_TRIALS)
    widest = max(1, min(most, values // per_trial))
    chunks = -(-trials // widest)
    return -(-trials // chunks)


def _reuse_freed_memory() -> None:
    """Have the C library keep what evaluations free, where it would return it to the system and ask again for each.

    glibc keeps what is smaller than the largest block that was ever freed, up to 32 MiB. Fresh pages for the intermediate
    values cost a fifth of an evaluation's time otherwise. Elsewhere this does nothing.
    """
    torch.empty(_LARGEST_KEPT, dtype=torch.uint8)


def _pad(tensor: Tensor, width: int) -> Tensor:
    missing = width - len(tensor)
    return torch.cat([tensor, tensor[:1].expand(missing, *tensor.shape[1:])]) if missing else tensor
