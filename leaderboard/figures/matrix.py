"""Every attack on every defense: what came of it, or why it could not be tried."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from benchmark.store import UNDEFENDED
from leaderboard.figures.style import QUIET, Picture, file_name, look, png
from leaderboard.lines import Line, Verdict, defense_order
from leaderboard.ranking import Ranking
from leaderboard.tables.contents import victims
from leaderboard.trainings import TrainingSummary

FEWEST = 3
"""Attacks, from which on a matrix says more than the table of the adversary."""
WIDTH, HEIGHT, LABEL = 1.42, 0.62, 1.75
"""Of a cell, and of the names of defenses, in inches."""
LETTERS, LINES, NAME = 26, 4, 18
"""What fits into a cell, and into a line of an attack's name."""
COLOURS = {Verdict.LEAKS: "#f7c99b", Verdict.AT_THE_FLOOR: "#bcd9ee", Verdict.UNQUALIFIED: "#e9e3f4"}
"""Orange and blue, which the colour-blind tell apart; words say the same."""
NOTHING = "#f6f7f9"


def draw_matrices(rankings: Sequence[Ranking], trainings: Sequence[TrainingSummary]) -> Iterator[Picture]:
    """One figure a setting for which there are verdicts, and in which several attacks met several defenses."""
    provenance = {item.task: item.text("provenance") for item in trainings}
    for ranking in rankings:
        setting = ranking.setting
        defenses = sorted((entry.defense for entry in ranking.entries), key=defense_order)
        cells = _strongest([line for entry in ranking.entries for line in entry.lines])
        attacks = sorted({attack for _, attack in cells})
        if setting.exempt is not None or len(attacks) < FEWEST or len(defenses) < 2:
            continue
        yield Picture(
            kind="knowledge",
            name=file_name("attacks", setting.task, setting.algorithm, setting.victim_kind, setting.adversary),
            title=f"Every attack on every defense: {setting.adversary}, {setting.task}, {setting.algorithm}, "
            + victims(setting.victim_kind),
            caption=(
                "Mean PSNR and share of images identified, at the round and for the victims where the attack finds most;"
                " else the reason why there is no score. The row of no defense is each attack's positive control: what"
                f" is at the floor there cannot qualify a verdict elsewhere. {provenance.get(setting.task, '')}."
            ),
            png=_draw(defenses, attacks, cells),
        )


def _strongest(lines: Sequence[Line]) -> dict[tuple[str, str], Line]:
    """Of each defense and attack the line that leaks most."""
    strongest: dict[tuple[str, str], Line] = {}
    for line in lines:
        best = strongest.setdefault((line.defense, line.attack), line)
        if line.leakage > best.leakage:
            strongest[line.defense, line.attack] = line
    return strongest


def _draw(defenses: Sequence[str], attacks: Sequence[str], cells: dict[tuple[str, str], Line]) -> bytes:
    width, height = LABEL + WIDTH * len(attacks), HEIGHT * (len(defenses) + 0.55)
    with look():
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, width), ylim=(height, 0))
        for column, attack in enumerate(attacks):
            centre = LABEL + WIDTH * (column + 0.5)
            name = "\n".join(textwrap.wrap(attack, NAME))
            axes.text(centre, 0.45 * HEIGHT, name, fontsize=9, fontweight="bold", ha="center", va="bottom")
        for row, defense in enumerate(defenses):
            top = HEIGHT * (row + 0.55)
            name = f"{defense}\n(no defense)" if defense == UNDEFENDED else defense
            axes.text(0.02, top + HEIGHT / 2, name, fontsize=9, fontweight="bold", va="center")
            for column, attack in enumerate(attacks):
                _cell(axes, LABEL + WIDTH * column, top, cells.get((defense, attack)))
        return png(figure)


def _cell(axes: Axes, left: float, top: float, line: Line | None) -> None:
    colour = NOTHING if line is None else COLOURS.get(line.finding, NOTHING)
    axes.add_patch(Rectangle((left, top), WIDTH, HEIGHT, facecolor=colour, edgecolor="white", linewidth=2))
    if line is None:
        return
    score, reason = _score(line), _reason(line)
    middle = (left + WIDTH / 2, top + HEIGHT / 2)
    if score:
        raised = 0.1 if reason else 0
        axes.text(middle[0], middle[1] - raised, score, fontsize=8.5, ha="center", va="center", linespacing=1.25)
        middle = (middle[0], top + HEIGHT - 0.08)
    axes.text(
        *middle, reason, fontsize=6.8, color=QUIET, ha="center", va="bottom" if score else "center", linespacing=1.25
    )


def _score(line: Line) -> str:
    """What an attack reached, "" where it has no score."""
    if line.summary is None:
        return ""
    found = f"{100 * line.summary.identification.mean:.0f}% identified"
    return f"{line.summary.psnr.mean:.1f} dB\n{found if line.finding is Verdict.LEAKS else line.finding}"


def _reason(line: Line) -> str:
    """Why there is no score; under a score, its note as far as a line goes."""
    words = line.details or ("" if line.summary is not None else str(line.finding))
    lines = 1 if line.summary is not None else LINES
    return "\n".join(textwrap.wrap(words, LETTERS, max_lines=lines, placeholder="\N{HORIZONTAL ELLIPSIS}"))
