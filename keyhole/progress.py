"""Progress for people at a terminal, plain lines for logs, nothing where a program reads the output."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_SECONDS_BETWEEN_LINES = 10.0


class Quiet:
    """Says nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def begin(self, stage: str, total: int) -> None:
        """A stage of so many jobs begins."""

    def done(self, label: str) -> None:
        """A job of the stage ended."""


class Lines(Quiet):
    """A line when a stage begins and ends, and one every few seconds in between."""

    def __init__(self) -> None:
        self._stage, self._total, self._count, self._last = "", 0, 0, 0.0

    def begin(self, stage: str, total: int) -> None:
        """A stage of so many jobs begins."""
        self._stage, self._total, self._count = stage, total, 0
        print(f"{stage}: {total} jobs", flush=True)

    def done(self, label: str) -> None:
        """A job of the stage ended."""
        self._count += 1
        if time.monotonic() - self._last > _SECONDS_BETWEEN_LINES or self._count == self._total:
            self._last = time.monotonic()
            print(f"{self._stage}: {self._count}/{self._total}, last: {label}", flush=True)


class Bars(Quiet):
    """A bar for every stage."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[label]}", markup=True),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, stage: str, total: int) -> None:
        """A stage of so many jobs begins."""
        self._task = self._progress.add_task(stage, total=total, label="")

    def done(self, label: str) -> None:
        """A job of the stage ended."""
        assert self._task is not None, "a job ends within a stage"
        self._progress.update(self._task, advance=1, label=label.replace("[", "("))


def progress_for_this_output(*, quiet: bool) -> Quiet:
    """Bars on a terminal, lines elsewhere, nothing if `quiet`."""
    if quiet:
        return Quiet()
    return Bars() if sys.stderr.isatty() else Lines()
