"""Privacy against accuracy: what each defense leaks at its worst, over the accuracy it keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import blended_transform_factory

from benchmark.store import UNDEFENDED
from leaderboard.figures.style import INK, QUIET, Picture, Styles, file_name, look, png
from leaderboard.ranking import Entry, Ranking
from leaderboard.tables.contents import victims
from leaderboard.trainings import TrainingSummary

COLUMNS = 3
FLOOR = "#eef2f6"
"""Colour of what is no better than a guess."""


def draw_tradeoffs(
    rankings: Sequence[Ranking], trainings: Sequence[TrainingSummary], styles: Styles
) -> Iterator[Picture]:
    """One figure a task, algorithm and kind of victim; one panel an adversary for whom there is a verdict."""

    def place(ranking: Ranking) -> tuple[str, str, str]:
        return ranking.setting.task, ranking.setting.algorithm, ranking.setting.victim_kind

    judged = [ranking for ranking in rankings if ranking.setting.exempt is None]
    for (task, algorithm, kind), members in groupby(judged, key=place):
        costs = {
            item.defense: item
            for item in trainings
            if (item.task, item.algorithm, item.reference) == (task, algorithm, "")
        }
        panels = [ranking for ranking in members if any(_drawable(entry, costs) for entry in ranking.entries)]
        if not panels:
            continue
        seeds = max(len(item.rows) for item in costs.values())
        provenance = next(iter(costs.values())).text("provenance")
        yield Picture(
            kind="tradeoff",
            name=file_name("tradeoff", task, algorithm, kind),
            title=f"Privacy against accuracy: {task}, {algorithm}, {victims(kind)}",
            caption=(
                "Mean PSNR of the worst case over attacks and rounds, over test accuracy; lower and further right is"
                " better. Bars: 95% intervals of the PSNR and of the accuracy's paired difference from plain. Below"
                f" the floor an attack does worse than a guess. {provenance}; {seeds} seed{'s' if seeds > 1 else ''}."
            ),
            png=_draw(panels, costs, styles),
        )


def _drawable(entry: Entry, costs: dict[str, TrainingSummary]) -> bool:
    return entry.summary is not None and entry.defense in costs


def _draw(panels: Sequence[Ranking], costs: dict[str, TrainingSummary], styles: Styles) -> bytes:
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    with look():
        figure = Figure(figsize=(4.3 * columns + 0.6, 3.7 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes, ranking in zip(grid.flat, panels, strict=False):
            _panel(axes, ranking, costs, styles)
            axes.set_ylim(*_limits(panels, costs))
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for index, axes in enumerate(grid.flat[: len(panels)]):
            if index + columns >= len(panels):
                # The lowest panel of its column, which the last row may not reach.
                axes.set_xlabel("Test accuracy (%)")
                axes.tick_params(labelbottom=True)
        for axes in grid[:, 0]:
            axes.set_ylabel("Reconstruction PSNR (dB)")
        drawn = dict.fromkeys(
            entry.defense for ranking in panels for entry in ranking.entries if _drawable(entry, costs)
        )
        handles = [_handle(name, styles) for name in sorted(drawn, key=list(styles.colours).index)]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)))
        return png(figure)


def _handle(name: str, styles: Styles) -> Line2D:
    label = f"{name} (no defense)" if name == UNDEFENDED else name
    colour = styles.colours[name]
    return Line2D([], [], color=colour, marker=styles.markers[name], linestyle="", markersize=8, label=label)


def _panel(axes: Axes, ranking: Ranking, costs: dict[str, TrainingSummary], styles: Styles) -> None:
    entries = [entry for entry in ranking.entries if _drawable(entry, costs)]
    floor = float(np.mean([entry.scored.floor for entry in entries]))
    reach = blended_transform_factory(axes.transAxes, axes.transData)
    axes.margins(x=0.15)
    axes.axhspan(-100, floor, color=FLOOR, zorder=0)
    axes.axhline(floor, color=QUIET, linestyle="--", linewidth=1.2, zorder=1)
    axes.text(0.02, floor, "floor", transform=reach, color=QUIET, fontsize=8.5, va="bottom", ha="left")
    # The first drawn is the largest, so that defenses which fall on one point all stay visible.
    ordered = sorted(entries, key=lambda entry: list(styles.colours).index(entry.defense))
    for index, entry in enumerate(ordered):
        item = costs[entry.defense]
        if entry.defense == UNDEFENDED:
            axes.axhline(entry.scored.psnr.mean, color=INK, linestyle=":", linewidth=1, zorder=1)
            axes.axvline(100 * item.accuracy, color=INK, linestyle=":", linewidth=1, zorder=1)
        _point(axes, entry, item, styles, size=max(11 - index, 7))
    axes.set_title(ranking.setting.adversary)
    missing = [f"{entry.defense}: {entry.verdict}" for entry in ranking.entries if entry.summary is None]
    if missing:
        plate = {"facecolor": FLOOR, "edgecolor": "none", "pad": 1.5}
        words = "\n".join(missing)
        axes.text(0.98, 0.03, words, transform=axes.transAxes, fontsize=8, color=QUIET, ha="right", bbox=plate)


def _point(axes: Axes, entry: Entry, item: TrainingSummary, styles: Styles, size: float) -> None:
    psnr, accuracy = entry.scored.psnr, 100 * item.accuracy
    across = None
    if item.difference is not None and np.isfinite(item.difference.low):
        spread = item.difference
        across = [[100 * (spread.mean - spread.low)], [100 * (spread.high - spread.mean)]]
    along = [[psnr.mean - psnr.low], [psnr.high - psnr.mean]] if np.isfinite(psnr.low) else None
    axes.errorbar(
        accuracy,
        psnr.mean,
        xerr=across,
        yerr=along,
        color=styles.colours[entry.defense],
        marker=styles.markers[entry.defense],
        markersize=size,
        markeredgecolor="white",
        elinewidth=1.2,
        capsize=2.5,
        zorder=3,
    )


def _limits(panels: Sequence[Ranking], costs: dict[str, TrainingSummary]) -> tuple[float, float]:
    """Range of PSNR that holds every point, its interval where it has one, and the floor, with room for words below."""
    scored = [entry.scored for ranking in panels for entry in ranking.entries if _drawable(entry, costs)]
    values = [value for item in scored for value in (item.psnr.low, item.psnr.high, item.psnr.mean, item.floor)]
    finite = [value for value in values if np.isfinite(value)]
    span = max(max(finite) - min(finite), 6)
    return min(finite) - 0.3 * span, max(finite) + 0.12 * span
