"""`mobilenetv2`, `mobilenetv2-imagenet-strides`, `mobilenetv2-quarter`: MobileNetV2 (Sandler et al. 2018).

Built from torchvision's parts, with three differences:

- Nothing is done in place: the networks can be differentiated twice and batched by vmap.
- The stem takes images of any number of channels.
- There is no dropout; torchvision has p = 0.2 in front of the classifier. Its masks would come from PyTorch's global
  generator, so that a client's training would no longer follow from the run's seed, nor would a gradient be a function
  of weights and images, as gradient inversion assumes.

The network was made for 224x224 images, which its strides shrink 32 times. On 32x32 images they leave maps of 1x1 from
the sixth stage on, and batch normalisation cannot train on a batch of one such image. The variants with CIFAR strides
have stride 1 in the stem and in the first strided stage, as is usual for such images, and end in 4x4 maps.

torchvision's initialisation, kept here, gives depthwise kernels a variance of 2 / (9 channels) although each reads one
channel. Batch statistics make up for it in training; with fresh running statistics, in evaluation mode, the images all
but vanish on the way (scores near 1e-9 at full width), and so does what gradients tell of them.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from federation.models.base import ImageShape, model
from federation.vision import models

# Table 2 of the paper, a stage a row: expansion t, output channels c, blocks n, stride s of the first block.
_IMAGENET_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_CIFAR_STAGES = tuple((t, c, n, 1 if c == 24 else s) for t, c, n, s in _IMAGENET_STAGES)


@model("mobilenetv2-imagenet-strides")
def mobilenetv2_imagenet_strides(image_shape: ImageShape, class_count: int) -> nn.Module:
    """torchvision's network at full width, with its strides as they are: features of 1x1 from 32x32 images."""
    return _build(image_shape, class_count, stem_stride=2, stages=_IMAGENET_STAGES)


@model("mobilenetv2")
def mobilenetv2(image_shape: ImageShape, class_count: int) -> nn.Module:
    """The network at full width with CIFAR strides: features of 4x4 from 32x32 images."""
    return _build(image_shape, class_count, stem_stride=1, stages=_CIFAR_STAGES)


@model("mobilenetv2-quarter")
def mobilenetv2_quarter(image_shape: ImageShape, class_count: int) -> nn.Module:
    """`mobilenetv2` at width multiplier 0.25, small enough for training on a CPU; not the published network.

    As in the paper the multiplier leaves the last convolution at 1280 channels. torchvision rounds the others to
    multiples of 8, at least 8: the stem and the stages have 8, then 8, 8, 8, 16, 24, 40, 80. The first two stages so
    keep their number of channels and their stride of 1, and each of their blocks has a residual connection.
    """
    return _build(image_shape, class_count, stem_stride=1, stages=_CIFAR_STAGES, width=0.25)


def _build(
    image_shape: ImageShape,
    class_count: int,
    *,
    stem_stride: int,
    stages: tuple[tuple[int, int, int, int], ...],
    width: float = 1.0,
) -> nn.Module:
    """The network with these strides; `width` multiplies the channels of all but the last convolution."""
    network = models.MobileNetV2(
        num_classes=class_count, width_mult=width, inverted_residual_setting=stages, dropout=0.0
    )
    for module in network.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = False
    channels = network.features[0][0].out_channels
    stem = nn.Conv2d(image_shape[0], channels, kernel_size=3, stride=stem_stride, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    network.features[0][0] = stem
    _dropout, linear = network.classifier
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            features=network.features,
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=linear,
        )
    )
