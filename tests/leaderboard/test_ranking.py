"""Verdicts and ranks on made-up runs whose right answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmark.store import read_run
from leaderboard.lines import Verdict, gather_lines
from leaderboard.ranking import Entry, Ranking, difference, rank_run


def rank(builder: Any, folder: Path) -> Ranking:
    (ranking,) = rank_run(read_run(builder.write(folder)))
    return ranking


def entry(ranking: Ranking, defense: str) -> Entry:
    (found,) = [item for item in ranking.entries if item.defense == defense]
    return found


@pytest.fixture
def pair(make_run: Any) -> Any:
    """Trainings of plain and of one defense called "shield", and the attack on plain that is the positive control."""
    builder = make_run()
    builder.train("plain")
    builder.train("shield")
    builder.attack("plain", gain=12, identified=1.0)
    return builder


def test_an_attack_at_the_floor_beside_a_working_control_is_a_defense(pair: Any, tmp_path: Path) -> None:
    pair.attack("shield", gain=-3)
    ranking = rank(pair, tmp_path)
    assert (entry(ranking, "shield").verdict, entry(ranking, "shield").rank) == (Verdict.AT_THE_FLOOR, 1)
    assert (entry(ranking, "plain").verdict, entry(ranking, "plain").rank) == (Verdict.LEAKS, 2)


def test_without_a_working_control_nothing_is_defended(make_run: Any, tmp_path: Path) -> None:
    builder = make_run()
    for defense in ("plain", "shield"):
        builder.train(defense)
        builder.attack(defense, gain=-3)
    ranking = rank(builder, tmp_path)
    for item in ranking.entries:
        assert (item.verdict, item.rank) == (Verdict.UNQUALIFIED, None)


def test_without_any_control_nothing_is_defended(pair: Any, tmp_path: Path) -> None:
    pair.attack("shield", gain=-3, controlled_by=None)
    assert entry(rank(pair, tmp_path), "shield").verdict is Verdict.UNQUALIFIED


def test_a_weak_attack_without_a_working_control_does_not_unqualify_a_strong_one(pair: Any, tmp_path: Path) -> None:
    pair.attack("plain", gain=-1, attack="dlg")
    pair.attack("shield", gain=-1, attack="dlg")
    pair.attack("shield", gain=-5)
    shield = entry(rank(pair, tmp_path), "shield")
    assert shield.verdict is Verdict.AT_THE_FLOOR
    assert shield.worst is not None
    assert shield.worst.attack == "cosine"


def test_the_worst_case_is_the_attack_with_the_highest_mean_identification(pair: Any, tmp_path: Path) -> None:
    pair.attack("plain", gain=8, identified=1.0, attack="dlg")
    pair.attack("shield", gain=9, identified=0.2)
    pair.attack("shield", gain=3, identified=0.9, attack="dlg")
    shield = entry(rank(pair, tmp_path), "shield")
    assert shield.worst is not None
    assert shield.worst.attack == "dlg"


def test_the_worst_case_is_never_picked_image_by_image(pair: Any, tmp_path: Path) -> None:
    pair.attack("plain", gain=8, identified=1.0, attack="dlg")
    pair.attack("shield", gain=4, spread=6)
    pair.attack("shield", gain=4, spread=6, attack="dlg")
    shield = entry(rank(pair, tmp_path), "shield")
    means = [line.summary.gain.mean for line in shield.lines if line.summary is not None]
    assert shield.scored.gain.mean == max(means)


def test_identification_above_chance_leaks_even_below_the_floor(pair: Any, tmp_path: Path) -> None:
    pair.attack("shield", gain=-5, identified=0.7)
    assert entry(rank(pair, tmp_path), "shield").verdict is Verdict.LEAKS


def test_differences_that_are_not_resolved_share_a_rank(pair: Any, tmp_path: Path) -> None:
    pair.train("shell")
    pair.train("veil")
    pair.attack("shield", gain=5, spread=3)
    pair.attack("shell", gain=5.1, spread=3)
    pair.attack("veil", gain=-6)
    ranks = {item.defense: item.rank for item in rank(pair, tmp_path).entries}
    assert ranks == {"veil": 1, "shield": 2, "shell": 2, "plain": 4}


def test_gain_decides_where_identification_does_not(pair: Any, tmp_path: Path) -> None:
    """One more image identified by chance must not put the defense that leaks 8 dB less behind."""
    pair.train("shell")
    pair.attack("shield", gain=9, stream="shared")
    pair.attack("shell", gain=1, stream="shared")
    lucky = next(index for index, row in enumerate(pair.image_rows) if "/shell/" in row.cell)
    pair.image_rows[lucky] = replace(pair.image_rows[lucky], identified=True)
    ranks = {item.defense: item.rank for item in rank(pair, tmp_path).entries}
    assert ranks == {"shell": 1, "shield": 2, "plain": 3}


def test_a_tie_is_with_the_first_of_a_rank_and_does_not_chain(pair: Any, tmp_path: Path) -> None:
    for step, gain in enumerate((4.0, 4.9, 5.8, 6.7)):
        pair.train(f"veil-{step}")
        pair.attack(f"veil-{step}", gain=gain, spread=2.5)
    entries = {item.defense: item for item in rank(pair, tmp_path).entries}
    first, last = entries["veil-0"], entries["veil-3"]
    assert not difference(last, first, "gain").contains(0.0)
    assert first.rank == 1
    assert last.rank > 1
    assert any(item.rank == 1 for name, item in entries.items() if name in ("veil-1", "veil-2"))
    for item in entries.values():
        leader = next(other for other in entries.values() if other.rank == item.rank)
        assert leader.rank == 1 + sum(other.rank < leader.rank for other in entries.values())


def test_an_oblivious_attacker_never_gives_a_verdict(pair: Any, make_run: Any, tmp_path: Path) -> None:
    pair.cells.clear()
    pair.image_rows.clear()
    for defense, gain in (("plain", 12), ("shield", -4)):
        pair.attack(defense, gain=gain, knowledge="oblivious")
    for item in rank(pair, tmp_path).entries:
        assert (item.verdict, item.rank) == (Verdict.NEGATIVE_CONTROL, None)
        assert item.summary is not None


def test_oracles_stand_apart_and_are_not_ranked(pair: Any, tmp_path: Path) -> None:
    pair.attack("shield", gain=9, oracles="labels", controlled_by=None)
    pair.attack("shield", gain=-4)
    rankings = rank_run(read_run(pair.write(tmp_path)))
    by_oracle = {ranking.setting.oracles: entry(ranking, "shield") for ranking in rankings}
    assert by_oracle[""].verdict is Verdict.AT_THE_FLOOR
    assert (by_oracle["labels"].verdict, by_oracle["labels"].rank) == (Verdict.ORACLE, None)


@pytest.mark.parametrize("outcome", ["not evaluated", "not applicable"])
def test_an_adaptive_adversary_without_an_attack_is_not_evaluated(pair: Any, tmp_path: Path, outcome: str) -> None:
    pair.attack("shield", outcome=outcome, detail="needs a keyed image")
    shield = entry(rank(pair, tmp_path), "shield")
    assert (shield.verdict, shield.rank) == (Verdict.NOT_EVALUATED, None)
    assert shield.notes == ("needs a keyed image",)


def test_an_earned_shortcut_is_at_the_floor_and_says_why(pair: Any, tmp_path: Path) -> None:
    pair.attack("shield", gain=-4, outcome="ciphertext", spread=0)
    shield = entry(rank(pair, tmp_path), "shield")
    assert (shield.verdict, shield.rank) == (Verdict.AT_THE_FLOOR, 1)
    assert "earned shortcut" in shield.notes[0]


def test_an_earned_shortcut_does_not_stand_in_for_a_control(make_run: Any, tmp_path: Path) -> None:
    builder = make_run()
    for defense, outcome in (("plain", "measured"), ("shield", "ciphertext")):
        builder.train(defense)
        builder.attack(defense, gain=-3, outcome=outcome)
    shield = entry(rank(builder, tmp_path), "shield")
    assert (shield.verdict, shield.rank) == (Verdict.UNQUALIFIED, None)


def test_a_crashed_cell_is_shown_and_takes_the_rank(pair: Any, tmp_path: Path) -> None:
    pair.attack("shield", gain=-4, only_seeds=(0, 1))
    pair.attack("shield", outcome="crashed", detail="RuntimeError: out of memory", only_seeds=(2,))
    shield = entry(rank(pair, tmp_path), "shield")
    assert (shield.verdict, shield.rank) == (Verdict.CRASHED, None)
    assert shield.notes == ("1 of 3 cells crashed, so it has no rank: RuntimeError: out of memory",)


def test_a_leak_beside_a_crash_stays_a_leak_without_a_rank(pair: Any, tmp_path: Path) -> None:
    pair.attack("shield", gain=8)
    pair.attack("shield", outcome="crashed", detail="RuntimeError", attack="dlg", controlled_by=None)
    shield = entry(rank(pair, tmp_path), "shield")
    assert (shield.verdict, shield.rank) == (Verdict.LEAKS, None)


def test_a_snapshot_where_no_attack_works_is_named(pair: Any, tmp_path: Path) -> None:
    pair.attack("plain", gain=-2, snapshot=4)
    pair.attack("shield", gain=-2, snapshot=4)
    pair.attack("shield", gain=-2)
    shield = entry(rank(pair, tmp_path), "shield")
    assert shield.verdict is Verdict.AT_THE_FLOOR
    assert any(note.startswith("unqualified at round 4") for note in shield.notes)


def test_the_usual_run(usual_folder: Path) -> None:
    tables = read_run(usual_folder)
    rankings = {(r.setting.victim_kind, r.setting.adversary): r for r in rank_run(tables)}
    assert len(rankings) == 6
    server = rankings["probe", "server/adaptive"]
    assert [(item.defense, item.rank, item.verdict) for item in server.entries] == [
        ("paillier", 1, Verdict.AT_THE_FLOOR),
        ("plain", 2, Verdict.LEAKS),
        ("keynet", None, Verdict.NOT_EVALUATED),
        ("keynet+qsgd", None, Verdict.NOT_EVALUATED),
    ]
    collusion = rankings["probe", "collusion/adaptive"]
    assert {item.verdict for item in collusion.entries} == {Verdict.LEAKS}
    assert entry(collusion, "paillier").rank == entry(collusion, "plain").rank
    lines = gather_lines(tables)
    assert sum(len(line.cells) for line in lines) == len(tables.cells)
