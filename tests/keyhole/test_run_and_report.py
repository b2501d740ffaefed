"""`keyhole run` and `keyhole report` from the outside: what they print and what they write."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import Result

from benchmark.experiment import Experiment
from benchmark.store import read_run
from keyhole import api

pytestmark = pytest.mark.usefixtures("surroundings", "serially")

Invoke = Callable[..., Result]
OneLine = Callable[..., str]


def test_a_run_prints_the_leaderboard_and_says_beforehand_how_long_it_takes(finished: Any) -> None:
    assert finished.result.exit_code == 0, finished.result.output
    printed = finished.result.stdout
    assert printed.index("Experiment tiny: for tests") < printed.index("Takes about") < printed.index("training: ")
    for part in ("server/oblivious", "server/adaptive", "collusion/adaptive", "plain", "keynet", "Done in"):
        assert part in printed


def test_a_run_writes_tables_images_and_a_page(finished: Any) -> None:
    tables = finished.tables
    assert set(tables.cells.attack) == {"cosine", "first-layer"}
    assert len(tables.cells) == 2 * 2 * 3
    for path in [*tables.images.original, *tables.images.reconstruction]:
        assert (finished.directory / path).is_file()
    assert (finished.directory / "report" / "index.html").stat().st_size > 10_000


def test_the_secret_root_is_private_and_apart(finished: Any) -> None:
    root = finished.directory.parent / "tiny.root"
    assert stat.S_IMODE(root.stat().st_mode) == 0o600
    secret = root.read_text().strip().encode()
    for path in finished.directory.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert secret not in content
            assert bytes.fromhex(secret.decode()) not in content


def test_a_new_attack_from_a_file_is_in_every_table(finished: Any) -> None:
    tables = finished.tables
    cells = tables.cells[(tables.cells.attack == "first-layer") & (tables.cells.defense == "plain")]
    assert (cells.outcome == "measured").all()
    images = tables.images[tables.images.cell.isin(cells.cell)]
    assert images.identified.all(), "on logistic regression the update states the image"
    assert "first-layer" in finished.result.stdout
    written = [path for path in (finished.directory / "report").rglob("*") if path.suffix in (".md", ".csv", ".html")]
    assert {path.suffix for path in written if "first-layer" in path.read_text()} == {".md", ".csv", ".html"}


def test_the_same_command_again_repeats_no_work(invoke: Invoke, finished: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished.directory / "artefacts").rglob("*")}
    again = invoke(
        *("run", finished.experiment, "--attack", "cosine", "--attack", finished.attack, "--out", finished.directory)
    )
    assert again.exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in (finished.directory / "artefacts").rglob("*")} == before


def test_report_prints_and_writes_the_same(invoke: Invoke, finished: Any, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(finished.directory, directory)
    shutil.rmtree(directory / "report")
    result = invoke("report", directory)
    assert result.exit_code == 0, result.output
    assert "first-layer" in result.stdout
    assert (directory / "report" / "index.html").is_file()


def test_json_is_all_that_is_printed_where_a_program_reads_it(invoke: Invoke, finished: Any) -> None:
    result = invoke("report", finished.directory, "--json")
    assert result.exit_code == 0
    entries = json.loads(result.stdout)
    settings = {(entry["adversary"], entry["defense"]) for entry in entries}
    assert settings == {
        (adversary, defense)
        for adversary in ("server/oblivious", "server/adaptive", "collusion/adaptive")
        for defense in ("plain", "keynet")
    }
    verdicts = {(entry["adversary"], entry["defense"]): entry["verdict"] for entry in entries}
    assert verdicts["server/adaptive", "keynet"] == "not evaluated"


def test_narrowing_options_narrow(invoke: Invoke, finished: Any, tmp_path: Path) -> None:
    result = invoke(
        *("run", finished.experiment, "--defense", "plain", "--attack", "cosine", "--adversary", "server/oblivious"),
        *("--seed", 3, "--task", "small-digits", "--out", tmp_path / "narrow", "--json"),
    )
    assert result.exit_code == 0, result.output
    json.loads(result.stdout)
    cells = read_run(tmp_path / "narrow").cells
    assert len(cells) == 1
    assert (cells.defense.item(), cells.seed.item(), cells.task.item()) == ("plain", 3, "small-digits")


def test_fresh_begins_anew_and_leaves_other_folders_alone(
    invoke: Invoke, one_line: OneLine, finished: Any, tmp_path: Path
) -> None:
    options = ("--defense", "plain", "--attack", "cosine", "--adversary", "server/oblivious")
    directory = tmp_path / "run"
    assert invoke("run", finished.experiment, *options, "--out", directory).exit_code == 0
    (directory / "artefacts" / "left-over").write_text("from before")
    assert invoke("run", finished.experiment, *options, "--out", directory, "--fresh").exit_code == 0
    assert not (directory / "artefacts" / "left-over").exists()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("all of it")
    message = one_line(invoke("run", finished.experiment, *options, "--out", precious, "--fresh"))
    assert "precious is not the folder of a run" in message
    assert (precious / "thesis.tex").read_text() == "all of it"


def test_the_same_from_python(finished: Any, tmp_path: Path) -> None:
    """As five lines of a script would have it."""
    experiment = Experiment.model_validate(yaml.safe_load(finished.experiment.read_text()))
    tables = api.run(experiment, defenses=["plain"], adversaries=["server/oblivious"], out=tmp_path / "run")
    assert set(tables.cells.outcome) == {"measured"}
    assert len(tables.images) == 3
