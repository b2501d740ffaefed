"""Reconstructions beside their originals: the best, the median and the worst of each attack on each defense."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, UnidentifiedImageError

from federation.errors import DataError
from leaderboard.figures.style import INK, QUIET, Picture, file_name, look, png
from leaderboard.lines import Line, Setting
from leaderboard.ranking import Ranking
from leaderboard.tables.contents import EXEMPT, victims
from leaderboard.trainings import TrainingSummary

PICKS = ("best", "median", "worst")
CELL = 0.98
"""Side of an image, in inches."""


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
    widths = [2.1, 1, 1, 0.22, 1, 1, 0.22, 1, 1]
    with look():
        figure = Figure(figsize=(CELL * sum(widths), (CELL + 0.24) * len(lines) + 0.3))
        grid = figure.add_gridspec(len(lines), len(widths), width_ratios=widths, wspace=0.05, hspace=0.24)
        for row, line in enumerate(lines):
            _label(figure.add_subplot(grid[row, 0]), line)
            for pick, image in zip(PICKS, _picks(line), strict=True):
                column = 1 + 3 * PICKS.index(pick)
                pair = [figure.add_subplot(grid[row, column + offset]) for offset in range(2)]
                _show(pair[0], _read(directory, str(image["original"])))
                _show(pair[1], _read(directory, str(image["reconstruction"])))
                pair[1].set_xlabel(f"{image['psnr']:.1f} dB", fontsize=8, labelpad=2)
                if row == 0:
                    pair[0].set_title(pick, fontsize=10, fontweight="bold", loc="left")
        return png(figure)


def _label(axes: Axes, line: Line) -> None:
    axes.set_axis_off()
    axes.text(0, 0.6, _folded(line.defense), fontsize=9.5, fontweight="bold", color=INK, va="bottom")
    note = "prior guess" if line.by_shortcut else line.regime
    axes.text(0, 0.54, f"{_folded(line.name)}\n{note}", fontsize=8, color=QUIET, va="top", linespacing=1.35)


def _folded(name: str, width: int = 24) -> str:
    return name if len(name) <= width else f"{name[: width - 1]}\N{HORIZONTAL ELLIPSIS}"


def _picks(line: Line) -> list[pd.Series]:
    if line.summary is None:
        raise ValueError(f"{line.name} on {line.defense} was not scored")
    ordered = line.summary.images.sort_values("psnr", ascending=False, kind="stable")
    return [ordered.iloc[0], ordered.iloc[len(ordered) // 2], ordered.iloc[-1]]


def _show(axes: Axes, image: npt.NDArray[np.uint8]) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=True, color="#cbd2d9", linewidth=0.6)


def _read(directory: Path, name: str) -> npt.NDArray[np.uint8]:
    path = (directory / name).resolve()
    if not path.is_relative_to(directory.resolve()):
        raise DataError(f"{directory}: image {name!r} lies outside the run's folder")
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing, the run's image table names it") from error
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path}: not a readable image: {error}") from error
