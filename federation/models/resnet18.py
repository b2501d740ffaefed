"""`resnet18`: ResNet-18 (He et al. 2016) for small images, from torchvision's parts."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from federation.models.base import ImageShape, model
from federation.vision import models


class ResidualBlock(models.resnet.BasicBlock):
    """torchvision's basic block with nothing done in place: it can be differentiated twice and batched by vmap."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)
        self.relu = nn.ReLU()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', H', W']."""
        shortcut = x if self.downsample is None else self.downsample(x)
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu2(residual + shortcut)


@model("resnet18")
def resnet18(image_shape: ImageShape, class_count: int) -> nn.Module:
    """ResNet-18 with batch normalisation, a 3x3 stem of stride 1 and no max pooling, as is usual for 32x32 images."""
    network = models.resnet.ResNet(ResidualBlock, [2, 2, 2, 2], num_classes=class_count)
    stem = nn.Conv2d(image_shape[0], 64, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=stem,
            bn1=network.bn1,
            relu=nn.ReLU(),
            layer1=network.layer1,
            layer2=network.layer2,
            layer3=network.layer3,
            layer4=network.layer4,
            avgpool=network.avgpool,
            flatten=nn.Flatten(),
            fc=network.fc,
        )
    )
