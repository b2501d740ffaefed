"""Sealed delivery: only the addressee opens, nothing can be changed, and two sealings differ."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.public import PrivateKey, SealedBox

from federation.errors import MalformedMessage
from federation.sealing import TransportKey, seal
from federation.secret_root import SecretRoot

ROOT = SecretRoot(bytes(range(32)))
KEY = TransportKey(ROOT)


@given(st.binary(max_size=200))
@settings(max_examples=30)
def test_the_addressee_opens_what_was_sealed(content: bytes) -> None:
    assert KEY.open(seal(content, KEY.public)) == content


def test_the_key_is_x25519_of_the_root() -> None:
    private = PrivateKey(ROOT.stream(32))
    assert KEY.public == bytes(private.public_key)
    assert SealedBox(private).decrypt(seal(b"content", KEY.public)) == b"content"
    assert TransportKey(ROOT).public == KEY.public
    assert TransportKey(ROOT.derive("another")).public != KEY.public


def test_nobody_else_opens_it() -> None:
    other = TransportKey(ROOT.derive("another"))
    with pytest.raises(MalformedMessage, match="cannot be opened"):
        other.open(seal(b"content", KEY.public))


def test_every_changed_byte_is_refused() -> None:
    sealed = seal(b"content", KEY.public)
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(MalformedMessage):
            KEY.open(bytes(changed))


@pytest.mark.parametrize("content", [b"", b"short", bytes(48), bytes(100)])
def test_what_was_never_sealed_is_refused(content: bytes) -> None:
    with pytest.raises(MalformedMessage):
        KEY.open(content)


def test_two_sealings_of_one_content_differ_and_show_nothing_of_it() -> None:
    content = b"a secret of thirty-two characters"
    one, other = (seal(content, KEY.public) for _ in range(2))
    assert one != other
    assert len(one) == len(content) + SealedBox(PrivateKey.generate()).encrypt(b"").__len__()
    assert content not in one
