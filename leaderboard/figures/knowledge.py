"""What knowing the defense changes: per defense the oblivious and the adaptive attacker, beside the floor and no defense."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import blended_transform_factory

from benchmark.store import UNDEFENDED
from leaderboard.figures.style import INK, QUIET, Picture, Styles, file_name, look, png
from leaderboard.lines import Verdict, defense_order
from leaderboard.ranking import Entry, Ranking
from leaderboard.tables.contents import victims
from leaderboard.trainings import TrainingSummary

OBLIVIOUS, ADAPTIVE = "oblivious", "adaptive"
FLOOR = "#eef2f6"
"""Colour of what is no better than a guess."""
ROW = 0.46
"""Height of a defense, in inches."""


@dataclass(frozen=True)
class Contest:
    """One defense against a position's two attackers; None for one that the run does not have."""

    defense: str
    oblivious: Entry | None
    adaptive: Entry | None

    @property
    def scored(self) -> list[Entry]:
        """The entries that have a score, the oblivious first."""
        return [entry for entry in (self.oblivious, self.adaptive) if entry is not None and entry.summary is not None]

    @property
    def words(self) -> str:
        """What stands beside the row: of the attacker who knows the defense, where the run has one."""
        entry = self.adaptive or self.oblivious
        if entry is None:
            return ""
        if entry.worst is None:
            return str(entry.verdict)
        # which of the attacks does best where all of them work tells nothing of a defense
        finding = "nothing hidden" if self.defense == UNDEFENDED else entry.worst.attack
        finding = "ciphertext" if entry.worst.by_shortcut else finding
        if entry.worst.finding is not Verdict.LEAKS:
            return f"{finding}: {entry.worst.finding}"
        return f"{finding}: {100 * entry.scored.identification.mean:.0f}% identified"


def draw_knowledge(
    rankings: Sequence[Ranking], trainings: Sequence[TrainingSummary], styles: Styles
) -> Iterator[Picture]:
    """One figure a task, algorithm, kind of victim and position whose oblivious attacker tried several defenses."""

    def place(ranking: Ranking) -> tuple[str, str, str, str]:
        setting = ranking.setting
        return setting.task, setting.algorithm, setting.victim_kind, setting.position

    honest = sorted((ranking for ranking in rankings if not ranking.setting.oracles), key=place)
    provenance = {item.task: item.text("provenance") for item in trainings}
    for (task, algorithm, kind, position), members in groupby(honest, key=place):
        contests = _contests(list(members))
        if sum(contest.oblivious is not None and bool(contest.scored) for contest in contests) < 2:
            continue
        both = any(contest.adaptive is not None for contest in contests)
        title = "Oblivious and adaptive" if both else "The oblivious attacker"
        yield Picture(
            kind="knowledge",
            name=file_name("knowledge", task, algorithm, kind, position),
            title=f"{title}: {position}, {task}, {algorithm}, {victims(kind)}",
            caption=(
                "Mean PSNR of each attacker's worst case over attacks and rounds, with its 95% interval. Open: who does"
                " not know of the defense, as in the papers; a negative control."
                + (" Filled: who knows the scheme and lacks the key." if both else "")
                + " Grey: no better than a guess. Dotted: the same position where nothing is hidden. Beside a row, what"
                f" the {'adaptive' if both else 'oblivious'} attacker's worst case is. {provenance.get(task, '')}."
            ),
            png=_draw(contests, styles, both=both),
        )


def _contests(rankings: Sequence[Ranking]) -> list[Contest]:
    entries = {(ranking.setting.knowledge, entry.defense): entry for ranking in rankings for entry in ranking.entries}
    defenses = sorted({defense for _, defense in entries}, key=defense_order)
    return [Contest(name, entries.get((OBLIVIOUS, name)), entries.get((ADAPTIVE, name))) for name in defenses]


def _draw(contests: Sequence[Contest], styles: Styles, *, both: bool) -> bytes:
    scored = [entry for contest in contests for entry in contest.scored]
    floor = float(np.mean([entry.scored.floor for entry in scored]))
    with look():
        figure = Figure(figsize=(8.6, ROW * len(contests) + 1.3), layout="constrained")
        axes = figure.subplots()
        axes.axvspan(-100, floor, color=FLOOR, zorder=0)
        axes.axvline(floor, color=QUIET, linestyle="--", linewidth=1.2, zorder=1)
        above = blended_transform_factory(axes.transData, axes.transAxes)
        marks = {"floor": floor}
        for contest in contests:
            if contest.defense == UNDEFENDED and contest.scored:
                marks["no defense"] = contest.scored[-1].scored.psnr.mean
                axes.axvline(marks["no defense"], color=INK, linestyle=":", linewidth=1, zorder=1)
        # one to the left and one to the right of its line, so that they keep apart however near the lines are
        for words, side in zip(sorted(marks, key=marks.__getitem__), ("right", "left"), strict=False):
            axes.text(marks[words], 1.01, f" {words} ", transform=above, fontsize=8.5, ha=side, va="bottom")
        for row, contest in enumerate(contests):
            _row(axes, row, contest, styles)
        axes.set_yticks(range(len(contests)), [contest.defense for contest in contests])
        axes.set(ylim=(len(contests) - 0.4, -0.6), xlim=_limits(scored), xlabel="Reconstruction PSNR (dB)")
        axes.grid(visible=False, axis="y")
        figure.legend(handles=_legend(both), loc="outside lower center", ncols=2)
        return png(figure)


def _row(axes: Axes, row: int, contest: Contest, styles: Styles) -> None:
    colour = styles.colours[contest.defense]
    means = [entry.scored.psnr.mean for entry in contest.scored]
    if len(means) > 1:
        axes.plot(means, [row] * len(means), color=colour, linewidth=1, linestyle=":", zorder=2)
    for entry in contest.scored:
        psnr = entry.scored.psnr
        spread = [[psnr.mean - psnr.low], [psnr.high - psnr.mean]] if np.isfinite(psnr.low) else None
        knows = entry.setting.knowledge == ADAPTIVE
        axes.errorbar(
            psnr.mean, row, xerr=spread, color=colour, marker=styles.markers[contest.defense], markersize=8 if knows else 11,
            markerfacecolor=colour if knows else "white", markeredgecolor=colour, elinewidth=1.2, capsize=2.5,
            zorder=4 if knows else 3,
        )  # fmt: skip
    axes.text(
        1.02,
        row,
        contest.words,
        transform=blended_transform_factory(axes.transAxes, axes.transData),
        fontsize=8.5,
        va="center",
    )


def _legend(both: bool) -> list[Line2D]:
    marks = {"does not know of the defense": "white"} | ({"knows it, lacks the key": INK} if both else {})
    return [
        Line2D([], [], color=INK, marker="o", linestyle="", markersize=8, markerfacecolor=face, label=label)
        for label, face in marks.items()
    ]


def _limits(scored: Sequence[Entry]) -> tuple[float, float]:
    """Range of PSNR that holds every point, its interval where it has one, and the floor."""
    values = [
        value
        for summary in (entry.scored for entry in scored)
        for value in (summary.psnr.low, summary.psnr.high, summary.psnr.mean, summary.floor)
        if np.isfinite(value)
    ]
    margin = 0.05 * max(max(values) - min(values), 6)
    return min(values) - margin, max(values) + margin
