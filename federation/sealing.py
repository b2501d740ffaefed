"""Sealed delivery of keys: X25519 and XSalsa20-Poly1305 sealed boxes from libsodium."""

from __future__ import annotations

from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from federation.errors import MalformedMessage
from federation.secret_root import SecretRoot


class TransportKey:
    """A party's own transport key: what others seal with its public half, it alone can open."""

    def __init__(self, root: SecretRoot) -> None:
        self._private = PrivateKey(root.stream(PrivateKey.SIZE))

    @property
    def public(self) -> bytes:
        """The 32 bytes that others seal with."""
        return bytes(self._private.public_key)

    def open(self, sealed: bytes) -> bytes:
        """The content of a sealed box; raises MalformedMessage where it was not sealed for this key."""
        try:
            return SealedBox(self._private).decrypt(sealed)
        except (CryptoError, ValueError) as error:
            raise MalformedMessage(f"a sealed key message cannot be opened ({error})") from error


def seal(content: bytes, receiver_public: bytes) -> bytes:
    """Seal `content` so that only the owner of `receiver_public` can open it."""
    return SealedBox(PublicKey(receiver_public)).encrypt(content)
