"""A keyed network opened layer by layer: what one layer's key says of the next, as far as that goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from attacks.adaptive.grid.gains import LayerKey, SpaceKey
from attacks.adaptive.grid.layer import recover_layer
from attacks.adaptive.grid.template import ConvolutionTemplate, Integers, KeyNotFoundError, inverse_pose
from federation.network import Network
from federation.toeplitz import Linear, ToeplitzNetwork, toeplitz_of

Matrices = Mapping[str, scipy.sparse.csr_array]


@dataclass(frozen=True, eq=False)
class NetworkKey:
    """The keys that were found of a network, in the attacker's frame.

    That frame is the true one up to a pose of the images, the order of hidden channels and units and of the classes, and
    the scale of each hidden channel: an equivalent network, whose gradients are those of the true one.

    Attributes:
        layers: of each convolution that was opened from the images onwards, by name.
        spaces: of each space whose key is known, by number.
        first: the layer that reads the images; the channels of each set of pixels that its taps connect are in an order
            of their own.
        image: the number of the images' space.
        pose: the one of its poses that this frame is.
        islands: further convolutions, opened by their own grids, by name: neither their channels nor their poses are
            linked to those of the layers before.
        apart: the spaces around those, each layer's in a frame of its own.
        reason: why no more was opened; "" where all was.
    """

    layers: Mapping[str, LayerKey]
    spaces: Mapping[int, SpaceKey]
    first: str
    image: int
    pose: int
    islands: Mapping[str, LayerKey] = field(default_factory=dict)
    apart: Mapping[int, SpaceKey] = field(default_factory=dict)
    reason: str = ""

    def seen_in(self, frame: NetworkKey, images: Tensor) -> Tensor:
        """Images [..., height, width] of this frame as they are in another."""
        template = self.template
        upright = template.moved(images.numpy(), inverse_pose(self.pose))
        return torch.from_numpy(np.ascontiguousarray(template.moved(upright, frame.pose)))

    @property
    def template(self) -> ConvolutionTemplate:
        """That of the layer that reads the images."""
        return self.layers[self.first].template

    def with_channels_in(self, orders: Integers) -> NetworkKey:
        """The same with the image's channels, pixel by pixel, in the order [pixels, channels]."""
        image = self.layers[self.first].source
        sorted_image = SpaceKey(
            np.take_along_axis(image.places, orders, axis=1), np.take_along_axis(image.gains, orders, axis=1)
        )
        return replace(self, spaces={**self.spaces, self.image: sorted_image})

    def claims(self) -> dict[str, Tensor]:
        """What is claimed of each space's key, see `Reconstruction.key_claims`; entries are numbered channel by channel."""
        found: dict[str, Tensor] = {}
        for number, space in sorted({**self.apart, **self.spaces}.items()):
            entries, gains = space.keyed
            found |= {f"places.{number}": torch.from_numpy(entries), f"gains.{number}": torch.from_numpy(gains)}
        return found


def open_network(network: Network, matrices: Matrices, *, unit_gains: bool) -> list[NetworkKey]:
    """Open as many layers as follow from one keyed model.

    A convolution that reads the images is opened by its own grid, and a layer after it in the key of what it reads. Where
    something stands between them that has a key of its own, as pooling has, the chain ends.

    Args:
        network: the architecture.
        matrices: a keyed model, homogeneous matrices by layer.
        unit_gains: whether gains are known to be 1, so that fully connected hidden layers too are opened.

    Returns:
        The keys once in every frame, of those in which the layers fit one another; which of them is upright no
        ciphertext tells.

    Raises:
        KeyNotFoundError: where not even the first layer gives its key away.
    """
    traced = toeplitz_of(network)
    first = next((step for step in traced.weighted if traced.spaces[step.source_spaces[0]].role == "input"), None)
    template = None if first is None else template_of(network, traced, first)
    if first is None or template is None:
        raise KeyNotFoundError("no ungrouped convolution reads the images")
    opened = recover_layer(matrices[first.layer], template)
    if opened.offsets:
        raise KeyNotFoundError("the bias column of the first layer is no bias")
    frames = [
        _chain(network, traced, matrices, first, opened.in_pose(pose), pose, unit_gains) for pose in template.symmetries
    ]
    most = max(len(frame.spaces) for frame in frames)
    fitting = [frame for frame in frames if len(frame.spaces) == most]
    islands, apart = _islands(network, traced, matrices, fitting[0])
    return [replace(frame, islands=islands, apart=apart) for frame in fitting]


