"""What the reproductions share: options, clearing an earlier result, and what is printed in the end."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console

from benchmark.store.documents import FILE
from federation.errors import UsageError
from keyhole.output import WIDTH_ELSEWHERE, shown
from leaderboard.reproduction.report import ReproductionReport

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]


class Timed(Protocol):
    """A result, a dataclass, that says how long it took."""

    @property
    def seconds(self) -> float: ...


def clear(directory: Path, folders: Collection[str]) -> None:
    """Remove an earlier result; anything that is not one is left alone, with an error.

    Args:
        directory: the reproduction's folder.
        folders: what it is known by besides its result: folders that are there once something is finished.

    Raises:
        UsageError: where there is something else in it.
    """
    if not directory.exists() or not any(directory.iterdir()):
        return
    if not (directory / FILE).is_file() and not any((directory / folder).is_dir() for folder in folders):
        raise UsageError(f"{directory} is not the folder of a reproduction; --fresh removes only those")
    shutil.rmtree(directory)


def print_result(result: Timed, report: ReproductionReport, directory: Path, *, as_json: bool) -> None:
    """The tables and where the page is, or the result as JSON."""
    if as_json:
        content: Any = result
        typer.echo(json.dumps(asdict(content), indent=1))
        return
    # a pipe or log has no width of its own; the tables fit this one
    console = Console(width=None if sys.stdout.isatty() else WIDTH_ELSEWHERE)
    console.print(report.terminal)
    typer.echo(
        f"Took {result.seconds / 60:.1f} min to compute. Results: {shown(directory)}; page: {shown(report.page)}"
    )
