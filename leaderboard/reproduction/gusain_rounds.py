"""What comes out of shared weights, round by round: PSNR and identification beside floor and control."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmark.store import OF_UPDATES, VictimKind
from leaderboard.figures.style import INK, QUIET, Picture, file_name, look, png
from leaderboard.lines import Line, Summary
from leaderboard.reproduction.gusain_runs import PAPERS_ATTACK, Pair, Reproduction, in_words, sentences
from leaderboard.reproduction.gusain_tables import NOT_RUN
from leaderboard.tables.contents import victims

FOOT = 0.18
"""Share of a panel's height that is kept free of curves, for the crosses of cells without a score."""
_SCALES = {"psnr": 1, "identification": 100}
"""What is drawn of each measure: dB, percent."""


def recovery_by_round(found: Reproduction) -> Iterator[Picture]:
    """PSNR and identification after every round: one figure a network and algorithm that was run."""
    for pair in found.pairs:
        run = found.runs.get(pair.network)
        if run is None:
            continue
        yield Picture(
            kind="tradeoff",
            name=file_name("by-round", pair.network, pair.algorithm),
            title=f"What comes out of shared weights, round by round: {pair.title}",
            caption=sentences(
                found.result.label,
                run.result.setting,
                run.result.budget,
                run.result.victims,
                "The attack is cosine; where a reader has none but another, the legend names it",
                "Bars: 95% intervals",
                "Floor: the best guess without an attack, beside plain weights (identification: chance)",
                "Control: the same attack on undefended weights",
                "Crosses at the foot: cells without a score, for the reason in the legend or in the table",
                "Lines that coincide lie on one another, plain weights drawn thickest",
                f"A negative control, no verdict: {in_words(found.plain_reader)}",
                "The paper prints no such figure; its Figures 4.5 and 4.7 are pictures",
            ),
            png=_by_round(found, pair),
        )


def _by_round(found: Reproduction, pair: Pair) -> bytes:
    with look():
        figure = Figure(figsize=(11, 6.4), layout="constrained")
        grid = figure.subplots(2, len(OF_UPDATES), sharex="col", sharey="row", squeeze=False)
        for (above, below), kind in zip(grid.T, OF_UPDATES, strict=True):
            series = _series(found, pair, kind)
            rounds = sorted({number for item in series for number in item.lines})
            for index, item in enumerate(series):
                _draw_series(above, item, rounds, "psnr", foot=FOOT * (index + 0.5) / len(series))
                _draw_series(below, item, rounds, "identification", foot=FOOT * (index + 0.5) / len(series))
            _draw_references(above, below, series)
            if not rounds:
                above.text(0.5, 0.5, NOT_RUN, transform=above.transAxes, ha="center", color=QUIET)
            above.set_title(victims(kind).capitalize())
            below.set_xlabel("Rounds of training before the message")
            below.xaxis.set_major_locator(MaxNLocator(integer=True))
        low, high = grid[0, 0].get_ylim()
        grid[0, 0].set(ylabel="PSNR (dB)", ylim=(low - (high - low) * FOOT / (1 - FOOT), high))
        identified = {"ylim": (-5 - 110 * FOOT / (1 - FOOT), 105), "yticks": range(0, 101, 20)}
        grid[1, 0].set(ylabel="Identified among 1,000 (%)", **identified)
        entries: dict[str, Artist] = {}
        for axes in grid.flat:
            entries |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(list(entries.values()), list(entries), loc="outside upper center", ncols=2)
        return png(figure)


@dataclass(frozen=True)
class _Series:
    """One line of a panel: what is read, by whom, and its rounds."""

    label: str
    colour: str
    lines: Mapping[int, Line]
    width: float = 1.8

    @property
    def scored(self) -> dict[int, Summary]:
        """Scores of the rounds that have any."""
        return {number: line.summary for number, line in sorted(self.lines.items()) if line.summary is not None}

    @property
    def controls(self) -> dict[int, Summary]:
        """Scores of the positive control, likewise."""
        return {number: line.control for number, line in sorted(self.lines.items()) if line.control is not None}

    @property
    def name(self) -> str:
        """The label with what else has to be said: another attack than the paper's, or why there is no score at all."""
        if not self.scored:
            reasons = dict.fromkeys(str(line.finding) for line in self.lines.values())
            return f"{self.label}: {'; '.join(reasons) or NOT_RUN}"
        others = dict.fromkeys(self.lines[number].attack for number in self.scored)
        others.pop(PAPERS_ATTACK, None)
        return self.label + (f" (attack: {', '.join(others)})" if others else "")


def _series(found: Reproduction, pair: Pair, kind: VictimKind) -> list[_Series]:
    plain = _Series("plain weights", INK, found.by_round(pair.plain, found.plain_reader, kind), width=4.5)
    colours = sns.color_palette("colorblind", len(found.result.readers)).as_hex()
    encrypted = [
        _Series(f"encrypted, {reader.title}", colour, found.by_round(pair.encrypted, reader, kind))
        for reader, colour in zip(found.result.readers, colours, strict=True)
    ]
    return [plain, *encrypted]


def _draw_series(axes: Axes, item: _Series, rounds: Sequence[int], measure: str, foot: float) -> None:
    """One series with its interval, broken where a round has no score; crosses at height `foot` of the panel, 0..1."""
    scored = item.scored
    intervals = [getattr(scored[number], measure) if number in scored else None for number in rounds]
    mean, low, high = (
        np.array([np.nan if one is None else _SCALES[measure] * getattr(one, part) for one in intervals])
        for part in ("mean", "low", "high")
    )
    reach = np.stack([mean - low, high - mean])
    axes.errorbar(
        rounds,
        mean,
        # an interval without end is not drawn
        yerr=np.where(np.isfinite(reach), reach, np.nan),
        fmt="o-",
        color=item.colour,
        label=item.name if rounds else "",
        markersize=4 + item.width,
        linewidth=item.width,
        elinewidth=1.2,
        capsize=3 + item.width,
    )
    failed = [number for number in rounds if number not in scored or item.lines[number].crashed]
    placed = axes.get_xaxis_transform()
    axes.plot(failed, [foot] * len(failed), "x", color=item.colour, markersize=7, transform=placed)


def _draw_references(psnr: Axes, identification: Axes, series: Sequence[_Series]) -> None:
    """The floor of the first series that has scores (identification by chance), and the control of the first that has one."""
    floors = next(filter(None, (item.scored for item in series)), {})
    # markers, since a single round makes no line; above the curves that they coincide with
    style: dict[str, Any] = {
        "linestyle": "--",
        "marker": "_",
        "markersize": 14,
        "color": QUIET,
        "label": "floor",
        "zorder": 3,
    }
    psnr.plot(list(floors), [summary.floor for summary in floors.values()], **style)
    identification.plot(list(floors), [100 * summary.chance for summary in floors.values()], **style)
    controls = next(filter(None, (item.controls for item in series)), {})
    style = {"linestyle": ":", "marker": "s", "markersize": 9, "fillstyle": "none", "color": INK, "label": "control"}
    for axes, measure in ((psnr, "psnr"), (identification, "identification")):
        means = [_SCALES[measure] * getattr(summary, measure).mean for summary in controls.values()]
        axes.plot(list(controls), means, **style, zorder=3)
