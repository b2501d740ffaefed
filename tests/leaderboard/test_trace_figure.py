"""The trace of an attack and originals beside reconstructions: what is drawn is what was measured."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from leaderboard.figures import trace as drawing
from leaderboard.figures.beside import Pair, draw_beside
from leaderboard.figures.trace import draw_trace


@dataclass(frozen=True)
class Search:
    evaluations: tuple[int, ...]
    objective: tuple[float, ...]
    psnr: tuple[float, ...]


SEARCHES = [
    Search((1, 10, 20), (1.0, 0.1, 0.01), (8.0, 15.0, 30.0)),
    Search((1, 10, 15), (2.0, 0.5, 0.4), (7.0, 9.0, 10.0)),
    Search((1, 10, 20), (4.0, float("inf"), 0.2), (6.0, 11.0, 20.0)),
]


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def test_medians_hold_searches_that_ended_early(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    panel = drawing._panel

    def noted(axes: Axes, steps: Any, values: Any, colour: str) -> None:
        drawn.append((steps, values))
        panel(axes, steps, values, colour)

    monkeypatch.setattr(drawing, "_panel", noted)
    draw_trace(SEARCHES, "an attack", floor=12.0)
    (steps, objective), (_, quality) = drawn
    assert steps.tolist() == [1, 10, 15, 20]
    assert quality[1].tolist() == [7, 9, 10, 10]
    assert np.median(quality, axis=0).tolist() == [7, 11, 11, 20]
    assert objective[2].tolist()[0] == 4
    assert np.isnan(objective[2][1:3]).all(), "an objective that is not finite is left out"


@pytest.mark.parametrize("objective", [(1.0, 0.5, 0.1), (-1.0, -2.0, -3.0)])
def test_the_figure_is_a_picture_of_both_panels(objective: tuple[float, ...]) -> None:
    content = draw_trace([Search((1, 10, 20), objective, (8.0, 15.0, 30.0))], "an attack with $ in its name")
    picture = np.asarray(opened(content).convert("RGB")).reshape(-1, 3)
    for colour in (drawing.OBJECTIVE, drawing.PSNR):
        rgb = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
        assert (picture == rgb).all(1).sum() > 200, "a line in this colour"
    again = draw_trace([Search((1, 10, 20), objective, (8.0, 15.0, 30.0))], "an attack with $ in its name")
    assert content == again


@pytest.mark.parametrize("count", [1, 5])
def test_originals_and_reconstructions_stand_side_by_side(count: int) -> None:
    dark, light = np.full((8, 8), 40, np.uint8), np.full((8, 8), 200, np.uint8)
    pairs = [Pair(dark, light if index else None, f"{index} dB") for index in range(count)]
    picture = np.asarray(opened(draw_beside(pairs, "an attack")).convert("L"))
    side = 150 * 150
    assert (picture == 40).sum() == pytest.approx(count * side, rel=0.1)
    assert (picture == 200).sum() == pytest.approx((count - 1) * side, rel=0.1)
