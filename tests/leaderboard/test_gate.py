"""The gate on made-up runs: what must pass, what must be named, and with which status."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark.store import RunTables, read_run
from federation.errors import DataError, UsageError
from leaderboard.gate import GateResult, Status, accept_baseline, check, check_tables

Change = Callable[[Any], None]


def no_change(builder: Any) -> None:
    """The baseline as it is."""


@pytest.fixture
def compare(make_run: Any, tmp_path: Path) -> Callable[..., GateResult]:
    """Compare a run with a baseline that differs from it by one change to the builder."""

    def build(change: Change, folder: str, **manifest: Any) -> RunTables:
        builder = make_run()
        builder.train("plain")
        builder.train("shield")
        for attack, strength in (("cosine", 12.0), ("dlg", 8.0)):
            common = {"attack": attack, "stream": "shared"}
            builder.attack("plain", gain=strength, identified=0.9, **common)
            builder.attack("shield", gain=2.0, identified=0.3, knowledge="oblivious", controlled_by=None, **common)
            builder.attack("shield", gain=-7.0, **common)
        change(builder)
        return read_run(builder.write(tmp_path / folder, **manifest))

    def compared(change: Change, *, before: Change = no_change, **manifest: Any) -> GateResult:
        return check_tables(build(change, "run", **manifest), build(before, "baseline"))

    return compared


def shift(builder: Any, decibels: float, **where: str) -> None:
    """Move the PSNR of all images of the cells whose columns are as given."""
    cells = {row.cell for row in builder.cells if all(getattr(row, name) == value for name, value in where.items())}
    assert cells
    builder.image_rows = [
        replace(row, psnr=row.psnr + decibels, gain=row.gain + decibels) if row.cell in cells else row
        for row in builder.image_rows
    ]


def texts(result: GateResult, status: Status) -> list[str]:
    return [finding.text for finding in result.findings if finding.status is status]


def test_an_unchanged_run_passes(compare: Any) -> None:
    result = compare(no_change)
    assert result.status is Status.PASSED
    assert {item.difference.mean for item in result.comparisons} == {0.0}
    assert result.markdown.startswith("# Passed")


def test_a_weaker_attack_on_plain_is_named(compare: Any) -> None:
    result = compare(lambda builder: shift(builder, -3, defense="plain", attack="cosine"))
    assert result.status is Status.REGRESSED
    (text,) = texts(result, Status.REGRESSED)
    assert text.startswith("cosine on plain by server/adaptive, round 0, probe b1 s1 e1 (mnist5k-lenet, fedavg)")
    assert "# Regressed" in result.markdown


def test_within_the_margin_it_passes(compare: Any) -> None:
    assert compare(lambda builder: shift(builder, -0.4, attack="cosine")).status is Status.PASSED


def test_a_weaker_attack_on_a_defense_is_no_regression(compare: Any) -> None:
    assert compare(lambda builder: shift(builder, -6, defense="shield")).status is Status.PASSED


def test_a_leakier_defense_is_named_even_where_the_attacker_is_oblivious(compare: Any) -> None:
    result = compare(lambda builder: shift(builder, 5, defense="shield", knowledge="oblivious", attack="dlg"))
    (text,) = texts(result, Status.REGRESSED)
    assert text.startswith("dlg on shield by server/oblivious")


def test_noise_below_the_floor_is_no_leak(compare: Any) -> None:
    assert compare(lambda builder: shift(builder, 2, defense="shield", knowledge="adaptive")).status is Status.PASSED


def test_a_leak_out_of_the_floor_is_a_regression(compare: Any) -> None:
    result = compare(lambda builder: shift(builder, 14, defense="shield", knowledge="adaptive"))
    assert all("shield by server/adaptive" in text for text in texts(result, Status.REGRESSED))
    assert result.status is Status.REGRESSED


def test_only_the_worst_case_of_a_defense_counts(compare: Any) -> None:
    def strong_and_weak(builder: Any) -> None:
        shift(builder, 6, defense="shield", knowledge="oblivious", attack="cosine")

    def strong_and_middling(builder: Any) -> None:
        strong_and_weak(builder)
        shift(builder, 3, defense="shield", knowledge="oblivious", attack="dlg")

    assert compare(strong_and_middling, before=strong_and_weak).status is Status.PASSED


def test_another_attack_becoming_the_worst_case_is_seen(compare: Any) -> None:
    def cosine_finds_most(builder: Any) -> None:
        shift(builder, 3, defense="shield", knowledge="oblivious", attack="cosine")

    def dlg_finds_more(builder: Any) -> None:
        cosine_finds_most(builder)
        shift(builder, 9, defense="shield", knowledge="oblivious", attack="dlg")

    (text,) = texts(compare(dlg_finds_more, before=cosine_finds_most), Status.REGRESSED)
    assert text.startswith("dlg on shield by server/oblivious")
    assert "[the baseline's worst case: cosine, round 0, probe b1 s1 e1]" in text


def test_identification_is_gated_too(compare: Any) -> None:
    def seen(builder: Any) -> None:
        builder.image_rows = [
            replace(row, identified=True) if "/shield/" in row.cell and "oblivious" in row.cell else row
            for row in builder.image_rows
        ]

    (text,) = texts(compare(seen), Status.REGRESSED)
    assert "identification" in text


def test_an_improved_attack_passes_and_is_remarked(compare: Any) -> None:
    result = compare(lambda builder: shift(builder, 3, defense="plain"))
    assert result.status is Status.PASSED
    assert any("better than the baseline's" in text for text in texts(result, Status.PASSED))


def test_an_improved_attack_is_offered_as_the_reason_for_more_leakage(compare: Any) -> None:
    result = compare(lambda builder: shift(builder, 3, attack="cosine"))
    assert result.status is Status.REGRESSED
    assert any("accept the new figures" in text for text in texts(result, Status.PASSED))


@pytest.mark.parametrize("column", ["bytes_up", "bytes_down", "key_bytes"])
@pytest.mark.parametrize("change", [1, -1])
def test_one_byte_is_named(compare: Any, column: str, change: int) -> None:
    def send(builder: Any) -> None:
        builder.trainings = [
            replace(row, **{column: getattr(row, column) + change}) if row.defense == "shield" else row
            for row in builder.trainings
        ]

    def room(builder: Any) -> None:
        builder.trainings = [replace(row, key_bytes=10) for row in builder.trainings]

    def both(builder: Any) -> None:
        room(builder)
        send(builder)

    result = compare(both, before=room)
    assert result.status is Status.REGRESSED
    assert len(texts(result, Status.REGRESSED)) == 3
    assert all(text.startswith("shield (mnist5k-lenet, fedavg), seed") for text in texts(result, Status.REGRESSED))


def flip_correct(builder: Any, share: float) -> None:
    """Make the shield's models wrong on a share of the test images."""
    rng = np.random.default_rng(0)
    trainings = []
    for row in builder.trainings:
        bits = np.unpackbits(np.frombuffer(row.correct, dtype=np.uint8), count=row.test_count).astype(bool)
        bits &= rng.uniform(size=row.test_count) >= share
        changed = replace(row, correct=np.packbits(bits).tobytes(), accuracy=float(bits.mean()))
        trainings.append(changed if row.defense == "shield" else row)
    builder.trainings = trainings


