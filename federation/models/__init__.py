"""The networks that Keyhole trains, by name."""

from __future__ import annotations

from torch import nn

from federation.models import lenet5, lenet_zhu, logistic, mobilenetv2, resnet18  # noqa: F401  (registers them)
from federation.models.base import MODELS, ImageShape, ModelBuilder, model


def build_model(name: str, image_shape: ImageShape, class_count: int, *, seed: int) -> nn.Module:
    """Build the registered model `name` with weights drawn from `seed`; raises UsageError for an unknown name."""
    return MODELS.get(name)(image_shape, class_count, seed=seed)


__all__ = ["MODELS", "ImageShape", "ModelBuilder", "build_model", "model"]
