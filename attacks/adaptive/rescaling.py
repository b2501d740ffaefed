"""What gradients of a rescalable network state about gains on its channels, without any data.

Scale every value of one channel by a > 0: the rows that write it (kernels, biases, batch norm's weight and bias) by a,
the columns that read it by 1 / a. Where nothing but linear maps, ReLU, LeakyReLU and max pooling acts on the channel,
the network's function stays as it is, and so the loss; its derivative at a = 1 is

    sum over what writes the channel of w g  =  sum over what reads it of w g                                  (1)

with g the gradient at w, for any batch, loss and network. Batch norm keeps (1) as well where it normalises by the
statistics of the batch, as in training: it maps a channel scaled by a, with its weight and bias scaled by a, to a times
its result, but for its epsilon, an error of the order of epsilon over the channel's variance.

Channel keys with gains d make weights What[o, i] = w d_o / d_i and differences of weights, hence updates, likewise. With
e = d^2 the products that can be seen are w g e_o / e_i, and (1) reads, summed over the entries that o and i share,

    sum_i M[r, i] e_i / e_r  =  sum_o M[o, r] e_r / e_o,     M = What * (update),                              (2)

e = 1 for the image's channels, for biases' constant input and wherever the scheme has no gains. That is one equation for
each channel and update, in as many unknowns as there are channels: a flow that is conserved at every channel.

An update is a difference of weights, rate times the sum of the gradients g_k of its K local steps, each at its own
weights w_k. With K = 1 equation (2) is exact, w being the weights before it. With more it is off by

    sum over j < k of rate^2 <g_j, g_k>, what writes the channel less what reads it,

since w_k is w less the steps before it: second order in the rate, and small where the steps' gradients have little in
common. Averages of several clients' updates from the same weights satisfy (2) like single ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from attacks.adaptive.block_cholesky import SymmetricBlocks
from attacks.adaptive.flow_derivatives import FlowDerivatives, starts_of
from attacks.adaptive.monomial import input_channels, per_channel
from federation.channel_map import POSITIVELY_HOMOGENEOUS
from federation.channels import ChannelMap, ChannelSpace, TensorAxes
from federation.network import Network
from federation.weights import Kind, Weights


@dataclass(frozen=True)
class KeyedUpdate:
    """One update in the frame of one set of keys: weights before and after local training."""

    before: Weights
    after: Weights


def conserves(space: ChannelSpace) -> bool:
    """Whether equation (1) holds for the channels of a space."""
    return space.role == "hidden" and space.activations <= POSITIVELY_HOMOGENEOUS | {"batch_norm"}


ROUNDING = 2.0**-24
"""Standard deviation, relative to a float32 weight, of the rounding in the difference of two: training and the key round
each of them once, uniformly within half a unit in the last place, so that it is sqrt(4 / 3) * 2^-24 at most."""


class RescalingEquations:
    """Equations (2) of some updates.

    Shapes: T updates, E equations (channels for which (1) holds), U unknowns, N products that the network has.

    Args:
        network: whose updates they are.
        updates: at least one, all in one frame.
        unknown: indices of the spaces whose gains are unknown; elsewhere they are 1.
    """

    def __init__(self, network: Network, updates: Sequence[KeyedUpdate], unknown: frozenset[int]) -> None:
        channel_map = network.channels
        sizes = [space.size for space in channel_map.spaces]
        starts = starts_of(sizes)
        self._places = sum(sizes) + 1  # every channel, then the constant input of biases
        self._products, self._variances, self._writes, self._reads = _products(
            network, updates, starts, self._places - 1
        )
        self.unknown = _channels_of(channel_map, starts, lambda space: space.index in unknown)
        self.equations = _channels_of(channel_map, starts, conserves)
        self._balanced = [space.index for space in channel_map.spaces if conserves(space)]
        self.spaces = {space.index: starts[space.index] for space in channel_map.spaces if space.index in unknown}
        self._sizes = sizes

    def __len__(self) -> int:
        return len(self._products)

    def flows(self, logs: Tensor) -> tuple[Tensor, Tensor]:
        """What is written less what is read of each channel, and the sum of magnitudes, both [T, E], at log e [U]."""
        terms = self._products * self._ratios(logs)
        balance, size = self._at_channels(terms, -1), self._at_channels(terms.abs(), 1)
        return balance[:, self.equations], size[:, self.equations]

    def rounding(self, logs: Tensor) -> Tensor:
        """Variance [E] that the rounding of weights to float32 leaves in every update's flows, at log e [U]."""
        ratios = self._ratios(logs)
        return self._at_channels((self._variances * ratios.square())[None], 1)[0, self.equations]

    def normal(self, flows: Tensor, logs: Tensor, deviations: Tensor, prior: float) -> tuple[Tensor, SymmetricBlocks]:
        """Half the gradient [U] and the Gauss-Newton curvature of the squared flows plus prior * logs^2, at log e [U].

        Args:
            flows: [T, E] over their deviations.
            logs: where.
            deviations: [E].
            prior: of every unknown.
        """
        jacobian = self._jacobian
        slope, ratios = prior * logs, self._ratios(logs)
        curvature = SymmetricBlocks(jacobian.slices, torch.full_like(logs, prior))
        for products, own in zip(self._products, flows, strict=True):
            for part, matrix in jacobian.at(products * ratios):
                scaled = matrix / deviations[part.rows][:, None]
                slope[part.unknowns] += scaled.T @ own[part.rows]
                curvature.add(part.blocks, scaled.T @ scaled)
        return slope, curvature

    def derivatives(self, logs: Tensor, update: int) -> Tensor:
        """Derivatives [E, U] of one update's flows by log e, all of them at once: for few channels."""
        whole = logs.new_zeros(len(self.equations), len(self.unknown))
        for part, matrix in self._jacobian.at(self._products[update] * self._ratios(logs)):
            whole[part.rows, part.unknowns] = matrix
        return whole

    @cached_property
    def _jacobian(self) -> FlowDerivatives:
        return FlowDerivatives(self._sizes, self._writes, self._reads, self._balanced, list(self.spaces))

    def by_space(self, values: Tensor) -> dict[int, Tensor]:
        """Values [U] of the unknowns by the index of their space."""
        everywhere = values.new_zeros(self._places)
        everywhere[self.unknown] = values
        return {space: everywhere[start : start + self._sizes[space]] for space, start in self.spaces.items()}

    def moved(self) -> Tensor:
        """How much the updates moved each unknown's channel, [U]: the magnitudes of its products, summed."""
        return self._at_channels(self._products.abs(), 1).sum(0)[self.unknown]

    def _ratios(self, logs: Tensor) -> Tensor:
        """e of what each product [N] is read from over e of where it is written."""
        everywhere = logs.new_zeros(self._places)
        everywhere[self.unknown] = logs
        return (everywhere[self._reads] - everywhere[self._writes]).exp()

    def _at_channels(self, terms: Tensor, sign: int) -> Tensor:
        """Terms [T, N] summed where they are written, plus or minus where they are read: [T, places]."""
        return torch.stack([self._at_channels_of(each, sign) for each in terms])

    def _at_channels_of(self, terms: Tensor, sign: int) -> Tensor:
        total = terms.new_zeros(self._places)
        return total.index_add(0, self._writes, terms).index_add(0, self._reads, terms, alpha=sign)