def test_lower_accuracy_is_a_regression(compare: Any) -> None:
    (text,) = texts(compare(lambda builder: flip_correct(builder, 0.06)), Status.REGRESSED)
    assert text.startswith("shield (mnist5k-lenet, fedavg): accuracy")


def test_accuracy_within_a_point_passes(compare: Any) -> None:
    assert compare(lambda builder: flip_correct(builder, 0.008)).status is Status.PASSED


def replace_cells(builder: Any, outcome: str, **where: str) -> None:
    """Give the cells as given another outcome and no images."""
    cells = {row.cell for row in builder.cells if all(getattr(row, name) == value for name, value in where.items())}
    builder.cells = [replace(row, outcome=outcome, detail="why") if row.cell in cells else row for row in builder.cells]
    builder.image_rows = [row for row in builder.image_rows if row.cell not in cells]


@pytest.mark.parametrize(
    ("outcome", "status"),
    [("crashed", Status.REGRESSED), ("not applicable", Status.INCOMPARABLE), ("not evaluated", Status.INCOMPARABLE)],
)
def test_a_cell_that_is_no_longer_measured(compare: Any, outcome: str, status: Status) -> None:
    result = compare(
        lambda builder: replace_cells(builder, outcome, defense="shield", knowledge="adaptive", attack="dlg")
    )
    assert result.status is status
    assert all("dlg on shield by server/adaptive" in text and text.endswith("why") for text in texts(result, status))


def test_a_lost_shortcut_is_a_regression(compare: Any) -> None:
    def earned(builder: Any) -> None:
        builder.cells = [
            replace(row, outcome="ciphertext") if (row.defense, row.knowledge) == ("shield", "adaptive") else row
            for row in builder.cells
        ]

    result = compare(no_change, before=earned)
    assert len(texts(result, Status.REGRESSED)) == 6