def opened_weights(network: Network, key: NetworkKey, matrices: Matrices) -> dict[str, Tensor]:
    """The tensors of the layers that a key opens, in its frame, by name; others are not there.

    Args:
        network: the architecture.
        key: what was found.
        matrices: any keyed model under the same keys.
    """
    found: dict[str, np.ndarray] = {}
    for step in toeplitz_of(network).weighted:
        matrix = matrices[step.layer]
        if step.layer in key.layers:
            layer = key.layers[step.layer]
            values = [layer.kernels(matrix), layer.bias(matrix)]
        elif step.space in key.spaces and step.source_spaces[0] in key.spaces:
            values = _fully_connected(matrix, key.spaces[step.source_spaces[0]], key.spaces[step.space])
        else:
            continue
        found |= zip(step.tensors, values, strict=False)  # a layer without bias has one tensor
    specs = {spec.name: spec for spec in network.layout}
    return {
        name: torch.from_numpy(np.ascontiguousarray(values)).to(specs[name].dtype).reshape(specs[name].shape)
        for name, values in found.items()
    }


def template_of(network: Network, traced: ToeplitzNetwork, step: Linear) -> ConvolutionTemplate | None:
    """The template of a layer; None where it is no ungrouped convolution of maps."""
    return ConvolutionTemplate.of_layer(network, step, traced.spaces[step.source_spaces[0]], traced.spaces[step.space])


def _chain(
    network: Network,
    traced: ToeplitzNetwork,
    matrices: Matrices,
    first: Linear,
    opened: LayerKey,
    pose: int,
    unit_gains: bool,
) -> NetworkKey:
    """All that follows from the first layer in one pose."""
    layers, spaces = {first.layer: opened}, {first.source_spaces[0]: opened.source, first.space: opened.target}
    reason = ""
    for step in traced.weighted:
        if step.layer in layers:
            continue
        source, target = spaces.get(step.source_spaces[0]), traced.spaces[step.space]
        if source is None:
            reason = reason or f"what {step.layer} reads has a key of its own"
            continue
        template = template_of(network, traced, step)
        if template is not None:
            try:
                layers[step.layer] = recover_layer(matrices[step.layer], template, source)
            except KeyNotFoundError as error:
                reason = reason or f"{step.layer}: {error}"
                continue
            spaces.setdefault(step.space, layers[step.layer].target)
        elif len(target.shape) == 1 and (unit_gains or target.role == "output"):
            # its units are numbered as they come
            spaces.setdefault(step.space, SpaceKey(np.arange(target.size).reshape(1, -1), np.ones((1, target.size))))
        else:
            reason = reason or f"the gains of {step.layer} are not known"
    return NetworkKey(layers, spaces, first.layer, first.source_spaces[0], pose, reason=reason)


def _islands(
    network: Network, traced: ToeplitzNetwork, matrices: Matrices, key: NetworkKey
) -> tuple[dict[str, LayerKey], dict[int, SpaceKey]]:
    """The convolutions whose inputs no earlier layer tells, each opened by itself; and the spaces around them."""
    islands: dict[str, LayerKey] = {}
    apart: dict[int, SpaceKey] = {}
    for step in traced.weighted:
        template = template_of(network, traced, step)
        if step.source_spaces[0] in key.spaces or template is None:
            continue
        try:
            layer = recover_layer(matrices[step.layer], template)
        except KeyNotFoundError:
            continue  # the key's reason says why the chain ended before it
        islands[step.layer] = layer
        apart |= {step.source_spaces[0]: layer.source, step.space: layer.target}
    return islands, apart


def _fully_connected(matrix: scipy.sparse.csr_array, source: SpaceKey, target: SpaceKey) -> list[np.ndarray]:
    """Weight and bias of a layer between two known spaces."""
    columns, column_gains = source.flat
    rows, row_gains = target.flat
    dense = np.asarray(matrix[:-1].toarray(), np.float64)[rows] / row_gains[:, None]
    return [dense[:, columns] * column_gains, dense[:, -1]]
