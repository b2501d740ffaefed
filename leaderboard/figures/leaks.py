"""Leakage against leaks: what an attack that sees every round so far makes of more and more of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter, ScalarFormatter

from benchmark.store import ROUNDS_SO_FAR, UNDEFENDED
from leaderboard.figures.style import QUIET, Picture, Styles, file_name, look, png
from leaderboard.lines import Line, Setting, Summary
from leaderboard.ranking import Ranking
from leaderboard.statistics import Interval
from leaderboard.tables.contents import victims
from leaderboard.trainings import TrainingSummary

KEY_FINDINGS = {
    "median error of log gains": "Median error of log gains",
    "share of pixels placed rightly": "Pixels placed rightly",
}
"""What is drawn of how right an attack's claims about keys are, where there is any of it, with the axis' name."""

SHARES = frozenset({"Identified", "share of pixels placed rightly"})
"""What is drawn from 0 to 100%; other findings are errors, on an axis of logarithms."""


@dataclass(frozen=True)
class _Point:
    """One measurement at one place of the horizontal axis; low and high are its interval, or the mean again."""

    leaks: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class _Panel:
    """One adversary's lines of one attack, defense by defense.

    Attributes:
        setting: whose.
        lines: by defense, in order of snapshots; scored ones alone.
        leaks: by snapshot, how many updates of the victims' client had been seen by then.
    """

    setting: Setting
    lines: dict[str, list[Line]]
    leaks: dict[int, int]

    @classmethod
    def of(cls, setting: Setting, lines: Sequence[Line]) -> _Panel:
        """From the scored lines of one attack in one setting."""
        ordered = sorted(lines, key=lambda line: line.snapshot)
        by_defense = {line.defense: [item for item in ordered if item.defense == line.defense] for line in lines}
        each = {line.snapshot: _updates(line) for line in ordered}
        return cls(setting, by_defense, dict(zip(each, np.cumsum(list(each.values())).tolist(), strict=True)))

    def points(self, defense: str, score: Callable[[Summary], Interval]) -> list[_Point]:
        """A score along the leaks."""
        found = []
        for line in self.lines[defense]:
            interval = score(line.scored)
            low, high = (interval.low, interval.high) if np.isfinite(interval.low) else (interval.mean, interval.mean)
            found.append(_Point(self.leaks[line.snapshot], interval.mean, low, high))
        return found

    def findings(self, defense: str, name: str) -> list[_Point]:
        """A finding along the leaks: mean over seeds, lowest to highest; none where no cell has it."""
        found = []
        for line in self.lines[defense]:
            values = [content[name] for content in map(json.loads, line.cells["findings"]) if name in content]
            if values:
                found.append(_Point(self.leaks[line.snapshot], float(np.mean(values)), min(values), max(values)))
        return found


def _updates(line: Line) -> int:
    """How many updates of the victims' client one snapshot shows, in one seed."""
    return int(line.scored.images.groupby("seed")["victim"].nunique().max())


def draw_leaks(rankings: Sequence[Ranking], trainings: Sequence[TrainingSummary], styles: Styles) -> Iterator[Picture]:
    """One figure a task, algorithm, kind of victim and attack, of runs in which attacks see all rounds so far.

    One column an adversary for whom there is a verdict, one line a defense. Lines of a single snapshot are left out.
    """
    provenance = {item.task: item.text("provenance") for item in trainings}

    def place(line: Line) -> tuple[str, str, str, str]:
        return line.setting.task, line.setting.algorithm, line.setting.victim_kind, line.attack

    spanning = [
        line
        for ranking in rankings
        if ranking.setting.exempt is None
        for entry in ranking.entries
        for line in entry.lines
        if line.regime.endswith(ROUNDS_SO_FAR) and line.summary is not None
    ]
    for (task, algorithm, kind, attack), members in groupby(sorted(spanning, key=place), key=place):
        by_setting: dict[Setting, list[Line]] = {}
        for line in members:
            by_setting.setdefault(line.setting, []).append(line)
        panels = [_Panel.of(setting, lines) for setting, lines in by_setting.items()]
        panels = [panel for panel in panels if len(panel.leaks) > 1]
        if not panels:
            continue
        panels.sort(key=lambda panel: panel.setting.order)
        yield Picture(
            kind="conditions",
            name=file_name("leaks", task, algorithm, kind, attack),
            title=f"Leakage by leaks: {attack} on {task}, {algorithm}, {victims(kind)}",
            caption=(
                f"What {attack} makes of the victims of each observed round when it sees all observed rounds so far, over the"
                " updates of the victims' client that it has seen (leaks; where it reads other clients' updates, there are"
                " as many of each). PSNR is over the floor, what the best guess without any attack gives (dashed). Bars of"
                " PSNR and identification: 95% intervals; of what is found of keys: lowest to highest seed."
                f" {UNDEFENDED} is the positive control. Lines that coincide lie on one another."
                f" {provenance.get(task, '')}."
            ),
            png=_draw(panels, styles),
        )


