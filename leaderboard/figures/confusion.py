"""Confusion matrices: which classes a model trained under a defense takes for which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from leaderboard.figures.style import Picture, file_name, look, png
from leaderboard.trainings import TrainingSummary

COLUMNS = 3
MOST_NUMBERED = 12
"""With more classes than this the numbers would not be legible; the colours remain."""
COLOURS = "Blues"


def draw_confusion(trainings: Sequence[TrainingSummary]) -> Iterator[Picture]:
    """One figure a task and algorithm; one panel a defense or reference."""
    for (task, algorithm), members in groupby(trainings, key=lambda item: (item.task, item.algorithm)):
        items = list(members)
        yield Picture(
            kind="confusion",
            name=file_name("confusion", task, algorithm),
            title=f"Confusion matrices: {task}, {algorithm}",
            caption=(
                "Percent of the test images of a true class (row) that the model takes for a class (column), all seeds"
                f" together; shares that round to 0 are left blank. {items[0].text('provenance')}."
            ),
            png=_draw(items),
        )


def _draw(items: Sequence[TrainingSummary]) -> bytes:
    columns = min(COLUMNS, len(items))
    rows = -(-len(items) // columns)
    with look():
        figure = Figure(figsize=(4.1 * columns + 0.7, 4.1 * rows), layout="compressed")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, item in zip(grid.flat, items, strict=False):
            _panel(axes, item)
        for axes in grid.flat[len(items) :]:
            axes.set_visible(False)
        colours = ScalarMappable(Normalize(0, 100), COLOURS)
        bar = figure.colorbar(colours, ax=grid.ravel().tolist(), shrink=0.6, aspect=30, pad=0.02)
        bar.set_label("% of the true class")
        bar.outline.set_visible(False)
        return png(figure)


def _panel(axes: Axes, item: TrainingSummary) -> None:
    counts = item.confusion
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    numbers = np.where(shares >= 0.5, np.char.mod("%.0f", shares), "")
    few = len(counts) <= MOST_NUMBERED
    sns.heatmap(
        shares,
        ax=axes,
        cmap=COLOURS,
        vmin=0,
        vmax=100,
        square=True,
        cbar=False,
        annot=numbers if few else False,
        fmt="",
        annot_kws={"size": 7.5},
        linewidths=0.4 if few else 0,
        linecolor="white",
        xticklabels=item.classes,
        yticklabels=item.classes,
    )
    axes.set_title(f"{item.name}: {100 * item.accuracy:.1f}%")
    axes.set(xlabel="predicted", ylabel="true")
    long = max(map(len, item.classes)) > 2
    axes.tick_params(axis="x", rotation=90 if long else 0, labelsize=7.5, length=0)
    axes.tick_params(axis="y", rotation=0, labelsize=7.5, length=0)
