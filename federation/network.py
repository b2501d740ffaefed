"""The public facts about a network: how to build it, its tensors, its image shape, its channel spaces."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from torch import nn

from federation.channels import ChannelMap, trace_channels
from federation.weights import Layout, layout_of


class Network:
    """An architecture without weights of its own, known to every party and every adversary.

    Args:
        build: returns a new module; its weights carry no meaning.
        image_shape: (channels, height, width) of one input.
        class_count: number of outputs.
    """

    def __init__(self, build: Callable[[], nn.Module], image_shape: tuple[int, int, int], class_count: int) -> None:
        self.build = build
        self.image_shape = image_shape
        self.class_count = class_count

    @cached_property
    def layout(self) -> Layout:
        """The tensors of the network, in state-dict order."""
        return layout_of(self.build())

    @cached_property
    def channels(self) -> ChannelMap:
        """Which channel spaces the tensors connect; raises UsageError for a graph that cannot be traced."""
        return trace_channels(self.build(), self.image_shape)

    @property
    def parameter_count(self) -> int:
        """Number of values over all tensors."""
        return sum(spec.size for spec in self.layout)
