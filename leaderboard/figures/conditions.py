"""What leakage depends on: the size of the victim's batch, its local steps, and the stage of training."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmark.store import ROUNDS_SO_FAR, UNDEFENDED
from leaderboard.figures.style import MARKERS, QUIET, Picture, Styles, file_name, look, png
from leaderboard.lines import Line, Setting, Verdict, defense_order
from leaderboard.ranking import Ranking
from leaderboard.tables.contents import victims
from leaderboard.trainings import TrainingSummary

COLUMNS = 2
DASHES = ("-", "--", ":", "-.")
FLOOR = "#eef2f6"
"""Colour of what is no better than a guess."""
_PROBE = re.compile(r"probe b(?P<batch>\d+) s(?P<steps>\d+) e(?P<epochs>\d+)(?P<rest>.*)")


@dataclass(frozen=True)
class Condition:
    """Something that leakage may depend on.

    Attributes:
        name: for file names.
        title: in words.
        label: of the axis.
        fewest: values from which on a curve says more than a table.
        place: of a line, its value, and in words what else is alike along a curve; None where it has no such value.
    """

    name: str
    title: str
    label: str
    fewest: int
    place: Callable[[Line], tuple[int, str] | None]


def _by_batch(line: Line) -> tuple[int, str] | None:
    probe = _PROBE.fullmatch(line.regime)
    return probe and (int(probe["batch"]), f"{_counted(probe['steps'], 'local step')}{_apart(probe, line)}")


def _by_steps(line: Line) -> tuple[int, str] | None:
    probe = _PROBE.fullmatch(line.regime)
    return probe and (int(probe["steps"]), f"{_counted(probe['batch'], 'image')}{_apart(probe, line)}")


def _by_round(line: Line) -> tuple[int, str] | None:
    """Not where an attack saw the rounds before as well: that is a matter of leaks, not of training alone."""
    return None if line.regime.endswith(ROUNDS_SO_FAR) else (line.snapshot, line.regime)


def _counted(number: str, noun: str) -> str:
    return f"{number} {noun}{'' if number == '1' else 's'}"


def _apart(probe: re.Match[str], line: Line) -> str:
    return f"{probe['rest']}, round {line.snapshot}"


CONDITIONS = (
    Condition("batch", "batch size", "Images in the victim's batch", 2, _by_batch),
    Condition("local-steps", "local steps", "Local steps of the victim", 2, _by_steps),
    Condition("training-stage", "stage of training", "Rounds of training before the update", 3, _by_round),
)


@dataclass(frozen=True)
class Curve:
    """One attack on one defense, at several values of a condition: value to line, in rising order."""

    defense: str
    attack: str
    lines: dict[int, Line]


@dataclass(frozen=True)
class Panel:
    """The curves of one adversary that have everything in common but the condition."""

    setting: Setting
    fixed: str
    curves: tuple[Curve, ...]


def draw_conditions(
    rankings: Sequence[Ranking], trainings: Sequence[TrainingSummary], styles: Styles
) -> Iterator[Picture]:
    """For each condition that a run varies, one figure a task, algorithm and kind of victim; one panel an adversary."""
    lines = [line for ranking in rankings for entry in ranking.entries for line in entry.lines]
    scored = [line for line in lines if line.summary is not None]
    undefended = {
        (item.task, item.algorithm): item for item in trainings if item.defense == UNDEFENDED and not item.reference
    }

    def place(line: Line) -> tuple[str, str, str]:
        return line.setting.task, line.setting.algorithm, line.setting.victim_kind

    for condition in CONDITIONS:
        for (task, algorithm, kind), members in groupby(scored, key=place):
            panels = _panels(list(members), condition)
            if not panels:
                continue
            plain = undefended.get((task, algorithm))
            yield Picture(
                kind="conditions",
                name=file_name(condition.name, task, algorithm, kind),
                title=f"Leakage by {condition.title}: {task}, {algorithm}, {victims(kind)}",
                caption=_caption(panels, plain),
                png=_draw(panels, condition, plain, styles),
            )


def _caption(panels: Sequence[Panel], undefended: TrainingSummary | None) -> str:
    oblivious = any(panel.setting.exempt is Verdict.NEGATIVE_CONTROL for panel in panels)
    parts = [
        "Mean PSNR of the reconstructions with its 95% interval; grey: no better than a guess. Points of one value stand"
        " a little apart, so that all can be seen. What an attack could not be tried on has no point.",
        "An oblivious attacker does not know of the defense: a negative control." if oblivious else "",
        "" if undefended is None else f"{undefended.text('provenance')}.",
    ]
    return " ".join(filter(None, parts))


def _panels(lines: Sequence[Line], condition: Condition) -> list[Panel]:
    curves: dict[tuple[Setting, str], dict[tuple[str, str], dict[int, Line]]] = {}
    for line in lines:
        place = condition.place(line)
        if place is not None:
            value, fixed = place
            curves.setdefault((line.setting, fixed), {}).setdefault((line.defense, line.attack), {})[value] = line
    panels = []
    for (setting, fixed), found in curves.items():
        told = [
            Curve(defense, attack, dict(sorted(by_value.items())))
            for (defense, attack), by_value in sorted(
                found.items(), key=lambda item: (defense_order(item[0][0]), item[0][1])
            )
            if len(by_value) >= condition.fewest
        ]
        if told:
            panels.append(Panel(setting, fixed, tuple(told)))
    return panels


def _draw(panels: Sequence[Panel], condition: Condition, undefended: TrainingSummary | None, styles: Styles) -> bytes:
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    attacks = sorted({curve.attack for panel in panels for curve in panel.curves})
    with look():
        figure = Figure(figsize=(4.6 * columns + 0.8, 3.7 * rows + 0.5), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes, panel in zip(grid.flat, panels, strict=False):
            _panel(axes, panel, attacks, styles)
            values = sorted({value for curve in panel.curves for value in curve.lines})
            axes.set_xticks(range(len(values)), [_tick(value, condition, undefended) for value in values])
            axes.set_xlim(-0.4, len(values) - 0.6)
            axes.set_xlabel(condition.label)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel("Reconstruction PSNR (dB)")
        grid[0, 0].set_ylim(*_limits(panels))
        names = dict.fromkeys((curve.defense, curve.attack) for panel in panels for curve in panel.curves)
        handles = [
            Line2D([], [], label=f"{defense}: {attack}", **_look(defense, attack, attacks, styles))
            for defense, attack in sorted(names, key=lambda name: (defense_order(name[0]), name[1]))
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)), handlelength=3)
        return png(figure)


def _look(defense: str, attack: str, attacks: Sequence[str], styles: Styles) -> dict[str, Any]:
    """Colour by defense, marker and dashes by attack."""
    index = attacks.index(attack)
    return {
        "color": styles.colours[defense],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)],
        "linewidth": 1.6,
        "markersize": 6.5,
    }


def _panel(axes: Axes, panel: Panel, attacks: Sequence[str], styles: Styles) -> None:
    values = sorted({value for curve in panel.curves for value in curve.lines})
    floors = [
        float(np.mean([curve.lines[value].scored.floor for curve in panel.curves if value in curve.lines]))
        for value in values
    ]
    ends = [-0.5, *range(len(values)), len(values) - 0.5]
    padded = [floors[0], *floors, floors[-1]]
    axes.fill_between(ends, -100, padded, color=FLOOR, linewidth=0, zorder=0)
    axes.plot(ends, padded, color=QUIET, linestyle="--", linewidth=1.2, zorder=1)
    axes.text(-0.37, floors[0], "floor", color=QUIET, fontsize=8.5, va="bottom", ha="left")
    for index, curve in enumerate(panel.curves):
        apart = 0.05 * (index - (len(panel.curves) - 1) / 2)
        along = [values.index(value) + apart for value in curve.lines]
        scores = [line.scored.psnr for line in curve.lines.values()]
        spread = [
            [score.mean - score.low if np.isfinite(score.low) else 0 for score in scores],
            [score.high - score.mean if np.isfinite(score.high) else 0 for score in scores],
        ]
        axes.errorbar(
            along,
            [score.mean for score in scores],
            yerr=spread,
            elinewidth=1.1,
            capsize=2,
            markeredgecolor="white",
            zorder=3,
            **_look(curve.defense, curve.attack, attacks, styles),
        )
    axes.set_title(f"{panel.setting.adversary}: {panel.fixed}", fontsize=10)


def _tick(value: int, condition: Condition, undefended: TrainingSummary | None) -> str:
    """A value; a round of training with how good the undefended model was by then."""
    if condition.place is not _by_round or undefended is None:
        return str(value)
    curve = undefended.accuracy_by_round.mean(axis=0)
    return f"{value}\n({100 * curve[value]:.0f}% right)"


def _limits(panels: Sequence[Panel]) -> tuple[float, float]:
    """Range of PSNR that holds every point, its interval where it has one, and the floor."""
    scored = [line.scored for panel in panels for curve in panel.curves for line in curve.lines.values()]
    values = [value for item in scored for value in (item.psnr.low, item.psnr.high, item.psnr.mean, item.floor)]
    finite = [value for value in values if np.isfinite(value)]
    span = max(max(finite) - min(finite), 6)
    return min(finite) - 0.08 * span, max(finite) + 0.08 * span
