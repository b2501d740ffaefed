"""Secret roots: derivation against RFC 2104 by hand, uniform draws, and a secret that stays one."""

from __future__ import annotations

import copy
import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from federation.errors import DataError, UsageError
from federation.secret_root import SecretRoot

ROOT = SecretRoot(bytes(range(32)))

labels = st.lists(st.one_of(st.integers(-3, 300), st.text(alphabet="s i1\x000", max_size=4)), min_size=1, max_size=3)


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """RFC 2104, written out, for keys of up to one block."""
    padded = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded) + message).digest()
    return hashlib.sha256(bytes(byte ^ 0x5C for byte in padded) + inner).digest()


def test_derive_is_hmac_over_encoded_labels() -> None:
    message = b"keyhole secret root: derive\0" + b"s" + bytes(7) + b"\x03key" + b"i" + bytes(7) + b"\x0212"
    assert ROOT.derive("key", 12) == SecretRoot(hmac_sha256(bytes(range(32)), message))


def test_stream_is_shake256_of_root_and_block_number() -> None:
    prefix = b"keyhole secret root: stream\0" + bytes(range(32))
    blocks = [hashlib.shake_256(prefix + number.to_bytes(8, "big")).digest(1 << 14) for number in range(3)]
    assert ROOT.stream(40_000) == b"".join(blocks)[:40_000]


@settings(deadline=None)
@given(labels, labels)
def test_labels_are_told_apart(one: list[str | int], other: list[str | int]) -> None:
    same = [(type(label), label) for label in one] == [(type(label), label) for label in other]
    assert (ROOT.derive(*one) == ROOT.derive(*other)) == same


def test_text_and_number_differ_and_derivation_never_repeats_its_root_or_stream() -> None:
    assert ROOT.derive("1") != ROOT.derive(1)
    assert ROOT.derive("a") != ROOT
    assert ROOT.derive("a") != SecretRoot(ROOT.stream(32))


@settings(deadline=None)
@given(st.lists(st.integers(0, 20_000), max_size=5))
def test_stream_does_not_depend_on_how_it_is_cut(sizes: list[int]) -> None:
    reader = ROOT.reader()
    pieces = [reader(size) for size in sizes]
    assert [len(piece) for piece in pieces] == sizes
    assert b"".join(pieces) == ROOT.stream(sum(sizes))


def test_fresh_roots_differ() -> None:
    assert SecretRoot.fresh() != SecretRoot.fresh()


@settings(deadline=None)
@given(st.integers(0, 200))
def test_permutation_is_one(size: int) -> None:
    assert sorted(ROOT.derive(size).reader().permutation(size)) == list(range(size))


def test_permutations_are_uniform() -> None:
    reader = ROOT.derive("uniform permutations").reader()
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(4800):
        drawn = tuple(reader.permutation(4).tolist())
        counts[drawn] = counts.get(drawn, 0) + 1
    assert len(counts) == 24
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_uniform_values() -> None:
    values = ROOT.derive("uniform values").reader().uniform(20_000)
    assert values.min() >= 0
    assert values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    assert np.array_equal(values * 2.0**53, np.floor(values * 2.0**53))


def test_saved_root_is_private_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "root"
    root = SecretRoot.fresh()
    root.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert SecretRoot.load(path) == root


@pytest.mark.parametrize("content", ["", "00" * 31, "zz" * 32, "00" * 32 + "0", "é" * 40])
def test_damaged_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "root"
    path.write_text(content, encoding="utf-8")
    path.chmod(0o600)
    with pytest.raises(DataError, match="not a readable secret root"):
        SecretRoot.load(path)


def test_missing_and_open_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a readable secret root"):
        SecretRoot.load(tmp_path / "none")
    path = tmp_path / "root"
    ROOT.save(path)
    path.chmod(0o644)
    with pytest.raises(DataError, match="chmod 600"):
        SecretRoot.load(path)


def test_secret_stays_secret() -> None:
    assert bytes(range(32)).hex()[:8] not in repr(ROOT)
    assert repr(ROOT) == f"{ROOT}" == "SecretRoot(<secret>)"
    with pytest.raises(UsageError):
        pickle.dumps(ROOT)
    with pytest.raises(UsageError):
        copy.deepcopy(ROOT)
    with pytest.raises(TypeError):
        hash(ROOT)


@pytest.mark.parametrize("secret", [b"", bytes(31), "x" * 32, 7])
def test_weak_secrets_are_refused(secret: object) -> None:
    with pytest.raises(UsageError, match="at least 32 bytes"):
        SecretRoot(secret)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [(), (True,), (1.5,), (b"x",)])
def test_bad_labels_are_refused(bad: tuple[object, ...]) -> None:
    with pytest.raises(UsageError, match="label"):
        ROOT.derive(*bad)  # type: ignore[arg-type]
