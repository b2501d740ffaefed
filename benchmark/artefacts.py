"""Content addresses: the name of an artefact is the hash of all that decides its content."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import inspect
import json
import sys
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

_LIBRARIES = ("torch", "numpy", "scipy", "safetensors", "phe", "gmpy2", "pynacl")


class Plan:
    """Base of frozen dataclasses that travel to workers: their fields do, what they computed and kept does not."""

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]


def digest(*parts: Any) -> str:
    """The SHA-256 of the parts as canonical JSON, in 20 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@dataclasses.dataclass(frozen=True)
class Code:
    """Hashes of the code that made a kind of artefact, taken once a run: an edit in mid-run does not split the run.

    Attributes:
        trainings: of what trains and protects.
        attacks: of what attacks.
        cells: of all that decides a cell, scores included.
    """

    trainings: str
    attacks: str
    cells: str

    @classmethod
    def now(cls) -> Code:
        """The code as it stands on disk."""
        return cls(
            trainings=code_digest("federation", "defenses", "benchmark"),
            attacks=code_digest("federation", "attacks"),
            cells=code_digest("federation", "attacks", "defenses", "benchmark"),
        )


@lru_cache
def code_digest(*packages: str) -> str:
    """The hash of the source of these packages and of the versions of the libraries that they compute with."""
    sources = []
    for package in packages:
        folder = Path(inspect.getfile(sys.modules.get(package) or __import__(package))).parent
        sources += [
            (f"{package}/{path.relative_to(folder)}", hashlib.sha256(path.read_bytes()).hexdigest())
            for path in sorted(folder.rglob("*.py"))
        ]
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return digest(sources, versions)


def source_digest(entry: Any) -> str:
    """The hash of the file that a class or function comes from: what a plug-in outside the packages was when it ran."""
    while isinstance(entry, partial):
        entry = entry.func
    origin = inspect.unwrap(entry) if inspect.isroutine(entry) else entry if isinstance(entry, type) else type(entry)
    return hashlib.sha256(Path(inspect.getfile(origin)).read_bytes()).hexdigest()[:20]
