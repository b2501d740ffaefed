"""The sound Paillier protocol: clients share the private key, the server only adds ciphertexts.

Each round the clients first agree on one power-of-two bound per tensor, in public, so that every value of a tensor is
encoded at one fixed exponent. Each client scales its weights by n_k / n, packs them with a tag in every ciphertext
(`tags`), and sends fresh encryptions; the server multiplies ciphertexts and can open none. What an individual client
sent is never decrypted by the others' software, but any client holds the key: against a client that taps another's
upload the transport has to protect.

The tags are against a server that makes "the sum" one party's update: with the public key it can encrypt zeros in
place of the others' contributions, and clients without tags would decrypt and spread the result. Each client knows
the sum of its cohort's tags, and the tags depend on round, cohort and bounds. A ciphertext in which a contribution is
missing, replaced, added, counted twice or from another round, or that is said to be the sum of another cohort, has a
wrong tag but for a chance of 2^-28, and one wrong tag refuses the message.

The tags do not stop:

- a server that works with a client: the client holds the private key (and the secret of the tags) anyway;
- a server that shifts values: it can multiply an encryption of a chosen difference, zero in the tag's slot, onto the
  sum. This is no integrity;
- a server that sends an old sum again, withholds one, or sends clients different true sums;
- contributions that one client makes twice in one round under the same cohort and bounds (a repeated round): they have
  the same tags and stand in for each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from defenses.base import Claim, Magnitudes
from defenses.paillier import keys
from defenses.paillier.client import PaillierClient
from defenses.paillier.client_keys import ClientKeys
from defenses.paillier.codec import PackedFixedPoint, power_of_two_exponent
from defenses.paillier.server import PaillierServer
from defenses.quantization import Quantization
from defenses.registry import DEFENSES
from defenses.stages import ClientCodec, Codec, KeyMaterial, ServerCodec
from federation.errors import MalformedMessage, UsageError
from federation.messages import SERVER
from federation.network import Network
from federation.protocol import Exchange, Moment
from federation.secret_root import SecretRoot
from federation.weights import Kind

BOUNDS = "bounds"
"""The exchange in which the cohort agrees on one bound per tensor."""


@DEFENSES.register("paillier")
@dataclass(frozen=True)
class Paillier(Codec):
    """Additively homomorphic encryption of the weights (Paillier 1999), packed; the private key is with the clients.

    Attributes:
        key_bits: length of the modulus; 2048 at least.
        minimum_parties: a client sends nothing to a cohort of fewer.
        publish_key: hand the clients' keys to everyone (the leaky twin).
    """

    key_bits: int = 2048
    minimum_parties: int = 2
    publish_key: bool = False

    name: ClassVar[str] = "paillier"
    keyed: ClassVar[bool] = True
    key_holders: ClassVar[str] = "every client (one private key)"
    collusion_bound: ClassVar[str] = "one client"
    exchanges: ClassVar[tuple[Exchange, ...]] = (Exchange(BOUNDS, Moment.BEFORE_UPLOAD),)

    def __post_init__(self) -> None:
        if self.key_bits < keys.SECURE_BITS:
            raise UsageError(f"paillier: key_bits is {self.key_bits}; it must be {keys.SECURE_BITS} or more")

    def draw_keys(self, network: Network, receiver: str, root: SecretRoot) -> KeyMaterial:
        """The modulus in clear to everyone, the private key and the secret of the tags to clients alone."""
        client_keys = ClientKeys.draw(self.key_bits, root)
        if self.publish_key:
            return KeyMaterial(public=client_keys.to_bytes())
        return KeyMaterial(b"" if receiver == SERVER else client_keys.to_bytes(), client_keys.public)

    def opens(self, material: KeyMaterial) -> bool:
        """Only the private key opens anything."""
        return bool(material.secret) or (self.publish_key and bool(material.public))

    def claims(self, network: Network) -> Mapping[str, Claim]:
        """Everything is hidden but counters, which are no secret; nothing is under a published key."""
        weights = Claim.PLAIN if self.publish_key else Claim.HIDDEN
        return {spec.name: Claim.PLAIN if spec.kind is Kind.COUNTER else weights for spec in network.layout}

    def stated_error(self, magnitudes: Magnitudes) -> float:
        """Half a unit of fixed point a client, under a bound of at most twice the largest weight, and one rounding."""
        packing = PackedFixedPoint(self.key_bits, magnitudes.clients)
        exponent = power_of_two_exponent(magnitudes.weights)
        return packing.stated_error(exponent) + magnitudes.weights * 2.0**-24

    def leaky_twin(self) -> Paillier:
        """The same protocol with the private key and the tags' secret published."""
        return replace(self, publish_key=True)

    def client(self, name: str, material: KeyMaterial, network: Network) -> ClientCodec:
        """A client's part, with the private key; raises MalformedMessage where it does not fit the public modulus."""
        return PaillierClient(name, self._client_keys(name, material), network.layout, self.minimum_parties)

    def server(self, material: KeyMaterial, network: Network) -> ServerCodec:
        """The server's part, with the modulus alone; before it has arrived, the server can add nothing."""
        return PaillierServer(self._public_key(material.public) if material.public else None, network.layout)

    def encrypting(self, quantiser: Codec) -> Codec | None:
        """See `Codec.encrypting`: QSGD's levels by tensor, at a max-norm that the cohort has in common."""
        from defenses.paillier.quantized import PaillierQuantized  # derives from this class

        if not isinstance(quantiser, Quantization):
            return None
        if quantiser != Quantization(levels=quantiser.levels):
            raise UsageError(
                "qsgd before paillier quantises a tensor at a time by the cohort's max-norm; give it levels alone, "
                f"not {quantiser.options()}"
            )
        return PaillierQuantized(self.key_bits, self.minimum_parties, self.publish_key, quantiser.levels)

    def _client_keys(self, name: str, material: KeyMaterial) -> ClientKeys:
        """A client's keys; raises MalformedMessage where they do not fit the public modulus."""
        client_keys = ClientKeys.from_bytes(material.public if self.publish_key else material.secret)
        if not self.publish_key and material.public != client_keys.public:
            raise MalformedMessage(f"key message to {name}: the private key is not the one of the public modulus")
        return client_keys

    def _public_key(self, public: bytes) -> keys.PaillierPublicKey:
        """The modulus, as it is sent to everyone."""
        if self.publish_key:
            return ClientKeys.from_bytes(public).private_key.public_key
        return keys.public_key_from_bytes(public)
