"""What a defense is: the roles it supplies, what it claims of the wire, what a position can make of a transcript."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

from defenses.inference import Inference
from federation.errors import KeyholeError
from federation.messages import Transcript
from federation.network import Network
from federation.protocol import Parties
from federation.secret_root import SecretRoot
from federation.threat import Position, View
from federation.weights import TensorSpec


class Claim(StrEnum):
    """What a defense says of one tensor on the wire; the wire audit holds it to that."""

    HIDDEN = "hidden"
    TRANSFORMED = "permuted or scaled"
    PLAIN = "plain"


class MalformedKeyClaim(KeyholeError):
    """A claim about keys that cannot be one: an unknown name, a wrong size, places that two claim, a gain under zero."""


class Defense(ABC):
    """A defense: public configuration that supplies the parties of a protocol and decodes what a position reads.

    Attributes:
        name: as in the registry and in every table.
        key_holders: who holds a key, in words, for the results.
        collusion_bound: what it takes to undo the defense by collusion, in words.
        quantises_updates: whether clients send a quantised difference to the round's global weights, as FedPAQ asks.
    """

    name: str
    key_holders: str = "nobody"
    collusion_bound: str = "none needed"
    quantises_updates: bool = False

    @abstractmethod
    def parties(self, network: Network, clients: Sequence[str], root: SecretRoot) -> Parties:
        """Server, clients and key agent for one federation; keys derive from `root`, and only from it."""

    @abstractmethod
    def view(
        self,
        transcript: Transcript,
        position: Position,
        held: Mapping[str, bytes],
        *,
        network: Network,
        sample_counts: Mapping[str, int],
    ) -> View:
        """What the transcript that a position reads amounts to, with the state that it holds and public facts alone.

        Args:
            transcript: the envelopes of one round that the position reads.
            position: where the adversary stands.
            held: serialised state of the parties that it holds, by wire name.
            network: the public architecture.
            sample_counts: public training-set sizes of the cohort.
        """

    @property
    def inference(self) -> Inference | None:
        """How it has images classified by somebody else; None where it does not encrypt images."""
        return None

    @abstractmethod
    def claims(self, network: Network) -> Mapping[str, Claim]:
        """What becomes of each tensor of an upload on the wire, by tensor name."""

    @abstractmethod
    def stated_error(self, magnitudes: Magnitudes) -> float:
        """The bound on the largest difference between a recovered aggregate and the plain weighted mean."""

    @abstractmethod
    def leaky_twin(self) -> Defense:
        """The same code path with nothing hidden: key published, permutation the identity, noise zero."""

    @abstractmethod
    def scheme(self) -> Mapping[str, Mapping[str, object]]:
        """Public description by stage: every option, no key. An adaptive adversary knows it; results store it."""

    def score_key_claims(
        self,
        claims: Mapping[str, Tensor],
        *,
        network: Network,
        victim: str,
        held: Mapping[str, bytes],
        keys: bytes,
    ) -> Mapping[str, float]:
        """How right an attack's claims about keys are, for the referee, as findings by name; nothing by default.

        Args:
            claims: what the attack claims, by name.
            network: the public architecture.
            victim: the client whose update was attacked.
            held: what the position held, by party: it decides in whose frame the position read the update.
            keys: this client's own state in that round, serialised.

        Raises:
            MalformedKeyClaim: for claims that cannot be about keys of this defense.
        """
        return {}

    def plain_share(self, network: Network) -> float:
        """Share of the values of an upload that cross the wire as they are, 0 to 1."""
        claims = self.claims(network)
        plain = sum(spec.size for spec in network.layout if claims[spec.name] is Claim.PLAIN)
        return plain / network.parameter_count


@dataclass(frozen=True)
class Magnitudes:
    """The magnitudes that a stated error refers to, largest absolute values over all tensors and clients.

    Attributes:
        weights: of the weights that are sent.
        update: of their difference to the round's global weights.
        clients: how many contributions are added.
    """

    weights: float
    update: float
    clients: int

    def scaled(self, factor: float) -> Magnitudes:
        """The magnitudes after a transform that grows values by at most `factor`."""
        return Magnitudes(self.weights * factor, self.update * factor, self.clients)


def uniform_claim(specs: Sequence[TensorSpec], claim: Claim) -> dict[str, Claim]:
    """The same claim for every tensor."""
    return {spec.name: claim for spec in specs}
