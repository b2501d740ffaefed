"""Content addresses: what they depend on, and what they do not."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmark.artefacts import Code, Plan, code_digest, digest, source_digest
from federation.registry import load_class_from_file


def test_a_digest_depends_on_content_and_not_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2, 3]}) == digest({"b": (2, 3), "a": 1})
    others = [digest({"a": 1, "b": [3, 2]}), digest({"a": 1}, {"b": [2, 3]}), digest(), digest("a1"), digest("a", 1)]
    assert len({*others, digest({"a": 1, "b": [2, 3]})}) == 6
    assert len(digest()) == 20


def test_the_code_digest_follows_every_source_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_package_for_digests"
    (package / "inner").mkdir(parents=True)
    for name in ("__init__.py", "inner/__init__.py", "inner/part.py", "notes.txt"):
        (package / name).write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))

    def now() -> str:
        code_digest.cache_clear()
        return code_digest("some_package_for_digests")

    try:
        before = now()
        (package / "notes.txt").write_text("no code")
        assert now() == before
        (package / "inner" / "part.py").write_text("x = 1\n")
        changed = now()
        assert changed != before
        (package / "inner" / "part.py").rename(package / "inner" / "other.py")
        assert now() not in (before, changed)
    finally:
        code_digest.cache_clear()


def test_each_kind_of_artefact_follows_its_own_packages() -> None:
    code = Code.now()
    assert len({code.trainings, code.attacks, code.cells}) == 3
    assert code == Code.now()


def test_a_source_digest_is_that_of_the_file_behind_whatever_it_is(tmp_path: Path) -> None:
    file = tmp_path / "plug_in.py"
    file.write_text("class Thing:\n    def __call__(self): ...\n\ndef make(): ...\n")
    thing: Any = load_class_from_file(f"{file}:Thing")
    make = vars(__import__("sys").modules[thing.__module__])["make"]

    @functools.wraps(make)
    def wrapped() -> None: ...

    entries: list[Callable[..., Any]] = [thing, thing(), make, wrapped, partial(make), partial(partial(thing))]
    assert len({source_digest(entry) for entry in entries}) == 1
    assert source_digest(thing) != source_digest(SimpleNamespace)
    before = source_digest(thing)
    file.write_text(file.read_text() + "# changed\n")
    assert source_digest(thing) != before


@dataclass(frozen=True)
class Numbers(Plan):
    count: int

    @cached_property
    def squares(self) -> list[int]:
        return [number**2 for number in range(self.count)]


def test_a_plan_travels_without_what_it_computed() -> None:
    plan = Numbers(3)
    assert plan.squares == [0, 1, 4]
    assert plan.__getstate__() == {"count": 3}
    arrived = object.__new__(Numbers)
    arrived.__dict__.update(pickle.loads(pickle.dumps(plan.__getstate__())))
    assert arrived == plan
    assert "squares" not in vars(arrived)
