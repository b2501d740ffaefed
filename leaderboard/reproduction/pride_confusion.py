"""Confusion matrices of the PriDe reproduction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from benchmark.store.pride import COLUMNS, Column, ModelResult, PrideResult
from leaderboard.figures.style import INK, Picture, look, png
from leaderboard.reproduction.pride_tables import HEADINGS


def confusion_matrices(result: PrideResult) -> list[Picture]:
    """One figure a column that was computed; one panel a model."""
    return [_confusion(result, column) for column in COLUMNS if any(_matrices(result, column))]


def _matrices(result: PrideResult, column: Column) -> list[ModelResult]:
    return [row for row in result.models if row.column == column and row.confusion]


def _confusion(result: PrideResult, column: Column) -> Picture:
    rows = _matrices(result, column)
    across = 5
    down = -(-len(rows) // across)
    with look():
        # Placed by hand: a layout engine measures all the numbers several times over.
        figure = Figure(figsize=(2.6 * across, 2.75 * down))
        grid = figure.subplots(down, across, squeeze=False)
        figure.subplots_adjust(left=0.02, right=0.94, bottom=0.03, top=0.97, wspace=0.14, hspace=0.2)
        for axes, row in zip(grid.flat, rows, strict=False):
            _matrix(axes, row, result.setting.classes)
        for axes in grid.flat[len(rows) :]:
            axes.set_visible(False)
        bar = figure.colorbar(ScalarMappable(Normalize(0, 100), "Blues"), cax=figure.add_axes((0.955, 0.3, 0.01, 0.4)))
        bar.set_label("% of the true class")
        bar.outline.set_visible(False)
        return Picture(
            kind="confusion",
            name=f"confusion-{column}",
            title=f"Confusion matrices: {HEADINGS[column].lower()}",
            caption=(
                "Percent of the test images of a true class (row) that the model takes for a class (column); shares"
                f" that round to 0 are left blank, classes without a test image are empty. {result.setting.source}"
            ),
            png=png(figure),
        )


def _matrix(axes: Axes, row: ModelResult, classes: Sequence[str]) -> None:
    counts = np.array(row.confusion).reshape(len(classes), -1)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    sns.heatmap(
        shares,
        ax=axes,
        cmap="Blues",
        vmin=0,
        vmax=100,
        square=True,
        cbar=False,
        linewidths=0.3,
        linecolor="white",
        xticklabels=classes,
        yticklabels=classes,
    )
    for true, predicted in np.argwhere(shares >= 0.5):
        share = shares[true, predicted]
        colour = "white" if share > 60 else INK
        axes.text(predicted + 0.5, true + 0.5, f"{share:.0f}", size=5.5, color=colour, ha="center", va="center")
    axes.set_title(f"{row.model}: {100 * row.accuracy:.1f}% of {row.tested_on:,}", fontsize=8.5)
    axes.tick_params(labelsize=6.5, length=0)
    axes.tick_params(axis="y", rotation=0)
