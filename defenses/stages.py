"""The two kinds of stage that a defense is stacked from: transforms of weights, and the codec that ends the stack.

A stage object is public configuration (a frozen dataclass whose fields are its options). From key material it makes
the parts that clients and server play; those parts own the keys.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, TypeAlias

from torch import Tensor, nn

from defenses.base import Claim, Magnitudes
from defenses.inference import Inference
from federation.messages import Envelope
from federation.network import Network
from federation.protocol import Exchange, RoundContext
from federation.secret_root import SecretRoot
from federation.threat import AGGREGATE, Ciphertext, View
from federation.training import cross_entropy_gradients
from federation.weights import Weights

Admit: TypeAlias = Callable[[str, Weights], Weights]


@dataclasses.dataclass(frozen=True)
class KeyMaterial:
    """What the key agent sends one party for one stage: `secret` travels sealed, `public` in clear."""

    secret: bytes = b""
    public: bytes = b""


@dataclasses.dataclass(frozen=True)
class KeyRequest:
    """What the key agent asks a stage for.

    Attributes:
        network: the public architecture.
        receiver: the party that the keys are for.
        epoch: which keys, counted from 0.
        clients: the clients that are to have keys in this epoch.
        roots: the stage's own root of an epoch.
    """

    network: Network
    receiver: str
    epoch: int
    clients: tuple[str, ...]
    roots: Callable[[int], SecretRoot]

    @property
    def root(self) -> SecretRoot:
        """The stage's own root of this epoch."""
        return self.roots(self.epoch)


@dataclasses.dataclass(frozen=True)
class KeysInForce:
    """The true keys of an update that was attacked; the referee's alone.

    Attributes:
        client: who sent it.
        key: this client's key material of one stage.
        server: the server's, where the position read the update as the server does, in the server's frame.
    """

    client: str
    key: KeyMaterial
    server: KeyMaterial = dataclasses.field(default_factory=KeyMaterial)


class Stage(ABC):
    """One layer of a defense.

    Attributes:
        name: the stage's name in stacks, results and the public scheme.
        keyed: whether it hides anything behind a key; only then can it stand in `hidden_by` of a view.
        key_holders, collusion_bound: in words, for the results.
        rekeys: whether its keys change while a federation runs, or differ by client; the server then has a part.
    """

    name: ClassVar[str]
    keyed: ClassVar[bool] = False
    key_holders: ClassVar[str] = "nobody"
    collusion_bound: ClassVar[str] = "none needed"

    @property
    def rekeys(self) -> bool:
        """See the class."""
        return False

    def options(self) -> dict[str, object]:
        """The stage's public options."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    def check(self, network: Network) -> None:
        """Raise UsageError where this stage cannot carry the network; the default carries any."""

    def key_epoch(self, round_number: int) -> int:
        """Which key a round uses; keys are issued anew whenever this changes. The default never rotates."""
        return 0

    def draw_keys(self, network: Network, receiver: str, root: SecretRoot) -> KeyMaterial:
        """Key material for one party (a client or the server) from this stage's own root and epoch."""
        return KeyMaterial()

    def keys_for(self, request: KeyRequest) -> KeyMaterial:
        """Key material for one party; what the agent calls. Stages that re-key need more than one epoch's root."""
        return self.draw_keys(request.network, request.receiver, request.root)

    @abstractmethod
    def claims(self, network: Network) -> Mapping[str, Claim]:
        """What becomes of each tensor on the wire."""

    def opens(self, material: KeyMaterial) -> bool:
        """Whether this key material suffices to undo the stage."""
        return not self.keyed or bool(material.secret or material.public)

    def score_key_claims(
        self, claims: Mapping[str, Tensor], network: Network, keys: KeysInForce
    ) -> Mapping[str, float]:
        """How right claims about this stage's keys are; nothing by default. Raises MalformedKeyClaim."""
        return {}

    @abstractmethod
    def stated_error(self, magnitudes: Magnitudes) -> float:
        """The bound on what the stage adds to the error of a recovered aggregate, for values of these magnitudes."""

    @abstractmethod
    def leaky_twin(self) -> Stage:
        """The same stage with nothing hidden."""


class ClientTransform:
    """A client's part of a transform; the default leaves everything as it is.

    `apply` and `undo` act on weights, the other two on local training.
    """

    def apply(self, weights: Weights, context: RoundContext) -> Weights:
        """What leaves this stage towards the wire."""
        return weights

    def undo(self, weights: Weights, context: RoundContext) -> Weights:
        """The inverse of `apply`."""
        return weights

    def transform_images(self, images: Tensor) -> Tensor:
        """The images that training sees."""
        return images

    def step_gradients(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor] | None:
        """The gradients of one local step, or None to leave them to the other stages."""
        return None


class ServerTransform(ABC):
    """The server's part of a transform whose keys change or differ by client: it re-keys without opening.

    The server keeps its global weights in a frame of its own, which never changes; clients have theirs.

    Attributes:
        alike: whether all clients are in one frame.
    """

    alike: bool = False

    @abstractmethod
    def admit(self, sender: str, weights: Weights) -> Weights:
        """One client's transformed weights, brought to the frame in which the server averages."""

    @abstractmethod
    def address(self, receiver: str, weights: Weights) -> Weights:
        """The average, brought to the frame of one client."""


