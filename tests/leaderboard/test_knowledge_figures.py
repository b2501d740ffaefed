"""Figures of oblivious and adaptive attackers: when they are drawn, and what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmark.store import read_run
from leaderboard.figures.knowledge import Contest, _contests, draw_knowledge
from leaderboard.figures.matrix import _reason, _score, _strongest, draw_matrices
from leaderboard.figures.style import Picture, Styles
from leaderboard.lines import Line, gather_lines
from leaderboard.ranking import Ranking, rank_lines
from leaderboard.trainings import summarise_trainings

DEFENSES = ("plain", "keynet", "keynet-soft", "paillier")


def contest_run(builder: Any, *, adaptive: bool = True) -> Any:
    """Plain leaks, Key-Net to who knows it, soft keys are beyond the attack, Paillier is ciphertext."""
    for defense in DEFENSES:
        builder.train(defense)
    for attack in ("cosine", "dlg", "keynet-gauge"):
        common: dict[str, Any] = {"attack": attack, "stream": "shared"}
        builder.attack("plain", gain=12, identified=1.0, knowledge="oblivious", controlled_by=None, **common)
        for defense in ("keynet", "keynet-soft"):
            builder.attack(defense, gain=-4, knowledge="oblivious", **common)
        builder.attack("paillier", gain=-6, outcome="ciphertext", spread=0, knowledge="oblivious", **common)
    if adaptive:
        for attack in ("cosine", "dlg", "keynet-gauge"):
            knows: dict[str, Any] = {"attack": attack, "knowledge": "adaptive", "stream": "shared"}
            builder.attack("plain", gain=12, identified=1.0, controlled_by=None, **knows)
            unknown = {"outcome": "not evaluated", "detail": f"{attack} does not know how to undo keynet"}
            beyond = {"outcome": "not applicable", "detail": "needs keys that mix no channels (these are soft)"}
            gauge = attack == "keynet-gauge"
            builder.attack("keynet", **(knows | ({"gain": 11, "identified": 1.0} if gauge else unknown)))
            builder.attack("keynet-soft", **(knows | (beyond if gauge else unknown)))
            other = {"outcome": "not applicable", "detail": "made for keynet"}
            builder.attack("paillier", **(knows | (other if gauge else {"gain": 0, "outcome": "ciphertext"})), spread=0)
    return builder


def rankings_of(builder: Any, folder: Path) -> tuple[list[Line], list[Ranking], list[Any]]:
    tables = read_run(builder.write(folder))
    lines = gather_lines(tables)
    return lines, rank_lines(lines), summarise_trainings(tables)


def knowledge_of(builder: Any, folder: Path) -> list[Picture]:
    _, rankings, trainings = rankings_of(builder, folder)
    return list(draw_knowledge(rankings, trainings, Styles.of(DEFENSES)))


def test_both_attackers_are_drawn_where_a_run_has_both(make_run: Any, tmp_path: Path) -> None:
    (picture,) = knowledge_of(contest_run(make_run()), tmp_path)
    assert picture.kind == "knowledge"
    assert picture.name == "knowledge-mnist5k-lenet-fedavg-probe-server"
    assert picture.title.startswith("Oblivious and adaptive: server")
    assert "Filled" in picture.caption
    assert picture.png.startswith(b"\x89PNG")


def test_the_oblivious_attacker_is_drawn_alone_and_said_to_be(make_run: Any, tmp_path: Path) -> None:
    (picture,) = knowledge_of(contest_run(make_run(), adaptive=False), tmp_path)
    assert picture.title.startswith("The oblivious attacker: server")
    assert "Filled" not in picture.caption
    assert "negative control" in picture.caption


def test_nothing_is_compared_without_an_oblivious_attacker_on_two_defenses(make_run: Any, tmp_path: Path) -> None:
    builder = make_run()
    builder.train("plain")
    builder.train("keynet")
    builder.attack("plain", gain=9, knowledge="oblivious")
    for defense in ("plain", "keynet"):
        builder.attack(defense, gain=9, position="collusion")
        builder.attack(defense, gain=9, knowledge="oblivious", oracles="labels")
    assert knowledge_of(builder, tmp_path) == []


def contests(builder: Any, folder: Path) -> dict[str, Contest]:
    _, rankings, _ = rankings_of(builder, folder)
    return {contest.defense: contest for contest in _contests(rankings)}


def test_a_row_holds_each_attackers_own_worst_case(make_run: Any, tmp_path: Path) -> None:
    found = contests(contest_run(make_run()), tmp_path)
    assert next(iter(found)) == "plain"
    oblivious, adaptive = found["keynet"].scored
    assert oblivious.setting.knowledge == "oblivious"
    assert oblivious.scored.psnr.mean < oblivious.scored.floor < adaptive.scored.psnr.mean
    assert [entry.setting.knowledge for entry in found["keynet-soft"].scored] == ["oblivious"]


@pytest.mark.parametrize(
    ("defense", "words"),
    [
        ("plain", "nothing hidden: 100% identified"),
        ("keynet", "keynet-gauge: 100% identified"),
        ("keynet-soft", "not evaluated"),
        ("paillier", "ciphertext: at the floor"),
    ],
)
def test_the_words_beside_a_row_are_of_who_knows_the_defense(
    make_run: Any, tmp_path: Path, defense: str, words: str
) -> None:
    assert words in contests(contest_run(make_run()), tmp_path)[defense].words


def test_every_attack_on_every_defense_has_a_cell_with_its_score_or_its_reason(make_run: Any, tmp_path: Path) -> None:
    lines, rankings, trainings = rankings_of(contest_run(make_run()), tmp_path)
    (picture,) = draw_matrices(rankings, trainings)
    assert picture.name == "attacks-mnist5k-lenet-fedavg-probe-server-adaptive"
    cells = _strongest([line for line in lines if line.setting.knowledge == "adaptive"])
    assert set(cells) == {(defense, attack) for defense in DEFENSES for attack in ("cosine", "dlg", "keynet-gauge")}
    assert "100% identified" in _score(cells["keynet", "keynet-gauge"])
    assert "at the floor" in _score(cells["paillier", "cosine"])
    assert _score(cells["keynet-soft", "keynet-gauge"]) == ""
    assert _reason(cells["keynet-soft", "keynet-gauge"]).replace("\n", " ") == (
        "needs keys that mix no channels (these are soft)"
    )
    assert _reason(cells["plain", "cosine"]) == ""


def test_a_cell_shows_the_snapshot_where_most_is_found(make_run: Any, tmp_path: Path) -> None:
    builder = make_run()
    builder.train("plain")
    for snapshot, gain in ((0, 3.0), (4, 9.0)):
        builder.attack("plain", gain=gain, snapshot=snapshot, controlled_by=None)
    lines, _, _ = rankings_of(builder, tmp_path)
    (cell,) = _strongest(lines).values()
    assert cell.snapshot == 4


def test_two_attacks_are_no_matrix(make_run: Any, tmp_path: Path) -> None:
    builder = make_run()
    for defense in ("plain", "keynet"):
        builder.train(defense)
        for attack in ("cosine", "dlg"):
            builder.attack(defense, gain=5, attack=attack, controlled_by=None)
    _, rankings, trainings = rankings_of(builder, tmp_path)
    assert list(draw_matrices(rankings, trainings)) == []
