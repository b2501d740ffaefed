"""How far a candidate's update is from the observed one: (candidate, target) -> [T], zero at a perfect match.

An objective is any such callable; it must not mix trials. Names that the target lacks are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from attacks.engine.gradients import Gradients
from federation.errors import UsageError

Objective = Callable[[Gradients, Gradients], Tensor]


def squared_distance(candidate: Gradients, target: Gradients) -> Tensor:
    """Squared Euclidean distance over all tensors, [T] (Zhu et al. 2019, "Deep Leakage from Gradients", eq. 4)."""
    return _sum(_rows(ours - theirs).square().sum(1) for ours, theirs in _pairs(candidate, target))


def cosine_distance(candidate: Gradients, target: Gradients) -> Tensor:
    """1 - cosine over all tensors jointly, [T], in [0, 2] (Geiping et al. 2020, "Inverting Gradients", eq. 4).

    A zero update has cosine 0 with everything, and gives no gradient through its norm.
    """
    pairs = _pairs(candidate, target)
    product = _sum(_rows(ours * theirs).sum(1) for ours, theirs in pairs)
    norms = _joint_norm([ours for ours, _ in pairs]) * _joint_norm([theirs for _, theirs in pairs])
    return 1 - product / norms.clamp_min(torch.finfo(norms.dtype).tiny)


def has_signal(target: Gradients) -> Tensor:
    """Whether each trial's target can be matched at all, bool [T]: finite everywhere, and its squared norm not zero."""
    tensors = list(target.values())
    finite = torch.stack([_rows(tensor).isfinite().all(1) for tensor in tensors]).all(0)
    norm = _joint_norm(tensors)
    return finite & (norm > torch.finfo(norm.dtype).tiny ** 0.5)


def _pairs(candidate: Gradients, target: Gradients) -> list[tuple[Tensor, Tensor]]:
    missing = set(target) - set(candidate)
    if missing:
        raise UsageError(f"the simulated update lacks {sorted(missing)}, which the target has")
    return [(candidate[name], theirs) for name, theirs in target.items()]


def _rows(tensor: Tensor) -> Tensor:
    """[T, *shape] as [T, values]; a scalar parameter's [T] as [T, 1]."""
    return tensor.reshape(len(tensor), -1)


def _joint_norm(tensors: list[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(_rows(tensor), dim=1) for tensor in tensors]
    return torch.linalg.vector_norm(torch.stack(norms), dim=0)


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum(0)
