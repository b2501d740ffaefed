"""Figures of rounds and bytes: when they are drawn, and what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark.store import read_run
from leaderboard.figures.communication import TARGET_SHARE, Reached, draw_communication, target_of
from leaderboard.figures.style import Picture, Styles
from leaderboard.trainings import TrainingSummary, summarise_trainings


def summaries(builder: Any, folder: Path) -> list[TrainingSummary]:
    return summarise_trainings(read_run(builder.write(folder)))


def drawn(items: list[TrainingSummary]) -> list[Picture]:
    return list(draw_communication(items, Styles.of([item.defense for item in items if not item.reference])))


def test_one_algorithm_and_one_size_of_message_have_nothing_to_compare(make_run: Any, tmp_path: Path) -> None:
    builder = make_run()
    builder.train("plain")
    builder.train("keynet")
    builder.train("", reference="centralised", algorithm="another")
    assert drawn(summaries(builder, tmp_path)) == []


def test_a_defense_under_several_algorithms_has_its_progress_drawn(make_run: Any, tmp_path: Path) -> None:
    builder = make_run()
    for tau in (1, 5, 20):
        builder.train("qsgd", algorithm=f"fedpaq tau={tau}")
    builder.train("keynet", algorithm="fedpaq tau=5")
    (picture,) = drawn(summaries(builder, tmp_path))
    assert (picture.kind, picture.name) == ("accuracy", "communication-mnist5k-lenet-qsgd")
    assert "Target" not in picture.caption
    assert picture.png.startswith(b"\x89PNG")


def test_messages_of_several_sizes_are_compared_by_bytes(make_run: Any, tmp_path: Path) -> None:
    builder = make_run()
    builder.train("plain", accuracy=0.9)
    builder.train("qsgd", accuracy=0.9, bytes_up=7_000)
    builder.train("plain", task="another", accuracy=0.9)
    items = summaries(builder, tmp_path)
    (picture,) = drawn(items)
    assert picture.name == "bytes-to-target-mnist5k-lenet"
    target = target_of([item for item in items if item.task == "mnist5k-lenet"])
    assert target is not None
    assert f"Target: {100 * target:.1f}%" in picture.caption


def test_the_target_is_a_share_of_the_best_undefended_accuracy(make_run: Any, tmp_path: Path) -> None:
    builder = make_run(seeds=(0,))
    builder.train("plain", accuracy=0.8, algorithm="one")
    builder.train("plain", accuracy=0.9, algorithm="two")
    builder.train("keynet", accuracy=0.99, algorithm="two")
    items = summaries(builder, tmp_path)
    best = max(item.accuracy for item in items if item.defense == "plain")
    assert target_of(items) == TARGET_SHARE * best
    assert target_of([item for item in items if item.defense == "keynet"]) is None


@pytest.mark.parametrize(
    ("target", "rounds", "within"), [(0.1, 0, True), (0.5, 1, True), (0.75, 3, True), (0.8, 3, True), (0.81, 4, False)]
)
def test_the_first_round_whose_mean_is_good_counts(
    make_run: Any, tmp_path: Path, target: float, rounds: int, within: bool
) -> None:
    builder = make_run(seeds=(0, 1))
    builder.train("plain", bytes_up=1000, accuracy_by_round=[0.1, 0.5, 0.7, 0.8, 0.6])
    (item,) = summaries(builder, tmp_path)
    assert Reached.of(item, target) == Reached(rounds, 1000.0 * rounds, within)


def test_seeds_count_by_their_mean(make_run: Any, tmp_path: Path) -> None:
    builder = make_run(seeds=(0,))
    builder.train("plain", accuracy_by_round=[0.1, 0.9, 0.9, 0.9, 0.9])
    builder.seeds = (1,)
    builder.train("plain", accuracy_by_round=[0.1, 0.1, 0.5, 0.9, 0.9])
    builder.seeds = (0, 1)
    (item,) = summaries(builder, tmp_path)
    np.testing.assert_allclose(item.accuracy_by_round.mean(axis=0), [0.1, 0.5, 0.7, 0.9, 0.9])
    assert Reached.of(item, 0.7).rounds == 2
