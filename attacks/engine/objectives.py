"""How far a candidate's update is from the observed one: (candidate, target) -> [T], zero at a perfect match.

An objective is any such callable; it must not mix trials. Names that the target lacks are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attacks.engine.gradients import Gradients
from federation.errors import UsageError

Objective = Callable[[Gradients, Gradients], Tensor]


def squared_distance(candidate: Gradients, target: Gradients) -> Tensor:
    """Squared Euclidean distance over all tensors, [T] (Zhu et al. 2019, "Deep Leakage from Gradients", eq. 4)."""
    pairs = zip(_rows(candidate, target), _rows(target, target), strict=True)
    return torch.stack([(ours - theirs).square().sum(1) for ours, theirs in pairs]).sum(0)


def cosine_distance(candidate: Gradients, target: Gradients) -> Tensor:
    """1 - cosine over all tensors jointly, [T], in [0, 2] (Geiping et al. 2020, "Inverting Gradients", eq. 4).

    A zero update has cosine 0 with everything, and gives no gradient through its norm.
    """
    ours, theirs = _rows(candidate, target), _rows(target, target)
    if torch.compiler.is_compiling():
        return 1 - _dot(ours, theirs) / (_norm(ours) * _norm(theirs))  # the compiler differentiates by itself
    distance: Tensor = _CosineDistance.apply(len(ours), *ours, *theirs)
    return distance


class _CosineDistance(torch.autograd.Function):
    """Rows of the candidate [T, values] and then as many of the target -> 1 - cosine, differentiable once, in the former.

    The slope is written out: autograd reads and writes each value three times as often.
    """

    @staticmethod
    def forward(ctx: Any, count: int, *rows: Tensor) -> Tensor:
        ours, theirs = rows[:count], rows[count:]
        ctx.save_for_backward(
            *rows, norm := _norm(ours), other := _norm(theirs), cosine := _dot(ours, theirs) / (norm * other)
        )
        return 1 - cosine

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        *rows, norm, other, cosine = ctx.saved_tensors
        count = len(rows) // 2
        # at the least norm, which stands for all smaller ones, the norm does not change
        along = (slope * cosine / norm.square()).masked_fill(norm <= _least(norm), 0)[:, None]
        across = (-slope / (norm * other))[:, None]
        changes = [
            torch.addcmul(theirs * across, ours, along) for ours, theirs in zip(rows[:count], rows[count:], strict=True)
        ]
        return None, *changes, *[None] * count


def has_signal(target: Gradients) -> Tensor:
    """Whether each trial's target can be matched at all, bool [T]: finite everywhere, and its squared norm not zero."""
    rows = _rows(target, target)
    finite = torch.stack([part.isfinite().all(1) for part in rows]).all(0)
    squared = _dot(rows, rows)
    return finite & (squared.sqrt() > _least(squared))


def _rows(update: Gradients, target: Gradients) -> list[Tensor]:
    """The values of an update that the target has, [T, values] for each name; a scalar parameter's [T] is one of them."""
    missing = set(target) - set(update)
    if missing:
        raise UsageError(f"the simulated update lacks {sorted(missing)}, which the target has")
    return [update[name].reshape(len(update[name]), -1) for name in target]


def _dot(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Inner products [T] of rows given in parts."""
    return torch.stack([torch.linalg.vecdot(*pair) for pair in zip(ours, theirs, strict=True)]).sum(0)


def _norm(rows: Sequence[Tensor]) -> Tensor:
    """Norms [T] of rows given in parts; the least that `has_signal` knows where they are smaller."""
    squared = _dot(rows, rows)
    return squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt()


def _least(norm: Tensor) -> float:
    return torch.finfo(norm.dtype).tiny ** 0.5
