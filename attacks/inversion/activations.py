"""Activations that can be undone: each with its inverse and its slope."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

MARGIN = 1e-6
"""How near to the ends of its range an activation is believed: beyond, float32 does not tell the ends apart."""

_NOISE = 2.0
"""Times the largest error that shows in what a ReLU made, up to which a value counts as none."""


@dataclass(frozen=True)
class Activation:
    """An elementwise function.

    Attributes:
        function: z -> a.
        inverse: a -> z, for any a: values out of range count as the nearest in it.
        slope: z -> da/dz.
    """

    function: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


def _sigmoid_slope(z: Tensor) -> Tensor:
    a = z.sigmoid()
    return a * (1 - a)


def _living(a: Tensor) -> Tensor:
    """What a ReLU let through; what it did not becomes 0, of which its slope makes no equation.

    It never makes negative values, so the lowest that was read tells how far values may be off.
    """
    error = (-a).flatten(1).amax(1).clamp_min(0).view(-1, *[1] * (a.dim() - 1))
    return torch.where(a > _NOISE * error, a, torch.zeros_like(a))


ACTIVATIONS: Mapping[str, Activation] = {
    "sigmoid": Activation(torch.sigmoid, lambda a: a.clamp(MARGIN, 1 - MARGIN).logit(), _sigmoid_slope),
    "tanh": Activation(torch.tanh, lambda a: a.clamp(MARGIN - 1, 1 - MARGIN).atanh(), lambda z: 1 - z.tanh().square()),
    "relu": Activation(torch.relu, _living, lambda z: (z > 0).to(z)),
}
"""By PyTorch's name."""
