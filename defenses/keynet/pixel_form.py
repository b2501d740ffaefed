"""What of a network goes into keyed matrices, and what is carried beside them: public facts, the same for everyone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from federation.errors import UsageError
from federation.network import Network
from federation.toeplitz import Linear, ToeplitzNetwork, toeplitz_of
from federation.weights import Layout, counters, floating


@dataclass(frozen=True)
class PixelForm:
    """The parts of a keyed model.

    Attributes:
        network: the layers' layouts and the spaces between them.
        layout: the network's tensors.
        layers: convolutions and fully connected layers, by name.
        vectors: lengths of what stands in no matrix, by name: every other floating-point tensor (vectors and running
            statistics of batch normalisation) under its own name, and as "LAYER.separate" the taps of a convolution that
            only ever meet padding.
    """

    network: ToeplitzNetwork
    layout: Layout
    layers: Mapping[str, Linear]
    vectors: Mapping[str, int]

    @classmethod
    def of(cls, network: Network) -> PixelForm:
        """The form of a network.

        Raises:
            UsageError: for a network that cannot be traced or laid out, that calls a layer twice, or whose tensors are
                not float32.
        """
        traced = toeplitz_of(network)
        calls = Counter(step.layer for step in traced.weighted)
        for step in traced.weighted:
            if calls[step.layer] > 1:
                raise step.refusal("it is called more than once; give each call a layer of its own")
        for spec in floating(network.layout):
            if spec.dtype != torch.float32:
                raise UsageError(f"tensor {spec.name!r} is {spec.dtype}; keyed matrices carry float32")
        layers = {step.layer: step for step in traced.weighted}
        placed = {name for step in layers.values() for name in step.tensors}
        vectors = {spec.name: spec.size for spec in floating(network.layout) if spec.name not in placed and spec.size}
        separate = {separate_name(step): len(step.layout.separate) for step in layers.values()}
        return cls(traced, network.layout, layers, vectors | {name: size for name, size in separate.items() if size})

    @property
    def counter_names(self) -> list[str]:
        """The integer tensors, which are sent as they are."""
        return [spec.name for spec in counters(self.layout)]


def separate_name(step: Linear) -> str:
    """The name under which a layer's separate taps are carried."""
    return f"{step.layer}.separate"
