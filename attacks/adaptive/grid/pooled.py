"""Two convolutions and a fully connected layer joined across the pooling between them, whose keys no message carries.

Average pooling has no weights, so that its result has a key which stands in no matrix but the next layer's. Three things
join the layers around it, once each convolution is opened by its own grid:

1. *Channels.* ReLU and pooling pass a channel's scale, so that for every update the sum of w * dL/dw over the weights that
   write a channel (its bias too) equals that over the weights that read it. Channels of the two layers are put together
   by these sums over the updates.
2. *Poses.* Public images in the right pose, through the convolutions in the right poses, give features like the private
   ones, whatever their order: the statistics of features, one assigned to another, tell.
3. *Features.* What enters the fully connected layer is dW_i / db_i of each update, shuffled and scaled. It is matched with
   the features of public images as pixels are (`attacks.adaptive.statistics`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacks.adaptive.grid.channels import ChannelPlaces
from attacks.adaptive.grid.gains import LayerKey, SpaceKey
from attacks.adaptive.grid.network import Matrices, NetworkKey
from attacks.adaptive.grid.template import Floats, Integers
from attacks.adaptive.statistics.columns import ColumnStatistics
from attacks.adaptive.statistics.leaks import Leak, layer_leak
from attacks.adaptive.statistics.matching import PlacedColumns, match_columns
from attacks.adaptive.statistics.public import PublicImages
from federation.network import Network
from federation.toeplitz import Linear, toeplitz_of

FEWEST = 16
"""Updates under which channels and features are not matched."""

SIGNAL = 0.6
"""Predictability of placed features under which they are not in place: digits have over 0.9."""

_SLACK = 1.1
"""Factor by which a feature's scale may leave the gains' range: channels are opened up to a factor near 1."""

_TRIED = 4
_SAMPLE = 300


@dataclass(frozen=True, eq=False)
class JoinedNetwork:
    """A network of two convolutions opened up to what its first fully connected layer reads.

    Attributes:
        frame: the keys in the frame in which public images are upright.
        features: of the updates' images, [N, F], in that frame.
        public: [M, F], of the public images.
        predictability: see `match_pixels`.
    """

    frame: NetworkKey
    features: Floats
    public: Floats
    predictability: float

    def decoded(self, images: PublicImages) -> Floats:
        """[N, P], the updates' images, normalised: the linear estimate from features that is best on public images."""
        mean, unit = self.public.mean(0), self.public.std(0).mean() + 1e-12
        known = (self.public - mean) / unit
        away = images.pixels - images.pixels.mean(0)
        penalty = 1e-3 * len(known) * np.eye(known.shape[1])
        weights = np.linalg.solve(known.T @ known + penalty, known.T @ away)
        return np.asarray((self.features - mean) / unit @ weights + images.pixels.mean(0))


def dense_after(network: Network, key: NetworkKey) -> Linear | None:
    """The fully connected layer after the only two convolutions, both opened, the second apart; else None."""
    if len(key.layers) != 1 or len(key.islands) != 1:
        return None
    weighted = toeplitz_of(network).weighted
    shapes = {spec.name: spec.shape for spec in network.layout}
    if len(weighted) < 3 or [step.layer for step in weighted[:2]] != [*key.layers, *key.islands]:
        return None
    dense = weighted[2]
    fits = len(shapes[dense.tensors[0]]) == 2 and len(dense.tensors) == 2 and dense.source_spaces[0] not in key.spaces
    activations = toeplitz_of(network).spaces[weighted[0].space].activations
    (island,) = key.islands.values()
    return dense if fits and activations == {"relu"} and len(island.template.connected) == 1 else None


def joined(
    network: Network,
    frames: Sequence[NetworkKey],
    before: Matrices,
    updates: Sequence[Matrices],
    public: PublicImages,
    *,
    gain_range: float,
    seed: int,
) -> JoinedNetwork | None:
    """The network opened up to its first fully connected layer; None where updates are too few, or move nothing.

    Args:
        network: for which `dense_after` names a layer.
        frames: the first convolution's key in each of its poses, the second's apart.
        before: keyed matrices before the updates.
        updates: those after each, of one image and one step from there, each of which moves that layer.
        public: images like the private ones.
        gain_range: s; gains are known to lie on [1/s, s].
        seed: of starts.
    """
    dense = dense_after(network, frames[0])
    assert dense is not None, "looked at before"
    leaks = [layer_leak(network, dense, before, after) for after in updates]
    known = [leak for leak in leaks if leak is not None]
    if len(known) < FEWEST or len(known) < len(updates):
        return None
    values = np.maximum(np.stack([leak.image for leak in known]), 0)  # behind ReLU: what is under 0 is rounding
    order = _channel_order(frames[0], before, updates)
    candidates = _likeliest(_frames(frames, order), network, before, dense, values, public)
    bound = gain_range * _SLACK if gain_range > 1 else _SLACK
    placed = [
        (frame, features, _placed(values, known, features, public, bound, seed)) for frame, features in candidates
    ]
    frame, features, best = max(placed, key=lambda each: each[2].predictability)
    entries = np.argsort(best.places)  # which keyed feature each one is
    shape = toeplitz_of(network).spaces[dense.source_spaces[0]].shape
    channels = shape[0] if len(shape) == 3 else frame.layers[[*frame.layers][1]].template.outputs
    space = SpaceKey(entries.reshape(channels, -1).T, (1 / best.gains[entries]).reshape(channels, -1).T)
    whole = replace(frame, spaces={**frame.spaces, dense.source_spaces[0]: space})
    return JoinedNetwork(whole, (values / best.gains)[:, entries], features, best.predictability)


