"""Figures of what leakage depends on: when they are drawn, and what stands in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmark.store import read_run
from leaderboard.figures.conditions import CONDITIONS, Panel, _panels, _tick, draw_conditions
from leaderboard.figures.style import Picture, Styles
from leaderboard.lines import gather_lines
from leaderboard.ranking import rank_lines
from leaderboard.trainings import summarise_trainings

BATCH, STEPS, STAGE = CONDITIONS


def varied(builder: Any, *places: tuple[str, int], attacks: tuple[str, ...] = ("cosine",)) -> Any:
    """Two defenses at each (regime, snapshot), the leakage falling from one to the next."""
    for defense in ("plain", "keynet"):
        builder.train(defense)
        for index, (probe, snapshot) in enumerate(places):
            for attack in attacks:
                builder.attack(
                    defense, gain=12 - 3 * index, attack=attack, probe=probe, snapshot=snapshot, controlled_by=None
                )
    return builder


def drawn(builder: Any, folder: Path) -> list[Picture]:
    tables = read_run(builder.write(folder))
    rankings = rank_lines(gather_lines(tables))
    return list(draw_conditions(rankings, summarise_trainings(tables), Styles.of(["plain", "keynet"])))


def panels(builder: Any, folder: Path, condition: Any) -> list[Panel]:
    return _panels(gather_lines(read_run(builder.write(folder))), condition)


def test_one_regime_at_two_snapshots_is_no_curve(make_run: Any, tmp_path: Path) -> None:
    assert drawn(varied(make_run(), ("probe b1 s1 e1", 0), ("probe b1 s1 e1", 4)), tmp_path) == []


@pytest.mark.parametrize(
    ("places", "name"),
    [
        ((("probe b1 s1 e1", 0), ("probe b4 s1 e1", 0)), "batch"),
        ((("probe b2 s1 e1", 0), ("probe b2 s4 e4", 0)), "local-steps"),
        ((("probe b1 s1 e1", 0), ("probe b1 s1 e1", 1), ("probe b1 s1 e1", 4)), "training-stage"),
    ],
)
def test_what_a_run_varies_is_drawn_and_nothing_else(
    make_run: Any, tmp_path: Path, places: tuple[tuple[str, int], ...], name: str
) -> None:
    (picture,) = drawn(varied(make_run(), *places), tmp_path)
    assert (picture.kind, picture.name) == ("conditions", f"{name}-mnist5k-lenet-fedavg-probe")
    assert picture.png.startswith(b"\x89PNG")
    assert "5,000 MNIST digits" in picture.caption


def test_a_curve_holds_all_else_alike(make_run: Any, tmp_path: Path) -> None:
    places = [(f"probe b{batch} s{steps} e{steps}", 0) for batch in (1, 2, 8) for steps in (1, 3)]
    builder = varied(make_run(seeds=(0,)), *places)
    found = panels(builder, tmp_path, BATCH)
    assert [panel.fixed for panel in found] == ["1 local step, round 0", "3 local steps, round 0"]
    for panel, steps in zip(found, (1, 3), strict=True):
        assert {curve.defense for curve in panel.curves} == {"plain", "keynet"}
        for curve in panel.curves:
            assert {batch: line.regime for batch, line in curve.lines.items()} == {
                batch: f"probe b{batch} s{steps} e{steps}" for batch in (1, 2, 8)
            }
    by_steps = panels(builder, tmp_path, STEPS)
    assert [panel.fixed for panel in by_steps] == ["1 image, round 0", "2 images, round 0", "8 images, round 0"]


def test_histories_of_other_lengths_are_apart(make_run: Any, tmp_path: Path) -> None:
    places = [("probe b1 s1 e1", 0), ("probe b2 s1 e1, rounds so far", 0)]
    assert panels(varied(make_run(seeds=(0,)), *places), tmp_path, BATCH) == []


def test_values_stand_in_their_order(make_run: Any, tmp_path: Path) -> None:
    places = [(f"probe b{batch} s1 e1", 0) for batch in (16, 2, 1)]
    (panel,) = panels(varied(make_run(seeds=(0,)), *places), tmp_path, BATCH)
    for curve in panel.curves:
        assert list(curve.lines) == [1, 2, 16]
        means = [line.scored.psnr.mean for line in curve.lines.values()]
        assert means == sorted(means), "the smaller a batch, the lower the gain that was made up here"


def test_real_rounds_have_stages_and_no_batch(make_run: Any, tmp_path: Path) -> None:
    builder = make_run()
    builder.train("plain")
    for snapshot in (0, 2, 4):
        builder.attack("plain", gain=5, victim_kind="real-round", snapshot=snapshot, controlled_by=None)
    (picture,) = drawn(builder, tmp_path)
    assert picture.name == "training-stage-mnist5k-lenet-fedavg-real-round"


def test_a_stage_says_how_good_the_model_was(make_run: Any, tmp_path: Path) -> None:
    builder = make_run(seeds=(0, 1))
    builder.train("plain", accuracy_by_round=[0.1, 0.5, 0.7, 0.8, 0.9])
    tables = read_run(builder.write(tmp_path))
    (plain,) = summarise_trainings(tables)
    assert _tick(2, STAGE, plain) == "2\n(70% right)"
    assert _tick(2, STAGE, None) == "2"
    assert _tick(2, BATCH, plain) == "2"
