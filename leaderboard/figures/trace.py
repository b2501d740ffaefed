"""The search of an attack: its own objective and the true quality of its images, over the evaluations that it spent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from leaderboard.figures.style import INK, QUIET, look, png

OBJECTIVE, PSNR = "#946b2d", "#2b6cb0"


class Traced(Protocol):
    """The search for one victim, point by point, by rising evaluations."""

    @property
    def evaluations(self) -> Sequence[int]:
        """Gradient evaluations so far."""
        ...

    @property
    def objective(self) -> Sequence[float]:
        """The attack's own objective."""
        ...

    @property
    def psnr(self) -> Sequence[float]:
        """Mean PSNR of the images, which the attack does not know."""
        ...


def draw_trace(traces: Sequence[Traced], title: str, floor: float | None = None) -> bytes:
    """Two panels, one above the other: the objective and the PSNR; each victim, the median, and lowest to highest.

    Where the objective still falls and the PSNR does not rise, the objective is at fault; where the objective stands
    still high up, the optimiser is.

    Args:
        traces: one a victim, at least one; a victim whose search ended early stays where it ended.
        title: what was tried on what.
        floor: PSNR of a guess without any attack, in dB.
    """
    steps = np.unique(np.concatenate([np.asarray(trace.evaluations) for trace in traces]))
    objective = np.stack([_held(trace.evaluations, trace.objective, steps) for trace in traces])
    quality = np.stack([_held(trace.evaluations, trace.psnr, steps) for trace in traces])
    with look():
        figure = Figure(figsize=(7.2, 5.4), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        _panel(above, steps, objective, OBJECTIVE)
        _panel(below, steps, quality, PSNR)
        if (objective[np.isfinite(objective)] > 0).all():
            above.set_yscale("log")
            above.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        if floor is not None:
            below.axhline(floor, color=QUIET, linestyle="--", linewidth=1.2)
            below.text(steps[-1], floor, "floor", color=QUIET, fontsize=8.5, va="bottom", ha="right")
        above.set(ylabel="The attack's own objective")
        below.set(ylabel="PSNR (dB), which it does not see", xlabel="Gradient evaluations of a restart")
        below.set_xlim(0, steps[-1])
        above.set_title(title)
        above.legend(loc="upper right")
        return png(figure)


def _panel(axes: Axes, steps: npt.NDArray[np.int64], values: npt.NDArray[np.float64], colour: str) -> None:
    """Thin lines for the victims, a thick one for their median, a band from the lowest to the highest."""
    lowest, highest = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    axes.fill_between(steps, lowest, highest, color=colour, alpha=0.15, linewidth=0, label="lowest to highest")
    for row in values:
        axes.plot(steps, row, color=colour, linewidth=0.7, alpha=0.6)
    median = np.nanmedian(values, axis=0)
    axes.plot(steps, median, color=colour, linewidth=2.2, label=f"median of {len(values)} victims")
    end = median[-1]
    axes.annotate(
        f"{end:.3g}", (steps[-1], end), (4, 0), textcoords="offset points", color=INK, fontsize=8.5, va="center",
        annotation_clip=False,
    )  # fmt: skip


def _held(evaluations: Sequence[int], values: Sequence[float], steps: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Values at all steps: between and after its own points a trace stays where it was; infinities are left out."""
    places = np.searchsorted(np.asarray(evaluations), steps, side="right") - 1
    found = np.asarray(values, dtype=np.float64)[np.maximum(places, 0)]
    found[(places < 0) | ~np.isfinite(found)] = np.nan
    return found
