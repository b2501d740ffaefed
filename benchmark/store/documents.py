"""Results of a reproduction: one JSON document, written from dataclasses and checked against them when it is read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from benchmark.store.rows import EVALUATOR_VERSION, Manifest
from federation.errors import DataError
from federation.files import write_text

FILE = "result.json"


class _Result(Protocol):
    """A dataclass that holds a whole reproduction."""

    @property
    def manifest(self) -> Manifest: ...


Result = TypeVar("Result", bound=_Result)


@dataclass(frozen=True)
class Deviation:
    """Where the paper's procedure or figures and ours differ."""

    what: str
    effect: str
    """Measured here."""


def write_document(directory: Path, result: Any) -> Path:
    """Write `result.json`; raises DataError where a number is not finite, since JSON has no word for it."""
    try:
        text = json.dumps(asdict(result), indent=1, allow_nan=False)
    except ValueError as error:
        raise DataError(f"a figure of the reproduction is not a finite number ({error})") from error
    path = directory / FILE
    write_text(path, text + "\n")
    return path


def read_document(directory: Path, kind: type[Result], command: str) -> Result:
    """Read `result.json` as `kind`.

    Args:
        directory: the folder of the reproduction.
        kind: the dataclass that was written.
        command: what a person calls to write it, for messages.

    Raises:
        DataError: missing or malformed, or of another evaluator version.
    """
    path = directory / FILE
    if not path.is_file():
        raise DataError(f"{directory}: no {FILE}; give the folder that `{command}` wrote")
    try:
        result = TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"{path}: not a result of `{command}`: {place}: {first['msg']}") from error
    if result.manifest.evaluator_version != EVALUATOR_VERSION:
        raise DataError(
            f"{path}: figures of evaluator version {result.manifest.evaluator_version}, this is {EVALUATOR_VERSION};"
            " run the command again with --fresh"
        )
    return result


def check_inside(directory: Path, names: Iterable[str]) -> None:
    """Raise DataError for a file that the result names outside its own folder."""
    folder = directory.resolve()
    for name in names:
        if not (folder / name).resolve().is_relative_to(folder):
            raise DataError(f"{directory / FILE}: {name!r} lies outside the folder")
