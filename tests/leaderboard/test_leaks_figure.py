"""Figures of leakage by leaks: when they are drawn, and where their points stand."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.axes
import numpy as np
import pytest

from benchmark.store import ROUNDS_SO_FAR, read_run
from leaderboard.figures.leaks import KEY_FINDINGS, draw_leaks
from leaderboard.figures.style import Picture, Styles
from leaderboard.ranking import rank_run
from leaderboard.trainings import summarise_trainings

GAIN_ERROR, PLACED = KEY_FINDINGS
ERRORS = {0: 0.5, 1: 0.01, 2: 0.001}


def spanning(
    builder: Any, snapshots: tuple[int, ...] = (0, 1, 2), positions: tuple[str, ...] = ("server",), **attack: Any
) -> Any:
    """A run in which a static key falls with the rounds and a rotating one does not; plain leaks at once."""
    for defense in ("plain", "static", "rotating"):
        builder.train(defense)
        for position, snapshot in itertools.product(positions, snapshots):
            gain = {"plain": 12.0, "static": 4.0 * snapshot, "rotating": 0.0}[defense]
            common = {"snapshot": snapshot, "attack": "gauge", "position": position, **attack}
            builder.attack(defense, gain=gain, identified=float(gain > 5), **common)
    builder.cells = [
        replace(
            cell,
            regime=f"{cell.regime}, {ROUNDS_SO_FAR}",
            findings=json.dumps({GAIN_ERROR: ERRORS[cell.snapshot]} if cell.defense == "static" else {}),
        )
        for cell in builder.cells
    ]
    return builder


def drawn(builder: Any, folder: Path) -> list[Picture]:
    tables = read_run(builder.write(folder))
    styles = Styles.of(["plain", "static", "rotating"])
    return list(draw_leaks(rank_run(tables), summarise_trainings(tables), styles))


def test_a_run_whose_attacks_see_one_snapshot_each_has_none(usual_run: Any, tmp_path: Path) -> None:
    assert drawn(usual_run, tmp_path) == []


def test_a_single_snapshot_is_no_line(make_run: Any, tmp_path: Path) -> None:
    assert drawn(spanning(make_run(), snapshots=(1,)), tmp_path) == []


def test_adversaries_without_a_verdict_are_left_out(make_run: Any, tmp_path: Path) -> None:
    assert drawn(spanning(make_run(), knowledge="oblivious"), tmp_path) == []


def test_one_figure_an_attack_and_one_line_a_defense(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[tuple[str, list[int], list[float]]] = []
    errorbar = matplotlib.axes.Axes.errorbar

    def spy(axes: Any, across: Any, along: Any, **options: Any) -> Any:
        assert np.all(np.asarray(options["yerr"]) >= 0)
        lines.append((options["color"], list(across), list(along)))
        return errorbar(axes, across, along, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "errorbar", spy)
    (picture,) = drawn(spanning(make_run()), tmp_path)
    assert (picture.kind, picture.name) == ("conditions", "leaks-mnist5k-lenet-fedavg-probe-gauge")
    assert picture.png.startswith(b"\x89PNG")
    colours = Styles.of(["plain", "static", "rotating"]).colours
    # gain over the floor and identification of three defenses, and the error of the key of the one that has it
    assert len(lines) == 3 * 2 + 1
    each = 8  # probes of a snapshot and seed in the made-up run
    assert all(across == [each, 2 * each, 3 * each] for _, across, _ in lines)
    by_colour = {colour: [along for found, _, along in lines if found == colour] for colour in colours.values()}
    over_floor, identified, errors = by_colour[colours["static"]]
    assert over_floor == pytest.approx([0, 4, 8], abs=1.5)
    assert identified == [0.0, 0.0, 1.0]
    assert errors == pytest.approx(list(ERRORS.values()))
    assert by_colour[colours["plain"]][1] == [1.0] * 3
    assert by_colour[colours["rotating"]][1] == [0.0] * 3


def test_adversaries_stand_side_by_side(make_run: Any, tmp_path: Path) -> None:
    (both,) = drawn(spanning(make_run(), positions=("server", "eavesdropper")), tmp_path / "both")
    (one,) = drawn(spanning(make_run()), tmp_path / "one")
    assert both.width > 1.5 * one.width
