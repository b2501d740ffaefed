"""`lenet-zhu` and `lenet-zhu-default`: the sigmoid LeNet of Deep Leakage from Gradients (Zhu et al. 2019).

The paper draws every weight and bias from U(-0.5, 0.5), far wider than PyTorch does, and its figures rest on that. The
name that the literature uses stands for that network; `lenet-zhu-default` has PyTorch's initialisation instead.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from federation.models.base import ImageShape, feature_count, model

_CHANNELS = 12
_BOUND = 0.5


@model("lenet-zhu")
def lenet_zhu(image_shape: ImageShape, class_count: int) -> nn.Module:
    """The paper's network: every weight and bias is drawn from U(-0.5, 0.5)."""
    network = lenet(image_shape, class_count)
    for parameter in network.parameters():
        nn.init.uniform_(parameter, -_BOUND, _BOUND)
    return network


def lenet(image_shape: ImageShape, class_count: int) -> nn.Module:
    """Three 5x5 convolutions of 12 channels with strides 2, 2, 1, each followed by a sigmoid, then one linear layer."""
    features = OrderedDict[str, nn.Module]()
    channels = image_shape[0]
    for number, stride in enumerate((2, 2, 1), start=1):
        features[f"conv{number}"] = nn.Conv2d(channels, _CHANNELS, kernel_size=5, stride=stride, padding=2)
        features[f"sigmoid{number}"] = nn.Sigmoid()
        channels = _CHANNELS
    features["flatten"] = nn.Flatten()
    inputs = feature_count(nn.Sequential(features), image_shape, "lenet-zhu")
    return nn.Sequential(features | {"fc": nn.Linear(inputs, class_count)})


model("lenet-zhu-default")(lenet)
