"""One look for all figures: colours and markers that stay with a defense, type sizes, and writing PNGs."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import matplotlib
import seaborn as sns
from matplotlib.figure import Figure

from benchmark.store import UNDEFENDED
from leaderboard.lines import defense_order

INK = "#1f2933"
QUIET = "#7b8794"
MARKERS = ("o", "s", "^", "P", "X", "v", "D", "<", ">")
RESOLUTION = 150
"""Dots per inch."""


Kind = Literal["tradeoff", "knowledge", "conditions", "accuracy", "reconstructions", "confusion"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Picture:
    """A finished figure. `kind` groups it on the page, `name` is its file name without ".png"."""

    kind: Kind
    name: str
    title: str
    caption: str
    png: bytes

    @property
    def width(self) -> int:
        """Width in CSS pixels, of which an inch has 96, from the PNG's header."""
        return round(int.from_bytes(self.png[16:20]) * 96 / RESOLUTION)


@dataclass(frozen=True)
class Styles:
    """Colour and marker of each defense, the same in every figure of a run."""

    colours: dict[str, str]
    markers: dict[str, str]

    @classmethod
    def of(cls, defenses: Iterable[str]) -> Styles:
        """Undefended is drawn in ink; the others take colours that the colour-blind can tell apart."""
        names = sorted(set(defenses) - {UNDEFENDED}, key=defense_order)
        palette = sns.color_palette("colorblind" if len(names) <= 10 else "husl", max(10, len(names))).as_hex()
        markers = {name: MARKERS[index % len(MARKERS)] for index, name in enumerate(names)}
        return cls({UNDEFENDED: INK, **dict(zip(names, palette, strict=False))}, {UNDEFENDED: "d", **markers})


SETTINGS: dict[Any, Any] = {
    "axes.edgecolor": "#cbd2d9",
    "grid.color": "#e4e7eb",
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    # Names come from outside and may hold dollar signs, which are not mathematics.
    "text.parse_math": False,
    "text.usetex": False,
}


@contextlib.contextmanager
def look() -> Iterator[None]:
    """The settings under which a figure is made and written; global settings stay as they were."""
    with sns.axes_style("whitegrid"), matplotlib.rc_context(SETTINGS):
        yield


def png(figure: Figure) -> bytes:
    """The figure as PNG on white, the same bytes for the same figure."""
    buffer = io.BytesIO()
    metadata = {"Software": None}
    figure.savefig(buffer, format="png", dpi=RESOLUTION, bbox_inches="tight", facecolor="white", metadata=metadata)
    return buffer.getvalue()


def file_name(*parts: str) -> str:
    """A file name from names that may hold anything."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")
