"""What every speed comparison needs: interleaved timing, the machine in words, and tables."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from benchmark.provenance import hardware, library_versions

Work: TypeAlias = Callable[[], object]
Clock: TypeAlias = Callable[[], float]

Stage: TypeAlias = Callable[[str, int, int], None]
"""Told of progress: the stage, how many of its steps are done, and of how many."""


def quiet(stage: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


def interleaved_medians(
    cases: Mapping[str, Work],
    repeats: int,
    *,
    clock: Clock = time.process_time,
    each: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Median seconds of each case. The cases take turns, so that what else the machine does slows all of them alike.

    Args:
        cases: what to time, by name; one more turn of each comes first and is not counted.
        repeats: turns of each that are counted.
        clock: CPU seconds of this process; `time.perf_counter` where cases run on several threads.
        each: called after every timed case.
    """
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for work in cases.values():
        work()
    for _ in range(repeats):
        for name, work in cases.items():
            start = clock()
            work()
            taken[name].append(clock() - start)
            each()
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


@dataclass(frozen=True)
class Table:
    """A table of a speed report, as text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def machine(libraries: Sequence[str]) -> dict[str, Any]:
    """Where the figures come from: processor, cores, load average when asked, versions of these libraries."""
    found = hardware()
    versions = library_versions()
    return {
        "cpu": found["cpu"],
        "cores": found["cores"],
        "load": os.getloadavg()[0],
        "versions": {name: versions[name] for name in ("python", *libraries)},
    }


def machine_line(facts: Mapping[str, Any]) -> str:
    """`machine` in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return f"{facts['cpu']}, {facts['cores']} cores (load {facts['load']:.1f}); {versions}"


def seconds_as_text(seconds: float) -> str:
    """Three significant digits with a unit that suits."""
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms"), (120.0, 1.0, "s")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds / 60:.3g} min"
