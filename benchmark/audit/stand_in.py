"""Small networks that stand in for large ones where an audit or a check would otherwise take minutes."""

from __future__ import annotations

from torch import nn

from federation.models.base import seeded_initialisation
from federation.network import Network


def stand_in() -> Network:
    """Some 1,600 values with every kind of tensor: kernels, biases, batch-norm vectors, running statistics, a counter.

    Every channel space but the image's has eight channels or more, so that a random permutation of one is not the
    identity.
    """
    return Network(_stand_in, (1, 8, 8), 10)


def smallest_stand_in() -> Network:
    """Some 200 values, for checks that play hundreds of rounds: a kernel, batch normalisation and a linear layer."""
    return Network(_smallest, (1, 4, 4), 10)


def _smallest() -> nn.Module:
    with seeded_initialisation(0):
        return nn.Sequential(
            nn.Conv2d(1, 8, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AvgPool2d(4),
            nn.Flatten(),
            nn.Linear(8, 10),
        )


def _stand_in() -> nn.Module:
    with seeded_initialisation(0):
        return nn.Sequential(
            nn.Conv2d(1, 8, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, kernel_size=3, stride=2, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 16),
            nn.ReLU(),
            nn.Linear(16, 10),
        )
