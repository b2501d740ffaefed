"""Files are whole or not there."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from federation.files import atomic_write, write_bytes, write_text


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "result.json"
    with atomic_write(target) as temporary:
        temporary.write_text("content")
        assert not target.exists()
        assert (temporary.parent, temporary.suffix) == (target.parent, ".json")
    assert target.read_text() == "content"
    assert list(target.parent.iterdir()) == [target]


def test_an_error_leaves_the_older_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "result"
    write_text(target, "old")

    def fail_half_way() -> None:
        with atomic_write(target) as temporary:
            temporary.write_text("new")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_writers_of_one_file_do_not_share_a_temporary(tmp_path: Path) -> None:
    target = tmp_path / "result"
    with atomic_write(target) as one, atomic_write(target) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert target.read_text() == "one"


@pytest.mark.parametrize(("private", "mode"), [(True, 0o600), (False, 0o644)])
def test_modes(tmp_path: Path, private: bool, mode: int) -> None:
    target = tmp_path / "file"
    write_bytes(target, b"\x00\xff", private=private)
    assert stat.S_IMODE(target.stat().st_mode) == mode
    assert target.read_bytes() == b"\x00\xff"


def test_a_private_file_is_private_from_the_start(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "root", private=True) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600


def test_text_is_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "größer")
    assert (tmp_path / "text").read_bytes() == "größer".encode()
