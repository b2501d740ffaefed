"""Whether a network with channel-keyed weights still computes its function, its outputs keyed and nothing else changed.

For weights that are only averaged it need not. For a network that is run in keyed form it must, and an attacker who
runs the keyed network can then do with it what one could with the network itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from defenses.keynet.policy import KeyKind, KeyPolicy
from federation.channel_map import POSITIVELY_HOMOGENEOUS
from federation.channels import ChannelMap, ChannelSpace
from federation.errors import UsageError

_PERMUTATIONS = "use permutations alone (gain_range 1)"
_INSTEAD = {
    "batch_norm": "fold it into the convolution before it, or use permutations alone (gain_range 1)",
    "relu6": "use ReLU, or permutations alone (gain_range 1)",
}
_INSTEAD_OF_MIXING = {
    "max_pool": "use average pooling, or monomial keys",
    **dict.fromkeys(POSITIVELY_HOMOGENEOUS - {"max_pool"}, "use monomial keys"),
}


@dataclass(frozen=True)
class Obstacle:
    """One node of the graph that the keys of its channels do not pass.

    Attributes:
        operation: its name, as in PyTorch.
        place: where the node stands: its name, and the path of its layer.
        layers: the layers whose outputs it gets, or that have tensors in its channel space.
        kind: the kind of key there.
        instead: what would do.
    """

    operation: str
    place: str
    layers: tuple[str, ...]
    kind: KeyKind
    instead: str

    def __str__(self) -> str:
        keys = "gains" if self.kind == "monomial" else f"{self.kind} keys"
        of = f" of {', '.join(self.layers)}" if self.layers else ""
        return f"{self.place}: {keys} on the outputs{of} do not pass {self.operation}; {self.instead}"


def obstacles(channel_map: ChannelMap, policy: KeyPolicy) -> list[Obstacle]:
    """What keeps keys of this policy from leaving the network's function as it is; empty where nothing does.

    Permutations pass every operation that is traced. Gains pass ReLU, LeakyReLU and max pooling, and whatever is linear
    channel by channel (average pooling, flatten, residual sums), but not ReLU6, sigmoid, products of feature maps, or
    batch norm whose running variance is keyed as A v. Keys that mix channels pass nothing but what is linear.
    """
    return [
        Obstacle(
            passage.operation,
            passage.place,
            _layers(channel_map, space),
            policy.kind_of(space),
            _instead(passage.operation, policy, space),
        )
        for space in channel_map.spaces
        for passage in space.passages
        if passage.operation in _blocking(space, policy)
    ]


def check_equivalent(channel_map: ChannelMap, policy: KeyPolicy) -> None:
    """Raise UsageError, naming the first node and what would do, where keys of this policy change the function."""
    found = obstacles(channel_map, policy)
    if found:
        nodes = len({obstacle.place for obstacle in found})  # one behind a concatenation meets the keys of all parts
        more = f"; it is the first of {nodes} such nodes" if nodes > 1 else ""
        raise UsageError(f"{found[0]}{more}")


def _blocking(space: ChannelSpace, policy: KeyPolicy) -> frozenset[str]:
    if policy.kind_of(space) != "monomial":
        return space.activations
    scaled = policy.scales(space) and policy.gain_range > 1
    return space.activations - POSITIVELY_HOMOGENEOUS if scaled else frozenset()


def _instead(operation: str, policy: KeyPolicy, space: ChannelSpace) -> str:
    if policy.kind_of(space) != "monomial":
        return _INSTEAD_OF_MIXING.get(operation, _PERMUTATIONS)
    return _INSTEAD.get(operation, _PERMUTATIONS)


def _layers(channel_map: ChannelMap, space: ChannelSpace) -> tuple[str, ...]:
    writing = (name for name, axes in channel_map.axes.items() if space.index in axes.out_spaces)
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in writing))
