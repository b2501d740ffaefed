"""Reconstructions beside their originals: the best, the median and the worst of each attack on each defense."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from leaderboard.figures.stored_images import read_image
from leaderboard.figures.style import INK, QUIET, Picture, file_name, look, png
from leaderboard.lines import Line, Setting
from leaderboard.ranking import Ranking
from leaderboard.tables.contents import EXEMPT, victims
from leaderboard.trainings import TrainingSummary

PICKS = ("best", "median", "worst")
CELL = 0.98
"""Side of an image, in inches; the lengths below are in sides."""
SEAM, GAP = 0.05, 0.26
"""Between the images of a pair, and between pairs."""
PAIR = 2 + SEAM + GAP
ROW = 1.32
LABEL, HEAD = 2.15, 0.4
"""Room for the names of rows, and above the first row."""


def draw_reconstructions(
    directory: Path, rankings: Sequence[Ranking], trainings: Sequence[TrainingSummary]
) -> Iterator[Picture]:
    """One figure a setting; one row a defense and attack, at the round where it finds most.

    Settings whose images were not kept are left out.

    Raises:
        DataError: an image is missing, unreadable, or outside the run's folder.
    """
    provenance = {item.task: item.text("provenance") for item in trainings}
    for ranking in rankings:
        setting = ranking.setting
        lines = _strongest([line for entry in ranking.entries for line in entry.lines])
        if not lines:
            continue
        yield Picture(
            kind="reconstructions",
            name=file_name("reconstructions", setting.task, setting.algorithm, setting.victim_kind, setting.adversary),
            title=f"Reconstructions: {setting.adversary}, {setting.task}, {setting.algorithm}, "
            + victims(setting.victim_kind),
            caption=_caption(setting, ranking, provenance.get(setting.task, "")),
            png=_draw(directory, lines),
        )


def _strongest(lines: Sequence[Line]) -> list[Line]:
    """Of each defense and attack the line that leaks most, if its images were kept, undefended first."""
    strongest: dict[tuple[str, str], Line] = {}
    for line in lines:
        best = strongest.get((line.defense, line.attack))
        if line.summary is not None and (best is None or line.leakage > best.leakage):
            strongest[line.defense, line.attack] = line
    return sorted(filter(_kept, strongest.values()), key=lambda line: line.order)


def _kept(line: Line) -> bool:
    return line.summary is not None and bool((line.summary.images["reconstruction"] != "").all())


def _caption(setting: Setting, ranking: Ranking, provenance: str) -> str:
    absent = [f"{entry.defense} ({entry.verdict})" for entry in ranking.entries if entry.worst is None]
    parts = [
        "Original (left) and reconstruction (right), with its PSNR: the best, the median and the worst of all images by"
        " PSNR, at the round where the attack finds most.",
        "" if setting.exempt is None else EXEMPT[setting.exempt],
        f"No images: {', '.join(absent)}." if absent else "",
        f"{provenance}." if provenance else "",
    ]
    return " ".join(filter(None, parts))


def _draw(directory: Path, lines: Sequence[Line]) -> bytes:
    """All images in one pair of axes, whose unit is the side of an image: axes for each would take ten times as long."""
    width, height = LABEL + len(PICKS) * PAIR - GAP, ROW * len(lines) + HEAD
    with look():
        figure = Figure(figsize=(CELL * width, CELL * height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        for index, pick in enumerate(PICKS):
            axes.text(LABEL + index * PAIR, HEAD - 0.1, pick, fontsize=10, fontweight="bold", va="bottom")
        for row, line in enumerate(lines):
            top = HEAD + row * ROW
            _label(axes, line, top)
            for index, image in enumerate(_picks(line)):
                left = LABEL + index * PAIR
                _show(axes, read_image(directory, str(image["original"])), left, top)
                _show(axes, read_image(directory, str(image["reconstruction"])), left + 1 + SEAM, top)
                below = (left + 1.5 + SEAM, top + 1.04)
                axes.text(*below, f"{image['psnr']:.1f} dB", fontsize=8, ha="center", va="top")
        axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
        return png(figure)


def _label(axes: Axes, line: Line, top: float) -> None:
    axes.text(0, top + 0.4, _folded(line.defense), fontsize=9.5, fontweight="bold", color=INK, va="bottom")
    note = "prior guess" if line.by_shortcut else line.regime
    words = f"{_folded(line.name)}\n{_folded(note)}"
    axes.text(0, top + 0.47, words, fontsize=8, color=QUIET, va="top", linespacing=1.35)


def _folded(name: str, width: int = 24) -> str:
    return name if len(name) <= width else f"{name[: width - 1]}\N{HORIZONTAL ELLIPSIS}"


def _picks(line: Line) -> list[pd.Series]:
    ordered = line.scored.images.sort_values("psnr", ascending=False, kind="stable")
    return [ordered.iloc[0], ordered.iloc[len(ordered) // 2], ordered.iloc[-1]]


def _show(axes: Axes, image: npt.NDArray[np.uint8], left: float, top: float) -> None:
    extent = (left, left + 1, top + 1, top)
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=extent)
    axes.add_patch(Rectangle((left, top), 1, 1, fill=False, edgecolor="#cbd2d9", linewidth=0.6))
