"""What clients tell one another by way of the server and need not add up: sealed under a secret that clients share."""

from __future__ import annotations

from nacl.exceptions import CryptoError
from nacl.secret import Aead

from federation.errors import MalformedMessage
from federation.secret_root import SecretRoot

OVERHEAD = Aead.NONCE_SIZE + Aead.MACBYTES
"""Bytes by which a sealed content is longer than it was."""


class ClientsBox:
    """Seals with XChaCha20-Poly1305 under fresh random nonces (libsodium).

    Args:
        secret: at least 32 bytes that all clients hold and the server does not.
    """

    def __init__(self, secret: bytes) -> None:
        self._box = Aead(SecretRoot(secret).derive("sealed between clients").stream(Aead.KEY_SIZE))

    def seal(self, content: bytes, *purpose: str | int) -> bytes:
        """The content, to be opened by who states the same purpose; `OVERHEAD` bytes longer."""
        return bytes(self._box.encrypt(content, _label(purpose)))

    def open(self, sealed: bytes, where: str, *purpose: str | int) -> bytes:
        """The sealed content; raises MalformedMessage where it was not sealed by a client for this purpose."""
        try:
            return self._box.decrypt(sealed, _label(purpose))
        except (CryptoError, ValueError) as error:
            raise MalformedMessage(f"{where}: not sealed by a client for this purpose ({error})") from error


def _label(purpose: tuple[str | int, ...]) -> bytes:
    """One encoding a purpose: each part behind its length."""
    parts = [str(part).encode() for part in purpose]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
