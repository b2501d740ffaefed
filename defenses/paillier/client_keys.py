"""What a client of the Paillier protocol holds: the private key, and the secret of the tags."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from defenses.paillier import keys
from federation.errors import MalformedMessage
from federation.secret_root import SecretRoot

TAG_SECRET_BYTES = 32


@dataclass(frozen=True)
class ClientKeys:
    """The same for all clients; the server has neither.

    Attributes:
        private_key: opens every ciphertext.
        tag_secret: 32 bytes that the tags of contributions derive from.
    """

    private_key: keys.PaillierPrivateKey
    tag_secret: bytes = field(repr=False)

    @classmethod
    def draw(cls, bits: int, root: SecretRoot) -> ClientKeys:
        """The keys of a stage's root, for a modulus of `bits` bits; the same for every client."""
        return cls(
            _private_key(bits, root.stream(TAG_SECRET_BYTES)),
            root.derive("contribution tags").stream(TAG_SECRET_BYTES),
        )

    @property
    def public(self) -> bytes:
        """The modulus, serialised."""
        return keys.public_key_to_bytes(self.private_key.public_key)

    def to_bytes(self) -> bytes:
        """The tag secret, then the private key. Secret."""
        return self.tag_secret + keys.private_key_to_bytes(self.private_key)

    @classmethod
    def from_bytes(cls, data: bytes) -> ClientKeys:
        """Read what `to_bytes` wrote; raises MalformedMessage for anything else."""
        if len(data) <= TAG_SECRET_BYTES:
            raise MalformedMessage(
                f"Paillier client keys of {len(data)} bytes; a private key must follow the {TAG_SECRET_BYTES} of a tag secret"
            )
        return cls(keys.private_key_from_bytes(data[TAG_SECRET_BYTES:]), data[:TAG_SECRET_BYTES])


@lru_cache(maxsize=4)
def _private_key(bits: int, seed: bytes) -> keys.PaillierPrivateKey:
    """The private key of a root: the same for every receiver, so that its primes are searched for once."""
    return keys.generate_keypair(bits, SecretRoot(seed).reader())