class Transform(Stage):
    """A stage that maps weights to weights of the same layout, linearly, so that averaging commutes with it."""

    @property
    def amplification(self) -> float:
        """The most by which the stage, or undoing it, grows a value or an error; 1 for an isometry."""
        return 1.0

    @abstractmethod
    def client(self, name: str, material: KeyMaterial, network: Network) -> ClientTransform:
        """A client's part, from the key material that this client received."""

    @property
    def key_per_client(self) -> bool:
        """Whether one client's key opens nothing of another's."""
        return False

    def server(self, material: KeyMaterial, network: Network) -> ServerTransform | None:
        """The server's part, where its frame is not the clients' and it has what leads from one to the other."""
        return None


class ClientCodec(ABC):
    """A client's part of a codec: weights to bytes and back."""

    @abstractmethod
    def encode_initial(self, weights: Weights, context: RoundContext) -> bytes:
        """The first global message."""

    @abstractmethod
    def encode(self, weights: Weights, base: Weights, context: RoundContext) -> bytes:
        """A contribution; `base` are the global weights as they came off the wire this round."""

    @abstractmethod
    def decode(self, payload: bytes) -> Weights:
        """The global weights that a broadcast carries; raises MalformedMessage."""

    @abstractmethod
    def decode_upload(self, payload: bytes, base: Weights, share: float) -> Weights:
        """One client's weights from its contribution, as far as this codec's key allows; raises MalformedMessage."""

    def offer(self, phase: str, weights: Weights, context: RoundContext) -> list[Envelope]:
        """This client's part of one of the codec's exchanges; `weights` are what is about to be encoded."""
        return []

    def take(self, phase: str, inbox: Sequence[Envelope], context: RoundContext) -> None:
        """What the exchange brought."""


class ServerCodec(ABC):
    """The server's part of a codec: it combines contributions without opening what it has no key for."""

    @abstractmethod
    def combine(self, uploads: Mapping[str, bytes], base: bytes, context: RoundContext, admit: Admit) -> bytes:
        """The new global message from the cohort's contributions by client; raises MalformedMessage.

        Args:
            uploads: contributions by client.
            base: the global message that these clients received.
            context: the round's public facts.
            admit: brings one client's weights to the server's frame; the identity unless a transform re-keys.
        """

    @abstractmethod
    def remap(self, payload: bytes, change: Callable[[Weights], Weights]) -> bytes:
        """A global message with its weights changed by a public or server-held map; raises UsageError if sealed."""

    def answer(self, phase: str, inbox: Sequence[Envelope], context: RoundContext) -> list[Envelope]:
        """The server's part of one of the codec's exchanges."""
        return []


class Codec(Stage):
    """The stage that ends a stack: it makes bytes of weights, and the server adds in its terms.

    Attributes:
        exchanges: the further phases that it needs each round.
        quantises_updates: whether it sends a quantised difference to the round's global weights.
    """

    exchanges: ClassVar[tuple[Exchange, ...]] = ()
    quantises_updates: ClassVar[bool] = False

    @property
    def inference(self) -> Inference | None:
        """See `Defense.inference`."""
        return None

    @abstractmethod
    def client(self, name: str, material: KeyMaterial, network: Network) -> ClientCodec:
        """A client's part, from the key material that this client received."""

    @abstractmethod
    def server(self, material: KeyMaterial, network: Network) -> ServerCodec:
        """The server's part, from the key material that the server received."""

    def encrypting(self, quantiser: Codec) -> Codec | None:
        """The codec that adds up under this one's encryption what another makes of the weights, where there is one.

        So a stack may end in two codecs, such as `[qsgd, paillier]`.

        Raises:
            UsageError: where there is one, but not for the other's options.
        """
        return None

    def closed_view(
        self, network: Network, before: bytes, after: Mapping[str, bytes], hidden_by: frozenset[str]
    ) -> View:
        """What a round's messages amount to for a position that cannot open them; by default ciphertext.

        Args:
            network: the public architecture.
            before: the global message at the start of the round.
            after: contributions by sender, and a released global message under `threat.AGGREGATE`.
            hidden_by: the keyed stages of the stack, none of which is undone.

        Raises:
            MalformedMessage: for messages that are none of this codec.
        """
        return Ciphertext(self.name, sum(len(payload) for sender, payload in after.items() if sender != AGGREGATE))


class LocalStepsOfStages:
    """Local training as the stages of a stack want it: images pass all of them, the first that acts gives gradients."""

    def __init__(self, transforms: Sequence[ClientTransform]) -> None:
        self._transforms = transforms

    def transform_images(self, images: Tensor) -> Tensor:
        """The images after every stage."""
        for transform in self._transforms:
            images = transform.transform_images(images)
        return images

    def step_gradients(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The gradients of the first stage that supplies them, else those of the mean cross-entropy."""
        for transform in self._transforms:
            gradients = transform.step_gradients(model, images, labels)
            if gradients is not None:
                return gradients
        return cross_entropy_gradients(model, images, labels)