def _products(
    network: Network, updates: Sequence[KeyedUpdate], starts: Sequence[int], constant: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What * (update) summed over shared entries [T, N], its variance by rounding [N], where it is written and read."""
    found: list[Tensor] = []
    variances: list[Tensor] = []
    writes: list[Tensor] = []
    reads: list[Tensor] = []

    def channels(spaces: Sequence[int]) -> Tensor:
        """The channels along an axis, by their places among all."""
        return torch.cat([torch.arange(network.channels.spaces[space].size) + starts[space] for space in spaces])

    for spec in network.layout:
        axes = network.channels.axes[spec.name]
        if spec.kind is not Kind.PARAMETER or not axes.out_spaces:
            continue
        found.append(torch.stack([_product(update, spec.name, axes) for update in updates]))
        sample = updates[0].before[spec.name]
        variances.append(per_channel((ROUNDING * sample.double().square()).square(), axes).sum(2).flatten())
        read = input_channels(sample, axes)
        rows = channels(axes.out_spaces)[:, None]
        columns = torch.full_like(rows, constant) if read is None else channels(axes.in_spaces)[read]
        writes.append(rows.expand_as(columns).flatten())
        reads.append(columns.flatten())
    return torch.cat(found, dim=1), torch.cat(variances), torch.cat(writes), torch.cat(reads)


def _product(update: KeyedUpdate, name: str, axes: TensorAxes) -> Tensor:
    before, after = update.before[name].double(), update.after[name].double()
    return per_channel(before * (before - after), axes).sum(2).flatten()


def _channels_of(channel_map: ChannelMap, starts: Sequence[int], chosen: Callable[[ChannelSpace], bool]) -> Tensor:
    places = [torch.arange(space.size) + starts[space.index] for space in channel_map.spaces if chosen(space)]
    return torch.cat(places) if places else torch.empty(0, dtype=torch.int64)
