"""Small networks around a forward function that a test gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE = (3, 8, 8)

"""Shape of the images that they read."""


class Functional(nn.Module):
    """A module whose forward pass is a given function of itself and the images."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, images: Tensor) -> Any:
        return self.function(self, images)


def hidden(*, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(8, 8, 3, padding=1, groups=groups)


def with_head(function: Callable[..., Tensor], **layers: nn.Module) -> Functional:
    """stem (3 -> 8 channels), then `function(network, features)`, then pooled logits."""

    def forward(network: Any, images: Tensor) -> Tensor:
        return network.head(torch.flatten(F.adaptive_avg_pool2d(function(network, network.stem(images)), 1), 1))

    return Functional(forward, stem=nn.Conv2d(3, 8, 3, padding=1), head=nn.Linear(8, 5), **layers)
