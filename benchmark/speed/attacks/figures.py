"""What every comparison of attacks reports: measured figures beside what they are to reach."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
        name: what was measured, in words.
        measured: the figure.
        unit: "x" for ratios, "dB", "%", "s", "images/s".
        required: what it has to reach; None where it is shown for the reader alone.
        aim: what it should reach.
        lower_is_better: whether it has to stay under these instead.
        detail: how it came about: both sides of a ratio, how many images.
    """

    name: str
    measured: float
    unit: str
    required: float | None = None
    aim: float | None = None
    lower_is_better: bool = False
    detail: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether it is what it has to be; None where nothing is required."""
        if self.required is None:
            return None
        return self.measured <= self.required if self.lower_is_better else self.measured >= self.required


@dataclass(frozen=True)
class CaseResult:
    """The figures of one case, and what a reader must know of how they were taken."""

    name: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()
