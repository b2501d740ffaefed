"""Names, near matches, entry points and classes from files."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from federation.errors import UsageError
from federation.registry import Registry, load_class_from_file


class Point:
    """An entry point as importlib.metadata hands it out."""

    def __init__(self, name: str, loaded: object) -> None:
        self.name = name
        self._loaded = loaded

    def load(self) -> object:
        return self._loaded


@pytest.fixture
def registry() -> Registry[object]:
    registry: Registry[object] = Registry("attack")
    for name in ("cosine", "dlg", "analytic"):
        registry.add(name, f"the {name}")
    return registry


def test_the_decorator_stores_and_returns_its_class(registry: Registry[object]) -> None:
    @registry.register("mine")
    class Mine:
        pass

    assert registry.get("mine") is Mine
    assert registry.names() == ["analytic", "cosine", "dlg", "mine"]


def test_a_name_is_taken_once(registry: Registry[object]) -> None:
    entry = registry.get("dlg")
    registry.add("dlg", entry)
    with pytest.raises(UsageError, match="attack name 'dlg' is taken by 'the dlg'"):
        registry.add("dlg", "another")


def test_a_misspelt_name_lists_near_matches(registry: Registry[object]) -> None:
    with pytest.raises(UsageError, match=r"no attack is called 'cosin'; did you mean cosine\?"):
        registry.get("cosin")
    with pytest.raises(UsageError, match="there are: analytic, cosine, dlg"):
        registry.get("xyz")


def test_entry_points_are_loaded_once_and_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def entry_points(group: str) -> list[Point]:
        asked.append(group)
        return [Point("outside", "an outside entry"), Point("own", "a replacement")]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    registry: Registry[object] = Registry("attack", "keyhole.attacks")
    registry.add("own", "the own entry")
    assert not asked
    assert registry.get("outside") == "an outside entry"
    assert registry.get("own") == "the own entry"
    assert registry.names() == ["outside", "own"]
    assert asked == ["keyhole.attacks"]


def test_a_class_is_loaded_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "plugin.py"
    file.write_text("from dataclasses import dataclass\n\n\n@dataclass\nclass Mine:\n    value: int = 3\n")
    assert load_class_from_file(f"{file}:Mine")().value == 3


@pytest.mark.parametrize("reference", ["plugin.py", "plugin:Mine", "Mine", ":Mine", "plugin.txt:Mine"])
def test_a_reference_of_another_form_is_refused(reference: str) -> None:
    with pytest.raises(UsageError, match="is not of the form"):
        load_class_from_file(reference)


def test_a_missing_file_or_class_is_named(tmp_path: Path) -> None:
    file = tmp_path / "plugin.py"
    with pytest.raises(UsageError, match="does not exist"):
        load_class_from_file(f"{file}:Mine")
    file.write_text("class Other: pass\nvalue = 1\n")
    with pytest.raises(UsageError, match="no class 'Mine'; its classes: Other"):
        load_class_from_file(f"{file}:Mine")
    with pytest.raises(UsageError, match="no class 'value'"):
        load_class_from_file(f"{file}:value")


def test_a_file_that_fails_to_import_is_named_with_its_error(tmp_path: Path) -> None:
    file = tmp_path / "plugin.py"
    file.write_text("1 / 0\n")
    with pytest.raises(UsageError, match=r"plugin\.py could not be imported: ZeroDivisionError: division by zero"):
        load_class_from_file(f"{file}:Mine")
