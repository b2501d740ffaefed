"""The distance of a candidate's update to one whose values were rounded at random to levels, as QSGD does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.engine.gradients import Gradients
from attacks.engine.objectives import cosine_distance

SPACING = "spacing of "
"""Before a tensor's name in a target: how far apart the levels of each of its values lie, zero where one was not rounded."""

LEAST_VARIANCE = 0.05
"""Of a rounded value, as a share of its squared spacing: a candidate is not the truth, and may lie on a level by chance."""


@dataclass(frozen=True)
class RoundedCosine:
    """1 - cosine over all values, each weighed by how little rounding would blur it if the candidate were the truth.

    A value v between levels a spacing d apart is rounded to either without bias, with variance d^2 f (1 - f), where f is
    the part of |v| / d behind the point (Alistarh et al. 2017, "QSGD", section 3.1). A level says much of a value that lies
    on one, and of the many that are nearly zero; little of one that lies between two; less, the larger its bucket's norm.
    Both vectors are divided by the standard deviation of rounding the candidate, which counts as a constant, joined with
    `tolerance`. Without spacings it is `cosine_distance`.

    Args:
        tolerance: blur that counts beside the rounding, as a share of the update's root mean square; above 0. Where levels
            lie nearer together than that, it is `cosine_distance`.
    """

    tolerance: float

    def __call__(self, candidate: Gradients, target: Gradients) -> Tensor:
        """Distances [T] in [0, 2]; `target` has a spacing beside each of its values, or none at all."""
        names = [name for name in target if not name.startswith(SPACING)]
        spacings = [SPACING + name for name in names]
        if not target.keys() >= {*spacings}:
            return cosine_distance(candidate, target)
        ours, theirs, spacing = _flat(candidate, names), _flat(target, names), _flat(target, spacings)
        blur = self.tolerance * theirs.square().mean(1, keepdim=True).sqrt().clamp_min(_TINY)
        weight = (rounding_variance(ours.detach(), spacing) + blur.square()).rsqrt()
        return cosine_distance({"weighed": ours * weight}, {"weighed": theirs * weight})


def rounding_variance(values: Tensor, spacing: Tensor) -> Tensor:
    """What rounding values at random to levels a spacing apart leaves as variance, and `LEAST_VARIANCE` at least.

    Args:
        values: of any shape.
        spacing: of the same shape; where it is zero nothing is rounded.
    """
    levels = values.abs() / spacing.clamp_min(_TINY)
    between = levels - levels.floor()
    return spacing.square() * (between * (1 - between)).clamp_min(LEAST_VARIANCE)


_TINY = 1e-15
"""Under any spacing or blur that counts; its square is still a float32."""


def _flat(update: Gradients, names: Iterable[str]) -> Tensor:
    """The named tensors of an update side by side, [T, values]."""
    return torch.cat([update[name].reshape(len(update[name]), -1) for name in names], dim=1)
