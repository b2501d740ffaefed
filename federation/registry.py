"""Named things that outside packages may add to: attacks, defenses, tasks, datasets, models."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from federation.errors import UsageError

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Entries by name, filled by a decorator and, for outside packages, by an entry-point group.

    Args:
        kind: the singular noun used in messages, such as "attack".
        entry_points: the entry-point group that is loaded on the first look-up, or None where packages cannot add.
    """

    def __init__(self, kind: str, entry_points: str | None = None) -> None:
        self.kind = kind
        self._group = entry_points
        self._entries: dict[str, Entry] = {}
        self._loaded = entry_points is None

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Return a decorator that stores what it decorates under `name`; raises UsageError for a name taken twice."""

        def store(entry: Entry) -> Entry:
            self.add(name, entry)
            return entry

        return store

    def add(self, name: str, entry: Entry) -> None:
        """Store `entry` under `name`; raises UsageError where another entry has that name."""
        if self._entries.get(name, entry) is not entry:
            raise UsageError(f"the {self.kind} name {name!r} is taken by {self._entries[name]!r}; choose another")
        self._entries[name] = entry

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load_entry_points()
        return sorted(self._entries)

    def get(self, name: str) -> Entry:
        """The entry called `name`; raises UsageError that lists near matches where there is none."""
        self._load_entry_points()
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(sorted(self._entries))}"
            raise UsageError(f"no {self.kind} is called {name!r}; {hint}")
        return self._entries[name]

    def _load_entry_points(self) -> None:
        if self._loaded or self._group is None:
            return
        self._loaded = True
        for point in importlib.metadata.entry_points(group=self._group):
            loaded = point.load()
            if point.name not in self._entries:
                self.add(point.name, loaded)


def load_class_from_file(reference: str) -> type:
    """Import the class that `path/to/file.py:ClassName` names.

    Raises:
        UsageError: where the reference has another form, the file is missing or fails to import, or has no such class.
    """
    path_text, separator, class_name = reference.rpartition(":")
    path = Path(path_text)
    if not separator or path.suffix != ".py":
        raise UsageError(f"{reference!r} is not of the form path/to/file.py:ClassName")
    if not path.is_file():
        raise UsageError(f"{path} (from {reference!r}) does not exist")
    module_name = f"keyhole_plugin_{path.stem}_{abs(hash(path.resolve()))}"
    if module_name in sys.modules:
        return _class_in(sys.modules[module_name], class_name, path)
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None, "a .py file always has a specification"
    assert spec.loader is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise UsageError(f"{path} could not be imported: {type(error).__name__}: {error}") from error
    return _class_in(module, class_name, path)


def _class_in(module: ModuleType, class_name: str, path: Path) -> type:
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        classes = ", ".join(name for name, value in vars(module).items() if isinstance(value, type)) or "none"
        raise UsageError(f"{path} has no class {class_name!r}; its classes: {classes}")
    return found
