"""Key-Net for weights that are only averaged: channel keys from the key agent, one set for all clients or one each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from defenses.base import Claim, Magnitudes
from defenses.keynet.blending import ROUNDING
from defenses.keynet.channel import GAIN_ERROR, ChannelTransform
from defenses.keynet.key_claims import score_channel_claims
from defenses.keynet.keys import ChannelKeys, draw_keys, identity_keys
from defenses.keynet.mixing import WIDEST
from defenses.keynet.policy import KeyKind, KeyPolicy, Outputs
from defenses.keynet.rekeying import KeyNetServer, draw_in_frame, in_servers_frame, read_veils
from defenses.quantization import Quantization
from defenses.registry import DEFENSES
from defenses.stack import Stack
from defenses.stages import ClientTransform, KeyMaterial, KeyRequest, KeysInForce, ServerTransform, Transform
from federation.channels import ChannelSpace
from federation.errors import UsageError
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
    commute with any activation and any kind of key will do, batch-norm vectors and biases included.

    With `rotation` or `per_client` the server goes between frames, see `rekeying`. Who can open what:

    - a client opens what is sent in its own frame: with one key for all, everything on the wire in that epoch; with a
      key a client, its own messages alone;
    - a client that was revoked opens nothing that is sent after the revocation, unless the server helps;
    - the server alone opens nothing, but brings all rounds of all clients to one frame;
    - the server and any one client, revoked or not, open everything; so does the key agent.

    Attributes:
        gain_range: s; gains are log-uniform on [1/s, s]; 1 means permutations alone.
        outputs: the key of the class outputs: "identity", "permutation" or "monomial".
        publish_key: use identity keys and say so to everyone (the leaky twin).
        kind: "monomial", "soft" or "orthogonal" keys of hidden channel spaces, see `KeyPolicy`.
        alpha, dominance: terms of a soft key and the share of the largest.
        rotation: rounds after which keys are drawn anew; None: never. Either this or `per_client` makes keys revocable.
        per_client: every client has keys of its own.

    Raises:
        UsageError: for an option out of its range, or keys whose products could be badly conditioned.
    """

    gain_range: float = 2.0
    outputs: Outputs = "permutation"
    publish_key: bool = False
    kind: KeyKind = "monomial"
    alpha: int = 4
    dominance: float = 0.625
    rotation: int | None = None
    per_client: bool = False

    name: ClassVar[str] = "keynet"
    keyed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rotation is not None and self.rotation < 1:
            raise UsageError(f"keynet: keys rotate every 1 round or more, not {self.rotation}; leave it out for never")
        self.policy.check_products(2 if self.rekeys else 1)

    @property
    def policy(self) -> KeyPolicy:
        """What is drawn for which channel space."""
        return KeyPolicy(self.gain_range, self.outputs, self.kind, self.alpha, self.dominance)

    @property
    def rekeys(self) -> bool:
        """Whether the server goes between frames."""
        return not self.publish_key and (self.rotation is not None or self.per_client)

    @property
    def key_per_client(self) -> bool:
        """See `Transform.key_per_client`."""
        return self.rekeys and self.per_client

    @property
    def key_holders(self) -> str:  # type: ignore[override]
        """Who holds keys, in words."""
        clients = "every client (a key each)" if self.per_client else "every client (one key)"
        return f"key agent and {clients}" + ("; server (re-keying matrices)" if self.rekeys else "")

    @property
    def collusion_bound(self) -> str:  # type: ignore[override]
        """What it takes to open everything, in words."""
        return "one client and the server" if self.per_client else "one client"

    def check(self, network: Network) -> None:
        """Raise UsageError where the network's graph cannot carry channel keys, or a space is too wide to be mixed."""
        for space in network.channels.spaces:  # tracing raises what is wrong with the graph
            if self.policy.kind_of(space) != "monomial" and space.size > WIDEST:
                raise UsageError(
                    f"keynet: {space.origins[0]}: {self.kind} keys mix up to {WIDEST} channels, these outputs have "
                    f"{space.size}; use monomial keys, or a narrower layer"
                )

    def key_epoch(self, round_number: int) -> int:
        """The number of rotations so far."""
        return round_number // self.rotation if self.rotation is not None and self.rekeys else 0

    def draw_keys(self, network: Network, receiver: str, root: SecretRoot) -> KeyMaterial:
        """One set of keys for every client, none for the server."""
        if self.publish_key:
            return KeyMaterial(public=identity_keys(network.channels).to_bytes())
        if receiver == SERVER:
            return KeyMaterial()
        return KeyMaterial(secret=draw_keys(network.channels, root, self.policy).to_bytes())

    def keys_for(self, request: KeyRequest) -> KeyMaterial:
        """Keys of the receiver's frame; for the server, where it re-keys, what leads from its own frame to others."""
        if not self.rekeys:
            return super().keys_for(request)
        return draw_in_frame(request, self.policy, per_client=self.per_client)

    def claims(self, network: Network) -> Mapping[str, Claim]:
        """Permuted, scaled or mixed, where a key touches one of the tensor's channel spaces; else plain."""
        spaces = network.channels.spaces

        def claim(name: str) -> Claim:
            touched = [spaces[index] for index in network.channels.axes[name].spaces]
            return Claim.TRANSFORMED if any(self._changes(space) for space in touched) else Claim.PLAIN

        return {spec.name: claim(spec.name) for spec in network.layout}

    def _changes(self, space: ChannelSpace) -> bool:
        permuted = self.policy.permutes(space) and space.size > 1
        return not self.publish_key and (permuted or (self.policy.scales(space) and self.gain_range > 1))

    @property
    def amplification(self) -> float:
        """That of the keys on both sides of a kernel; a veil and the server's keys behind it grow values twice over."""
        if self.publish_key:
            return 1.0
        if self.kind == "orthogonal":
            return self._products_of_orthogonal_keys.growth
        return self.policy.growth ** (2 if self.rekeys else 1)

    @property
    def _rounding_growth(self) -> float:
        """See `KeyPolicy.rounding_growth`, for the products of keys that values meet."""
        if self.kind == "orthogonal":
            return self._products_of_orthogonal_keys.rounding_growth
        return self.policy.rounding_growth ** (2 if self.rekeys else 1)

    @property
    def _products_of_orthogonal_keys(self) -> KeyPolicy:
        """The product of two orthogonal keys is one as well, and uniform; only gains multiply."""
        return KeyPolicy(self.gain_range ** (2 if self.rekeys else 1), kind="orthogonal")

    def stated_error(self, magnitudes: Magnitudes) -> float:
        """What the rounding of keyed weights to float32 adds, relative to the largest weight; 0 for permutations.

        Keyed weights are rounded once by the client, and where the server re-keys once on their way to its frame and
        once on the way back; recovered weights are rounded once more.

        - Monomial keys: every rounding is relative to the value itself, half a unit in the last place (u). Client and
          server agree on a factor to 3 u each (two gains and their product are rounded to float32); in the simplest
          case it is the very same factor, which cancels: 2 u; with all four steps of re-keying (4 + 4 * 3) u.
        - Keys that mix: a keyed value is up to `amplification` times the largest weight, and its rounding comes back
          grown, see `KeyPolicy.rounding_growth`.
        """
        if self.publish_key or (self.kind == "monomial" and self.gain_range == 1):
            return 0.0
        if self.kind == "monomial":
            return magnitudes.weights * (16 * ROUNDING if self.rekeys else GAIN_ERROR)
        roundings = 3 if self.rekeys else 1
        return magnitudes.weights * ROUNDING * (1 + 2**-10) * (1 + roundings * self._rounding_growth)

    def score_key_claims(
        self, claims: Mapping[str, Tensor], network: Network, keys: KeysInForce
    ) -> Mapping[str, float]:
        """See `score_channel_claims`; the server reads all rounds of all clients in its own frame, where it re-keys."""
        if self.publish_key:
            return {}
        true = ChannelKeys.from_bytes(keys.key.secret, network.channels, self.policy)
        if keys.server.secret:
            veils = read_veils(keys.server, network.channels, self.policy)
            true = in_servers_frame(true, keys.client, veils)
        spaces = network.channels.spaces
        permuted = [space.index for space in spaces if self.policy.permutes(space) and space.size > 1]
        scaled = [space.index for space in spaces if self.policy.scales(space) and self.gain_range > 1]
        return score_channel_claims(claims, true, permuted, scaled)

    def leaky_twin(self) -> KeyNet:
        """Identity keys, published."""
        return replace(self, publish_key=True)

    def client(self, name: str, material: KeyMaterial, network: Network) -> ClientTransform:
        """A client's part, with its keys."""
        if self.publish_key:
            keys = ChannelKeys.from_bytes(material.public, network.channels)
        else:
            keys = ChannelKeys.from_bytes(material.secret, network.channels, self.policy)
        return KeyNetClient(ChannelTransform(keys, network.channels))

    def server(self, material: KeyMaterial, network: Network) -> ServerTransform | None:
        """The server's part, once it has received what leads from its frame to the clients'."""
        return KeyNetServer(material, network.channels, self.policy) if material.secret else None


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
