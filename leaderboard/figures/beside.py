"""Originals and what was made of them, side by side, as 8-bit images that nobody stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from leaderboard.figures.style import QUIET, look, png

COLUMNS = 4
"""Pairs in a row."""

_SIDE = 1.0
"""Inches of an image; the lengths below are in sides."""
_SEAM, _GAP, _BELOW, _HEAD = 0.05, 0.3, 0.32, 0.45


@dataclass(frozen=True)
class Pair:
    """An original and its reconstruction, uint8 [H, W] or [H, W, 3]; the latter is None where there is none."""

    original: npt.NDArray[np.uint8]
    reconstruction: npt.NDArray[np.uint8] | None
    words: str


def draw_beside(pairs: Sequence[Pair], title: str) -> bytes:
    """All pairs in rows, original left and reconstruction right, with words below each pair."""
    columns = min(COLUMNS, len(pairs))
    rows = -(-len(pairs) // columns)
    across, down = 2 + _SEAM + _GAP, 1 + _BELOW
    width, height = columns * across - _GAP, _HEAD + rows * down
    with look():
        figure = Figure(figsize=(_SIDE * width, _SIDE * height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.text(0, 0.25, title, fontsize=10, fontweight="bold", va="center")
        for index, pair in enumerate(pairs):
            left, top = (index % columns) * across, _HEAD + (index // columns) * down
            for start, image in ((left, pair.original), (left + 1 + _SEAM, pair.reconstruction)):
                if image is not None:
                    extent = (start, start + 1, top + 1, top)
                    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=extent)
                axes.add_patch(Rectangle((start, top), 1, 1, fill=False, edgecolor="#cbd2d9", linewidth=0.6))
            axes.text(left + 1 + _SEAM / 2, top + 1.05, pair.words, fontsize=8, color=QUIET, ha="center", va="top")
        axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
        return png(figure)
