"""Key-Net for weights that are only averaged: channel keys, one set for all clients, from the key agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from defenses.base import Claim, Magnitudes
from defenses.keynet.channel import GAIN_ERROR, ChannelTransform
from defenses.keynet.keys import ChannelKeys, KeyPolicy, draw_keys, identity_keys
from defenses.quantization import Quantization
from defenses.registry import DEFENSES
from defenses.stack import Stack
from defenses.stages import ClientTransform, KeyMaterial, Transform
from federation.channels import ChannelSpace
from federation.messages import SERVER
from federation.network import Network
from federation.protocol import RoundContext
from federation.secret_root import SecretRoot
from federation.weights import Weights


@DEFENSES.register("keynet")
@dataclass(frozen=True)
class KeyNet(Transform):
    """Weights keyed by channel: What = (A_out x I) W (A_in x I)^-1 (Byrne, DeCann and Bloom 2020; Gusain 2021).

    Gusain's server averages what all clients keyed alike; the network is never run in keyed form, so keys need not
    commute with any activation.

    Attributes:
        gain_range: s; gains are log-uniform on [1/s, s]; 1 means permutations alone.
        outputs: the key of the class outputs: "identity", "permutation" or "monomial".
        publish_key: use identity keys and say so to everyone (the leaky twin).
    """

    gain_range: float = 2.0
    outputs: Literal["identity", "permutation", "monomial"] = "permutation"
    publish_key: bool = False

    name: ClassVar[str] = "keynet"
    keyed: ClassVar[bool] = True
    key_holders: ClassVar[str] = "key agent and every client (one key)"
    collusion_bound: ClassVar[str] = "one client"

    @property
    def policy(self) -> KeyPolicy:
        """What is drawn for which channel space; raises UsageError for a range that is none."""
        return KeyPolicy(self.gain_range, self.outputs)

    def check(self, network: Network) -> None:
        """Raise UsageError where the network's graph cannot carry channel keys."""
        self.claims(network)  # tracing and the policy raise what is wrong

    def draw_keys(self, network: Network, receiver: str, root: SecretRoot) -> KeyMaterial:
        """One set of keys for every client, none for the server."""
        if self.publish_key:
            return KeyMaterial(public=identity_keys(network.channels).to_bytes())
        if receiver == SERVER:
            return KeyMaterial()
        return KeyMaterial(secret=draw_keys(network.channels, root, self.policy).to_bytes())

    def claims(self, network: Network) -> Mapping[str, Claim]:
        """Permuted or scaled, where a key touches one of the tensor's channel spaces; else plain."""
        spaces = network.channels.spaces

        def claim(name: str) -> Claim:
            axes = network.channels.axes[name]
            touched = [spaces[index] for index in (axes.out_space, axes.in_space) if index is not None]
            return Claim.TRANSFORMED if any(self._changes(space) for space in touched) else Claim.PLAIN

        return {spec.name: claim(spec.name) for spec in network.layout}

    def _changes(self, space: ChannelSpace) -> bool:
        permuted = self.policy.permutes(space) and space.size > 1
        return not self.publish_key and (permuted or (self.policy.scales(space) and self.gain_range > 1))

    @property
    def amplification(self) -> float:
        """Gains of both sides of a kernel at their worst: s squared."""
        return self.gain_range**2

    def stated_error(self, magnitudes: Magnitudes) -> float:
        """The float32 rounding of gains and inverse gains, relative to the largest weight; 0 for permutations."""
        return magnitudes.weights * GAIN_ERROR if self.gain_range > 1 else 0.0

    def leaky_twin(self) -> KeyNet:
        """Identity keys, published."""
        return replace(self, publish_key=True)

    def client(self, name: str, material: KeyMaterial, network: Network) -> ClientTransform:
        """A client's part, with the shared keys."""
        keys = ChannelKeys.from_bytes(material.public if self.publish_key else material.secret, network.channels)
        return KeyNetClient(ChannelTransform(keys, network.channels))


class KeyNetClient(ClientTransform):
    """The client's part of `KeyNet`."""

    def __init__(self, transform: ChannelTransform) -> None:
        self._transform = transform

    def apply(self, weights: Weights, context: RoundContext) -> Weights:
        """The keyed weights."""
        return self._transform.protect(weights)

    def undo(self, weights: Weights, context: RoundContext) -> Weights:
        """The weights themselves."""
        return self._transform.recover(weights)


@DEFENSES.register("keynet-quantized")
def keynet_quantized(
    gain_range: float = 2.0, levels: int = 127, norm: Literal["l2", "max"] = "max", bucket: int = 512
) -> Stack:
    """Key-Net, then QSGD on the difference of keyed weights, really bit-packed on the wire."""
    return Stack("keynet-quantized", [KeyNet(gain_range=gain_range), Quantization(levels, norm, bucket)])
