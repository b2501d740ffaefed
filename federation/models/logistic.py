"""`logistic`: multinomial logistic regression, one linear layer on the pixels."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn

from federation.models.base import ImageShape, model


@model("logistic")
def logistic(image_shape: ImageShape, class_count: int) -> nn.Module:
    """One linear layer with a bias from C*H*W pixels to the class scores."""
    return nn.Sequential(
        OrderedDict(flatten=nn.Flatten(), linear=nn.Linear(math.prod(image_shape), class_count)),
    )