def test_missing_cells_and_trainings_are_named(compare: Any) -> None:
    def forget(builder: Any) -> None:
        cells = {row.cell for row in builder.cells if row.defense == "shield"}
        builder.cells = [row for row in builder.cells if row.cell not in cells]
        builder.image_rows = [row for row in builder.image_rows if row.cell not in cells]
        builder.trainings = [row for row in builder.trainings if row.defense != "shield"]

    result = compare(forget)
    assert result.status is Status.INCOMPARABLE
    assert "missing from the run: shield (mnist5k-lenet, fedavg), seed 0" in texts(result, Status.INCOMPARABLE)


def test_a_new_attack_is_not_gated(compare: Any) -> None:
    def add(builder: Any) -> None:
        builder.attack("shield", gain=20, identified=1.0, attack="new", controlled_by=None)

    result = compare(add)
    assert result.status is Status.PASSED
    assert texts(result, Status.PASSED) == ["not gated, for the baseline does not have them: 3 cells"]


def test_other_victims_cannot_be_paired(compare: Any) -> None:
    def others(builder: Any) -> None:
        builder.image_rows = [replace(row, pairing=f"{row.pairing}/other") for row in builder.image_rows]

    assert compare(others).status is Status.INCOMPARABLE


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ({"evaluator_version": "2"}, "evaluator version differs: 2 in the run, 1 in the baseline"),
        ({"datasets": {"mnist5k": "cd"}}, "data set.mnist5k differs: cd in the run"),
        (
            {"config": {"experiment": "synthetic", "rounds": 5}},
            "config.rounds differs: 5 in the run, 4 in the baseline",
        ),
        ({"config": {"experiment": "synthetic"}}, "config.rounds differs: absent in the run"),
    ],
)
def test_what_makes_runs_incomparable_is_named(compare: Any, manifest: dict[str, Any], words: str) -> None:
    result = compare(lambda builder: shift(builder, -9), **manifest)
    assert result.status is Status.INCOMPARABLE
    (text,) = texts(result, Status.INCOMPARABLE)
    assert text.startswith(words)
    assert result.comparisons == ()


def test_too_few_images_are_not_a_pass(make_run: Any, tmp_path: Path) -> None:
    tables = []
    for folder in ("run", "baseline"):
        builder = make_run(seeds=(0,), images=1)
        builder.train("plain")
        builder.attack("plain", gain=12)
        tables.append(read_run(builder.write(tmp_path / folder)))
    assert check_tables(*tables).status is Status.INCOMPARABLE


def test_the_summary_states_what_could_have_been_seen(compare: Any) -> None:
    result = compare(lambda builder: shift(builder, -3, defense="plain", attack="cosine"))
    markdown = result.markdown
    assert "Detectable" in markdown
    assert all(item.detectable >= item.margin for item in result.comparisons)


def test_accepting_writes_a_small_baseline_and_a_change_log(usual_run: Any, tmp_path: Path) -> None:
    run, baseline = usual_run.write(tmp_path / "run"), tmp_path / "baseline"
    log = accept_baseline(run, baseline, "the first figures")
    assert check(run, baseline).status is Status.PASSED
    assert set(read_run(baseline).images["original"]) == {""}
    assert sum(path.stat().st_size for path in baseline.iterdir()) < 150_000
    assert "## 1. the first figures" in log.read_text()

    shift(usual_run, -3, defense="plain", attack="cosine")
    usual_run.write(tmp_path / "run")
    assert check(run, baseline).status is Status.REGRESSED
    accept_baseline(run, baseline, "a | weaker\nprior")
    first, second = log.read_text().split("## 2. ")
    assert "## 1. the first figures" in first
    assert second.startswith("a \\| weaker prior")
    assert "| plain by server/adaptive" in second
    assert "| keynet by" not in second
    assert check(run, baseline).status is Status.PASSED


def test_accepting_another_configuration_says_so(usual_run: Any, tmp_path: Path) -> None:
    accept_baseline(usual_run.write(tmp_path / "run"), tmp_path / "baseline", "first")
    run = usual_run.write(tmp_path / "run", config={"experiment": "other", "rounds": 4})
    log = accept_baseline(run, tmp_path / "baseline", "another experiment")
    assert "config.experiment differs: other now, synthetic before" in log.read_text()


def test_no_baseline_is_a_result_and_no_run_is_an_error(usual_run: Any, tmp_path: Path) -> None:
    run = usual_run.write(tmp_path / "run")
    assert check(run, tmp_path / "nowhere").status is Status.INCOMPARABLE
    with pytest.raises(DataError, match=r"manifest\.json is missing"):
        check(tmp_path / "nowhere", run)
    with pytest.raises(UsageError, match="reason"):
        accept_baseline(run, tmp_path / "baseline", " ")