def _placed(
    values: Floats, leaks: Sequence[Leak], features: Floats, public: PublicImages, bound: float, seed: int
) -> PlacedColumns:
    labels = np.array([leak.label for leak in leaks])
    columns = PublicImages(features, public.labels, np.zeros(features.shape[1]))
    size = values.shape[1]
    return match_columns(values, labels, columns, np.full(size, 1 / bound), np.full(size, bound), seed=seed)


def _channel_order(key: NetworkKey, before: Matrices, updates: Sequence[Matrices]) -> Integers:
    """[channels], which of the second layer's input channels each of the first layer's is."""
    (name, first), (other, second) = *key.layers.items(), *key.islands.items()
    kernels, bias, read = first.kernels(before[name]), first.bias(before[name]), second.kernels(before[other])
    written_sums, read_sums = [], []
    for after in updates:
        moved = kernels * (first.kernels(after[name]) - kernels)
        written_sums.append(moved.sum((1, 2, 3)) + bias * (first.bias(after[name]) - bias))
        read_sums.append((read * (second.kernels(after[other]) - read)).sum((0, 2, 3)))
    distances = np.abs(np.array(written_sums)[:, :, None] - np.array(read_sums)[:, None, :]).sum(0)
    return np.asarray(linear_sum_assignment(distances)[1])


def _frames(frames: Sequence[NetworkKey], order: Integers) -> list[NetworkKey]:
    """Every pose of the first convolution with every one of the second, its input channels in this order."""
    (name, island), (source, target) = next(iter(frames[0].islands.items())), frames[0].apart
    found = []
    for pose in island.template.symmetries:
        turned = island.in_pose(pose)
        layer: LayerKey = replace(
            turned,
            places=ChannelPlaces(turned.places.rows, turned.places.columns[:, order]),
            columns=turned.columns[:, order],
        )
        spaces = {source: layer.source, target: layer.target}
        found += [
            replace(
                frame, layers={**frame.layers, name: layer}, spaces={**frame.spaces, **spaces}, islands={}, apart={}
            )
            for frame in frames
        ]
    return found


def _likeliest(
    frames: Sequence[NetworkKey],
    network: Network,
    before: Matrices,
    dense: Linear,
    values: Floats,
    public: PublicImages,
) -> list[tuple[NetworkKey, Floats]]:
    """The frames whose features of public images have the likeliest statistics, with these features."""
    sample = np.linspace(0, len(public.pixels) - 1, min(_SAMPLE, len(public.pixels))).astype(int)
    ours = _statistics(values)
    costs = []
    for frame in frames:
        theirs = _statistics(features_of(network, frame, before, dense, public.pixels[sample]))
        distances = ours.distances(theirs, None)
        costs.append(float(distances[linear_sum_assignment(distances)].sum()))
    best = np.argsort(costs, kind="stable")[:_TRIED]
    return [(frames[k], features_of(network, frames[k], before, dense, public.pixels)) for k in best]


def _statistics(values: Floats) -> ColumnStatistics:
    return ColumnStatistics.of(values, np.zeros(len(values), np.int64), 1, scaled=True)


def features_of(network: Network, frame: NetworkKey, before: Matrices, dense: Linear, pixels: Floats) -> Floats:
    """[M, F], what the fully connected layer reads of normalised images [M, P] in a frame."""
    model = network.build().eval()
    weights = model.state_dict()
    for step in toeplitz_of(network).weighted[:2]:
        layer, matrix = frame.layers[step.layer], before[step.layer]
        for name, tensor in zip(step.tensors, (layer.kernels(matrix), layer.bias(matrix)), strict=False):
            weights[name] = torch.from_numpy(np.ascontiguousarray(tensor)).to(weights[name].dtype)
    model.load_state_dict(weights)
    read: list[Tensor] = []
    handle = model.get_submodule(dense.layer).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with torch.no_grad():
        for part in torch.from_numpy(pixels).float().view(len(pixels), *network.image_shape).split(500):
            model(part)
    handle.remove()
    return torch.cat(read).flatten(1).double().numpy()