@dataclass(frozen=True)
class _Look:
    """How a line is drawn."""

    colour: str
    marker: str
    size: float


def _draw(panels: Sequence[_Panel], styles: Styles) -> bytes:
    drawn = sorted({name for panel in panels for name in panel.lines}, key=list(styles.colours).index)
    # the first drawn is the largest, so that lines which fall on one another all stay visible
    looks = {
        name: _Look(styles.colours[name], styles.markers[name], max(10 - 1.5 * index, 4.0))
        for index, name in enumerate(drawn)
    }
    rows = [
        name for name in KEY_FINDINGS if any(panel.findings(item, name) for panel in panels for item in panel.lines)
    ]
    with look():
        figure = Figure(figsize=(4.4 * len(panels) + 0.8, 2.7 * (2 + len(rows)) + 0.5), layout="constrained")
        grid = figure.subplots(2 + len(rows), len(panels), squeeze=False, sharex=True, sharey="row")
        for column, panel in enumerate(panels):
            grid[0, column].set_title(panel.setting.adversary)
            grid[0, column].axhline(0, color=QUIET, linestyle="--", linewidth=1.2)
            for defense in (name for name in drawn if name in panel.lines):
                appearance = looks[defense]
                _line(grid[0, column], panel.points(defense, lambda summary: summary.gain), appearance)
                _line(grid[1, column], panel.points(defense, lambda summary: summary.identification), appearance)
                for row, name in enumerate(rows, start=2):
                    if points := panel.findings(defense, name):
                        _line(grid[row, column], points, appearance)
            _leaks_axis(grid[-1, column], panel)
        for axes, name in zip(grid[:, 0], ("PSNR over the floor (dB)", "Identified", *rows), strict=True):
            axes.set_ylabel(KEY_FINDINGS.get(name, name))
            if name in SHARES:
                axes.set_ylim(-0.05, 1.05)
                axes.yaxis.set_major_formatter(PercentFormatter(1))
        for row, name in enumerate(rows, start=2):
            if name not in SHARES:
                grid[row, 0].set_yscale("log")
                grid[row, 0].yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
        figure.legend(
            handles=[
                *(_handle(name, looks[name]) for name in drawn),
                Line2D([], [], color=QUIET, linestyle="--", label="floor"),
            ],
            loc="outside lower center",
            ncols=min(4, len(drawn) + 1),
        )
        return png(figure)


def _line(axes: Axes, points: Sequence[_Point], appearance: _Look) -> None:
    """A line with its bars."""
    mean = np.array([point.mean for point in points])
    bars = np.array([[point.mean - point.low, point.high - point.mean] for point in points]).reshape(-1, 2).T
    axes.errorbar(
        [point.leaks for point in points],
        mean,
        yerr=np.maximum(bars, 0),
        color=appearance.colour,
        marker=appearance.marker,
        markersize=appearance.size,
        markeredgecolor="white",
        linewidth=1.5,
        elinewidth=0.8,
        capsize=2,
    )


def _leaks_axis(axes: Axes, panel: _Panel) -> None:
    leaks = list(panel.leaks.values())
    each = {second - first for first, second in zip([0, *leaks], leaks, strict=False)}
    axes.set_xlabel("Leaks so far" + (f", {each.pop()} a round" if len(each) == 1 else ""))
    if leaks[-1] > 10 * leaks[0]:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.set_xticks(leaks if len(leaks) <= 10 else leaks[:: -(-len(leaks) // 10)])


def _handle(name: str, appearance: _Look) -> Line2D:
    label = f"{name} (control)" if name == UNDEFENDED else name
    return Line2D(
        [],
        [],
        color=appearance.colour,
        marker=appearance.marker,
        markersize=7,
        label=label,
    )
