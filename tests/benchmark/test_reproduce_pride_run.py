"""The PriDe reproduction from end to end on small digits and a short key, and its stored result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import benchmark.reproduce.pride.key_lengths
from benchmark.reproduce.pride import run
from benchmark.reproduce.pride.run import Options, reproduce
from benchmark.store.pride import COLUMNS, FILE, PrideResult, read_pride, write_pride
from defenses.paillier.keys import generate_keypair
from federation.datasets import Dataset
from federation.errors import DataError, UsageError
from federation.tasks import find_task

AVERAGES = [f"cloud + party {number}" for number in range(1, 6)] + ["six parties"]
ALONE = ["centralised", *(f"party {number}" for number in range(6))]


class Log:
    """Progress that is remembered."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.counts: dict[str, int] = {}

    def begin(self, stage: str, total: int) -> None:
        self.totals[stage], self.counts[stage], self.stage = total, 0, stage

    def done(self, label: str) -> None:
        self.counts[self.stage] += 1


@pytest.fixture(scope="module")
def short_keys() -> Any:
    """Keys that a test can afford."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "generate_keypair", lambda bits, root: generate_keypair(512, root, allow_small=True))
        patch.setattr(benchmark.reproduce.pride.key_lengths, "BITS", (256,))
        yield


@pytest.fixture(scope="module")
def digits(small_digits: None) -> Dataset:
    return find_task("small-digits").load_data(None, False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, digits: Dataset, short_keys: Any) -> tuple[Path, PrideResult]:
    directory = tmp_path_factory.mktemp("pride")
    log = Log()
    result = reproduce(directory, digits, Options(), progress=log)
    assert log.totals == log.counts, "every job that was announced ended"
    return directory, result


def test_every_column_has_every_model_that_it_can(finished: tuple[Path, PrideResult]) -> None:
    result = finished[1]
    expected = {
        "printed": ALONE + AVERAGES,
        "coded": ALONE + AVERAGES,
        "coded-1e-7": AVERAGES,
        "sound": ALONE + AVERAGES,
    }
    assert {column: [row.model for row in result.models if row.column == column] for column in COLUMNS} == expected
    assert result.model_names == ALONE + AVERAGES


def test_columns_are_tested_on_their_own_images(finished: tuple[Path, PrideResult]) -> None:
    result = finished[1]
    for row in result.models:
        if row.column == "printed":
            continue
        assert row.accuracy == pytest.approx(np.trace(np.reshape(row.confusion, (10, 10))) / row.tested_on)
        own = result.setting.test if row.model == "centralised" else result.setting.slices[0]
        if row.column == "sound":
            assert row.tested_on == result.setting.test
        elif row.model in AVERAGES or row.model == "centralised":
            assert row.tested_on == own
    own = [result.find(f"party {number}", "coded") for number in range(6)]
    assert [row.tested_on for row in own if row is not None] == result.setting.slices


def test_adversaries_succeed_and_controls_fail(finished: tuple[Path, PrideResult]) -> None:
    rows = finished[1].adversaries
    quotient = [
        row.value for row in rows if row.measure == "weights recovered bit-exactly" and "no key" not in row.holds
    ]
    assert quotient == [1, 1, 0, 1]
    updates = [row for row in rows if row.unit == "dB"]
    assert [row.cases for row in updates] == [10, 10]
    assert updates[1].value == 60, "eq. 2.2 gives the image itself"
    assert updates[0].value > 20
    assert all(row.note for row in rows if row.adversary == "anyone on the wire")


def test_deviations_carry_measured_figures(finished: tuple[Path, PrideResult]) -> None:
    result = finished[1]
    words = " ".join(row.effect for row in result.deviations)
    accuracies = [one.accuracy for one in result.slices]
    assert f"{100 * min(accuracies):.1f} to {100 * max(accuracies):.1f}%" in words
    six = result.find("six parties", "sound")
    assert six is not None
    assert f"{100 * six.accuracy:.2f}%" in words
    assert six.accuracy == six.accuracy_on_all
    coded = result.find("six parties", "coded-1e-7")
    assert coded is not None
    assert coded.accuracy_on_all is not None
    assert f"as coded (1e-7) {100 * coded.accuracy_on_all:.2f}%" in words
    assert "392 of 1,970 parameters" in words
    assert len(result.deviations) == 6


def test_pictures_are_stored_beside_the_result(finished: tuple[Path, PrideResult]) -> None:
    directory, result = finished
    assert len(result.pictures) == 10 + 10 + 60
    for one in result.pictures:
        for name in (one.original, one.shown):
            with Image.open(directory / name) as image:
                assert (image.size, image.mode) == ((14, 14), "L")
    update = next(one for one in result.pictures if one.kind == "one-image update, eq. 2.2")
    assert (directory / update.original).read_bytes() == (directory / update.shown).read_bytes()
    assert not list(directory.rglob("*.tmp*"))


def test_a_finished_result_is_not_computed_again(
    finished: tuple[Path, PrideResult], digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, result = finished
    monkeypatch.setattr(run, "divide", lambda *arguments: pytest.fail("computed again"))
    assert reproduce(directory, digits, Options(), progress=Log()) == result


@pytest.mark.parametrize("options", [Options(seed=1), Options(key_bits=3072)])
def test_other_options_are_computed_anew(
    finished: tuple[Path, PrideResult], digits: Dataset, monkeypatch: pytest.MonkeyPatch, options: Options
) -> None:
    class Reached(Exception):
        """The computation began."""

    def reached(*_: object) -> None:
        raise Reached

    monkeypatch.setattr(run, "divide", reached)
    with pytest.raises(Reached):
        reproduce(finished[0], digits, options, progress=Log())


def test_an_interrupted_run_does_not_train_again(
    digits: Dataset, short_keys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Exception):
        """Stands for whatever ends a run."""

    def interrupted(*_: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(run, "_play", interrupted)
        with pytest.raises(Interrupted):
            reproduce(tmp_path, digits, Options(), progress=Log())
    assert not (tmp_path / FILE).exists()
    monkeypatch.setattr("benchmark.reproduce.pride.models.train", lambda points: pytest.fail("trained again"))
    monkeypatch.setattr(run, "_play", interrupted)
    with pytest.raises(Interrupted):
        reproduce(tmp_path, digits, Options(), progress=Log())


def test_short_keys_are_refused(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "generate_keypair", generate_keypair)
    with pytest.raises(UsageError, match="1024 bits"):
        reproduce(tmp_path, digits, Options(key_bits=1024), progress=Log())


def test_a_dataset_too_small_for_six_parties_is_refused(digits: Dataset, tmp_path: Path, short_keys: Any) -> None:
    few = replace(digits, **{split: getattr(digits, split).select(range(60)) for split in ("training", "test")})
    few = replace(few, **{split: getattr(digits, split).select(range(5)) for split in ("auxiliary", "victims")})
    with pytest.raises(DataError, match="too small for party 0"):
        reproduce(tmp_path, few, Options(), progress=Log())


def test_result_is_read_back_as_it_was_written(finished: tuple[Path, PrideResult]) -> None:
    assert read_pride(finished[0]) == finished[1]


def test_what_is_no_number_is_not_written(finished: tuple[Path, PrideResult], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a finite number"):
        write_pride(tmp_path, replace(finished[1], seconds=float("nan")))
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("models"), "models: Field required"),
        (lambda content: content["models"][0].update(column="wished"), "models.0.column"),
        (lambda content: content["manifest"].update(evaluator_version="0"), "evaluator version 0"),
        (lambda content: content["pictures"][0].update(shown="../../secret.png"), "outside the folder"),
        (lambda content: content["models"][0].update(accuracy=1.5), "must be in"),
        (lambda content: content["models"][-1].update(confusion=[1, 2]), "2 entries, not 100"),
    ],
)
def test_a_result_that_is_not_one_is_refused(
    finished: tuple[Path, PrideResult], tmp_path: Path, change: Any, message: str
) -> None:
    content = json.loads((finished[0] / FILE).read_text())
    change(content)
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_pride(tmp_path)


def test_a_folder_without_a_result_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no result\.json"):
        read_pride(tmp_path)
