"""Depthwise convolution as an ordinary one: appendix A of Gusain 2021, kept as a fact and not used."""

from __future__ import annotations

import torch
from torch import Tensor

from federation.errors import UsageError


def densify_depthwise(weight: Tensor, groups: int) -> Tensor:
    """The kernel of an ordinary convolution with the same output as a grouped one.

    Gusain (2021, appendix A) rewrites depthwise convolutions so, since his Toeplitz code knows no groups. The layouts
    here do: a grouped convolution's zero blocks are no entries, and nothing has to be made dense. Written out, the
    zeros would be keyed, sent and averaged like weights: MobileNetV2 grows to 462 MB instead of 48.5 MB.

    Args:
        weight: [outputs, inputs / groups, height, width].
        groups: the number of groups; the number of inputs for a depthwise convolution.

    Returns:
        [outputs, inputs, height, width], zero outside the blocks of the groups.

    Raises:
        UsageError: where the outputs do not divide into that many groups.
    """
    outputs, width = weight.shape[:2]
    if groups < 1 or outputs % groups:
        raise UsageError(f"{outputs} output channels do not divide into {groups} groups")
    dense = weight.new_zeros(outputs, groups * width, *weight.shape[2:])
    first = torch.arange(outputs) // (outputs // groups) * width
    for member in range(width):
        dense[torch.arange(outputs), first + member] = weight[:, member]
    return dense
