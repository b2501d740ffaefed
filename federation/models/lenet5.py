"""`lenet5`: LeNet-5 (LeCun et al. 1998) with ReLU and average pooling."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from federation.models.base import ImageShape, feature_count, model

# The network was made for 32x32; smaller images, such as 28x28, are padded by two pixels on each side.
_UNPADDED_SIZE = 32


@model("lenet5")
def lenet5(image_shape: ImageShape, class_count: int) -> nn.Module:
    """Two 5x5 convolutions of 6 and 16 channels, each pooled 2x2, and linear layers of 120, 84 and the classes.

    Raises:
        UsageError: for images smaller than 12 x 12 pixels.
    """
    padding = 2 if min(image_shape[1:]) < _UNPADDED_SIZE else 0
    features = OrderedDict[str, nn.Module](
        conv1=nn.Conv2d(image_shape[0], 6, kernel_size=5, padding=padding),
        relu1=nn.ReLU(),
        pool1=nn.AvgPool2d(2),
        conv2=nn.Conv2d(6, 16, kernel_size=5),
        relu2=nn.ReLU(),
        pool2=nn.AvgPool2d(2),
        flatten=nn.Flatten(),
    )
    classifier = OrderedDict[str, nn.Module](
        fc1=nn.Linear(feature_count(nn.Sequential(features), image_shape, "lenet5"), 120),
        relu3=nn.ReLU(),
        fc2=nn.Linear(120, 84),
        relu4=nn.ReLU(),
        fc3=nn.Linear(84, class_count),
    )
    return nn.Sequential(features | classifier)
