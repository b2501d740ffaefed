"""Lines of stored pictures as a figure, each line with a name to its left and a word below each picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from leaderboard.figures.stored_images import read_image
from leaderboard.figures.style import INK, look, png


@dataclass(frozen=True)
class Tile:
    """One picture of a line: a PNG file relative to the result's folder and a word below it.

    Where `file` is empty there is no picture, and the word stands in a hatched field in its place.
    """

    file: str
    word: str


@dataclass(frozen=True)
class Row:
    """Pictures side by side."""

    name: str
    tiles: Sequence[Tile]

    @property
    def height(self) -> float:
        """With the words below the pictures, in sides of a picture."""
        return 1 + GAP + WORD * max(1 + tile.word.count("\n") if tile.file and tile.word else 0 for tile in self.tiles)


GAP, WORD, HEAD = 0.08, 0.14, 0.25
"""Between pictures, for a line of words below one, and above the first row where columns have heads; in sides of a picture."""


def draw_gallery(rows: Sequence[Row], directory: Path, heads: Sequence[str] = (), *, margin: float = 1.6) -> bytes:
    """The rows as one PNG under heads, one a column; `margin` is the room for names, in sides of a picture (inches).

    Raises:
        DataError: a picture is missing, unreadable, or outside `directory`.
    """
    top = HEAD if heads else 0.0
    width = margin + max(len(row.tiles) for row in rows) * (1 + GAP)
    height = top + sum(row.height for row in rows)
    with look():
        # All pictures in one pair of axes, whose unit is the side of one: axes for each would take ten times as long.
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        for column, head in enumerate(heads):
            axes.text(margin + column * (1 + GAP) + 0.5, top - 0.06, head, fontsize=8.5, ha="center", va="bottom")
        for row in rows:
            axes.text(margin - 0.12, top + 0.5, _folded(row.name, margin), ha="right", va="center", fontsize=8.5)
            for column, tile in enumerate(row.tiles):
                _place(axes, tile, margin + column * (1 + GAP), top, directory)
            top += row.height
        axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
        return png(figure)


def _folded(name: str, margin: float) -> str:
    """The name in lines that fit the margin; an inch holds some 14 characters."""
    return "\n".join(textwrap.fill(line, int(14 * margin)) for line in name.splitlines())


def _place(axes: Axes, tile: Tile, left: float, top: float, directory: Path) -> None:
    if not tile.file:
        axes.add_patch(Rectangle((left, top), 1, 1, fill=False, hatch="///", edgecolor="#dde3e9", linewidth=0.6))
        words = "\n".join(textwrap.wrap(tile.word, 14))
        axes.text(
            left + 0.5, top + 0.5, words, ha="center", va="center", fontsize=7.5, color=INK, backgroundcolor="white"
        )
        return
    extent = (left, left + 1, top + 1, top)
    image = read_image(directory, tile.file)
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=extent)
    axes.text(left + 0.5, top + 1.03, tile.word, ha="center", va="top", fontsize=7, color=INK)
