"""How models are built and registered.

A model is a `torch.nn.Module` from normalised images [N, C, H, W] to class scores [N, classes]. It can be traced by
torch.fx, and its activations, pooling and flattening are modules of their own, since defenses and attacks read a
network's structure from its graph.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import nn

from federation.errors import UsageError
from federation.registry import Registry

ImageShape = tuple[int, int, int]
Constructor = Callable[[ImageShape, int], nn.Module]


class ModelBuilder(Protocol):
    """Builds a freshly initialised model on the CPU."""

    def __call__(self, image_shape: ImageShape, class_count: int, *, seed: int) -> nn.Module:
        """The model for images of `image_shape` (channels, height, width); the same seed gives the same weights."""


MODELS: Registry[ModelBuilder] = Registry("model")


def model(name: str) -> Callable[[Constructor], ModelBuilder]:
    """Return a decorator that registers a constructor under `name` and makes it a `ModelBuilder`.

    The constructor takes the image shape and the class count and may draw weights from PyTorch's default generator, as
    its modules do: the builder seeds that generator and afterwards puts it back as it was.
    """

    def store(construct: Constructor) -> ModelBuilder:
        @functools.wraps(construct)
        def build(image_shape: ImageShape, class_count: int, *, seed: int) -> nn.Module:
            with seeded_initialisation(seed):
                return construct(image_shape, class_count)

        MODELS.add(name, build)
        return build

    return store


@contextlib.contextmanager
def seeded_initialisation(seed: int) -> Iterator[None]:
    """Within the block, modules are made on the CPU with weights from `seed`; the global state is put back after it."""
    # torch.manual_seed would also reseed every accelerator, whose state fork_rng(devices=[]) does not put back.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield


def feature_count(features: nn.Module, image_shape: ImageShape, name: str) -> int:
    """How many numbers `features` makes of one image.

    Raises:
        UsageError: where the images are too small for it; `name` names the model.
    """
    try:
        with torch.no_grad():
            return features(torch.zeros(1, *image_shape)).numel()
    except RuntimeError as error:
        size = f"{image_shape[1]} x {image_shape[2]}"
        raise UsageError(f"images of {size} pixels are too small for {name}; take larger ones or logistic") from error
