"""A convolution's input as columns: one for each output position, holding all values that it reads."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from attacks.inversion.chain import Layer


class Columns:
    """For a layer, feature maps [T, C, H, W] as columns [T, K, L], and the adjoint of that.

    With W the layer's weight as [O, K] and dz the gradient at its output as [T, O, L], the output is W @ columns and the
    weight's gradient dz @ columns^T.
    """

    def __init__(self, layer: Layer) -> None:
        self._layer = layer

    def of(self, maps: Tensor) -> Tensor:
        """The columns of feature maps. (Views of the padded maps, copied once: half the time of F.unfold on a CPU.)"""
        layer = self._layer
        if layer.linear:
            return maps.flatten(2)
        vertical, horizontal = layer.padding
        padded = F.pad(maps, (horizontal, horizontal, vertical, vertical))
        trials, channels = maps.shape[:2]
        image, channel, row, column = padded.stride()
        steps = (layer.dilation[0] * row, layer.dilation[1] * column, layer.stride[0] * row, layer.stride[1] * column)
        windows = padded.as_strided((trials, channels, *layer.kernel, *layer.outputs[1:]), (image, channel, *steps))
        return windows.reshape(trials, -1, layer.outputs[1] * layer.outputs[2])

    def back(self, columns: Tensor) -> Tensor:
        """The adjoint: each pixel the sum of what stands at its places, [T, C, H, W]."""
        layer = self._layer
        if layer.linear:
            return columns.view(len(columns), *layer.inputs)
        return F.fold(
            columns,
            layer.inputs[1:],
            layer.kernel,
            dilation=layer.dilation,
            padding=layer.padding,
            stride=layer.stride,
        )

    def gram(self, gradient: Tensor) -> Tensor:
        """Normal matrices [T, HW, HW] of x -> dz @ columns(x)^T on one feature map, of dz [T, O, L].

        Sum over the kernel's places k of P_k dz^T dz P_k^T, where P_k puts each output position at the pixel that it reads
        at place k.
        """
        _, height, width = self._layer.inputs
        pixels = torch.arange(1.0, height * width + 1, dtype=torch.float64).view(1, 1, height, width)
        single = self.of(pixels)[0].long() - 1  # [kernel places, L]; -1 in the padding
        positions = gradient.transpose(1, 2) @ gradient
        found = gradient.new_zeros(len(gradient), height * width, height * width)
        for places in single.to(gradient.device):
            (inside,) = (places >= 0).nonzero(as_tuple=True)
            rows, columns = places[inside][:, None], places[inside][None, :]
            found[:, rows, columns] += positions[:, inside][:, :, inside]
        return found
