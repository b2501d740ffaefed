"""A defense as a stack of stages: any number of transforms, then one codec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from defenses.base import Claim, Defense, Magnitudes
from defenses.inference import Inference
from defenses.keyrings import keyring_from_bytes
from defenses.parties import StackAgent, StackClient, StackServer
from defenses.reading import read_stack
from defenses.stages import Codec, KeyMaterial, KeysInForce, Stage, Transform
from federation.errors import UsageError
from federation.messages import SERVER, Transcript
from federation.network import Network
from federation.protocol import Parties
from federation.secret_root import SecretRoot
from federation.threat import Position, View


class Stack(Defense):
    """Transforms applied in order, then a codec; what a client sends passes them all, what it receives comes back.

    Args:
        name: the defense's name in tables.
        stages: the stages from the weights outwards; exactly the last must be a codec, or the last two where the one
            encrypts what the other quantised.

    Raises:
        UsageError: for a stack without a codec at its end, or with one elsewhere; for a stage that re-keys what the
            server cannot read.
    """

    def __init__(self, name: str, stages: Sequence[Stage]) -> None:
        *transforms, codec = _joined(name, stages)
        if not isinstance(codec, Codec) or not all(isinstance(stage, Transform) for stage in transforms):
            kinds = ", ".join(
                f"{stage.name} ({'codec' if isinstance(stage, Codec) else 'transform'})" for stage in stages
            )
            raise UsageError(f"defense {name!r}: a stack is any number of transforms and then one codec, not {kinds}")
        rekeying = [index for index, stage in enumerate(transforms) if stage.rekeys]
        if rekeying and (rekeying != [len(transforms) - 1] or not codec.opens(KeyMaterial())):
            raise UsageError(
                f"defense {name!r}: the server re-keys weights that it can read as numbers; the stage with rotation or "
                "per-client keys must be the only one and stand last before a codec without a key, such as plain or qsgd"
            )
        self.name = name
        self.codec = codec
        self.transforms = tuple(stage for stage in transforms if isinstance(stage, Transform))
        self.quantises_updates = codec.quantises_updates
        self.key_holders = "; ".join(stage.key_holders for stage in self.stages if stage.keyed) or "nobody"
        self.collusion_bound = "; ".join(stage.collusion_bound for stage in self.stages if stage.keyed) or "none needed"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages, from the weights outwards."""
        return (*self.transforms, self.codec)

    def parties(self, network: Network, clients: Sequence[str], root: SecretRoot) -> Parties:
        """See `Defense.parties`; raises UsageError where a stage cannot carry the network."""
        for stage in self.stages:
            stage.check(network)
        party_clients = {name: StackClient(name, self.transforms, self.codec, network, root) for name in clients}
        server = StackServer(self.transforms, self.codec, network, root)
        needs_keys = any(stage.keyed for stage in self.stages)
        transport = {name: client.transport_public for name, client in party_clients.items()}
        transport[server.name] = server.transport_public
        agent = StackAgent(self.stages, network, root, transport) if needs_keys else None
        return Parties(server, party_clients, agent, self.codec.exchanges)

    def view(
        self,
        transcript: Transcript,
        position: Position,
        held: Mapping[str, bytes],
        *,
        network: Network,
        sample_counts: Mapping[str, int],
    ) -> View:
        """See `Defense.view`."""
        return read_stack(self.transforms, self.codec, transcript, held, network=network, sample_counts=sample_counts)

    @property
    def inference(self) -> Inference | None:
        """That of its codec; transforms are of weights alone, and say nothing of images."""
        return None if self.transforms else self.codec.inference

    def claims(self, network: Network) -> Mapping[str, Claim]:
        """The strongest claim of any stage, per tensor."""
        strength = [Claim.PLAIN, Claim.TRANSFORMED, Claim.HIDDEN]
        per_stage = [stage.claims(network) for stage in self.stages]
        return {
            spec.name: max((claims[spec.name] for claims in per_stage), key=strength.index) for spec in network.layout
        }

    def stated_error(self, magnitudes: Magnitudes) -> float:
        """The stages' bounds added up, each grown by the transforms that it has to come back through."""
        bound, growth = 0.0, 1.0
        for transform in self.transforms:
            bound += growth * transform.stated_error(magnitudes.scaled(growth))
            growth *= transform.amplification
        return bound + growth * self.codec.stated_error(magnitudes.scaled(growth))

    def score_key_claims(
        self,
        claims: Mapping[str, Tensor],
        *,
        network: Network,
        victim: str,
        held: Mapping[str, bytes],
        keys: bytes,
    ) -> Mapping[str, float]:
        """What the outermost stage that knows such claims makes of them: its keys are those on the wire."""
        if not claims or not keys:
            return {}
        own = keyring_from_bytes(keys, self.stages, f"the state of {victim}")
        server = keyring_from_bytes(held[SERVER], self.stages, "the server's state") if held.get(SERVER) else {}
        for stage in reversed(self.stages):
            in_force = KeysInForce(victim, own[stage.name], server.get(stage.name, KeyMaterial()))
            scores = stage.score_key_claims(claims, network, in_force)
            if scores:
                return scores
        return {}

    def leaky_twin(self) -> Stack:
        """The stack of the stages' leaky twins."""
        return Stack(f"{self.name} (leaky twin)", [stage.leaky_twin() for stage in self.stages])

    def scheme(self) -> Mapping[str, Mapping[str, object]]:
        """Every stage's public options."""
        return {stage.name: stage.options() for stage in self.stages}


def _joined(name: str, stages: Sequence[Stage]) -> Sequence[Stage]:
    """The stages, with a quantiser and the codec that encrypts its levels made one."""
    match stages:
        case [*transforms, Codec() as quantiser, Codec() as codec]:
            try:
                joined = codec.encrypting(quantiser)
            except UsageError as error:
                raise UsageError(f"defense {name!r}: {error}") from error
            return stages if joined is None else [*transforms, joined]
        case _:
            return stages
