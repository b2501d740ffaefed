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
    ours, theirs = _joined(candidate, target)
    return (ours - theirs).square().sum(1)


def cosine_distance(candidate: Gradients, target: Gradients) -> Tensor:
    """1 - cosine over all tensors jointly, [T], in [0, 2] (Geiping et al. 2020, "Inverting Gradients", eq. 4).

    A zero update has cosine 0 with everything, and gives no gradient through its norm.
    """
    ours, theirs = _joined(candidate, target)
    norms = torch.linalg.vector_norm(ours, dim=1) * torch.linalg.vector_norm(theirs, dim=1)
    return 1 - (ours * theirs).sum(1) / norms.clamp_min(torch.finfo(norms.dtype).tiny)


def has_signal(target: Gradients) -> Tensor:
    """Whether each trial's target can be matched at all, bool [T]: finite everywhere, and its squared norm not zero."""
    values = _flat(target.values())
    norm = torch.linalg.vector_norm(values, dim=1)
    return values.isfinite().all(1) & (norm > torch.finfo(norm.dtype).tiny ** 0.5)


def _joined(candidate: Gradients, target: Gradients) -> tuple[Tensor, Tensor]:
    """The values of both that the target has, [T, values] each: one operation on all is faster than one a tensor."""
    missing = set(target) - set(candidate)
    if missing:
        raise UsageError(f"the simulated update lacks {sorted(missing)}, which the target has")
    return _flat(candidate[name] for name in target), _flat(target.values())


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    """Tensors [T, *shape] side by side, [T, values]; a scalar parameter's [T] is one of them."""
    return torch.cat([tensor.reshape(len(tensor), -1) for tensor in tensors], dim=1)
