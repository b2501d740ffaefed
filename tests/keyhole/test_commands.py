"""The command line from the outside: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import errno
import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

import benchmark.scoring
import keyhole.commands.check
from attacks.base import ATTACKS
from benchmark.experiment import Experiment
from benchmark.experiment_files import embedded_experiments
from benchmark.metrics.perceptual import Unavailable
from benchmark.store import RunTables, read_run
from defenses.registry import DEFENSES
from federation.datasets import DATA_DIRECTORY_VARIABLE
from federation.errors import DataError
from federation.tasks import TASKS
from federation.threat import ADVERSARIES
from keyhole import api
from keyhole.main import app
from leaderboard.gate import Status

EXAMPLE = Path(__file__).parents[2] / "examples" / "first_layer.py"
"""A new attack of some twenty lines: on logistic regression an update states its image."""

Offline = Callable[[pytest.MonkeyPatch], None]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def one_line(result: Result, code: int = 2) -> str:
    """The only line on standard error, where nothing but it says how the command ended."""
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), "no traceback"
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("keyhole: ")
    return lines[0]


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: Offline) -> None:
    """An empty folder to work in, no data directory, and a wide terminal."""
    offline(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(DATA_DIRECTORY_VARIABLE, raising=False)
    monkeypatch.setenv("COLUMNS", "200")


class Serial:
    """Stands in for the pool of worker processes."""

    def __init__(self, engine: Any) -> None:
        self._engine, self.workers = engine, 1

    def __call__(self, workers: int | None = None) -> Serial:
        return self

    def __enter__(self) -> Serial:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, jobs: Any) -> Any:
        return self._engine().run(jobs)


@pytest.fixture(scope="module")
def serially(serial_engine: Any, offline: Offline) -> Iterator[None]:
    """Jobs run in this process, so that tests reach into them; ST-LPIPS, which takes longest, is left out."""
    with pytest.MonkeyPatch.context() as patch:
        offline(patch)
        patch.setattr(api, "LocalEngine", Serial(serial_engine))
        patch.setattr(benchmark.scoring, "load_st_lpips", lambda: Unavailable("left out"))
        benchmark.scoring.perceptual_metrics.cache_clear()
        yield
    benchmark.scoring.perceptual_metrics.cache_clear()


@dataclass(frozen=True)
class Finished:
    """A run that the command line made, and what it printed."""

    directory: Path
    experiment: Path
    attack: str
    result: Result

    @property
    def tables(self) -> RunTables:
        return read_run(self.directory)


SMALL = {"federations.0.defenses": ["plain", "keynet"], "victims.real_round": ...}


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_content: Callable[..., dict[str, Any]], serially: None
) -> Finished:
    """`keyhole run tiny.yaml --attack cosine --attack new_attack.py:FirstLayer`, done once."""
    folder = tmp_path_factory.mktemp("command")
    experiment, plug_in = folder / "tiny.yaml", folder / "new_attack.py"
    experiment.write_text(yaml.safe_dump(tiny_content(SMALL)))
    shutil.copy(EXAMPLE, plug_in)
    attack = f"{plug_in}:FirstLayer"
    result = invoke("run", experiment, "--attack", "cosine", "--attack", attack, "--out", folder / "runs" / "tiny")
    return Finished(folder / "runs" / "tiny", experiment, attack, result)


def command_paths(group: Any = None, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    group = group or typer.main.get_command(app)
    found = [path]
    for name, command in getattr(group, "commands", {}).items():
        found += command_paths(command, (*path, name))
    return found


@pytest.mark.parametrize("path", command_paths(), ids=" ".join)
def test_every_command_and_every_option_says_what_it_does(path: tuple[str, ...]) -> None:
    result = invoke(*path, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout
    command: Any = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]
    assert command.help
    assert " ".join(command.help.split())[:60] in " ".join(result.stdout.split())
    for parameter in command.params:
        if parameter.name != "help":
            assert parameter.help, f"{' '.join(path)} {parameter.name} has no help"


def test_without_a_command_the_help_is_shown() -> None:
    result = invoke()
    assert result.exit_code == 2
    assert all(name in result.output for name in ("run", "report", "check", "list", "score"))


EXPECTED = {
    "attacks": ATTACKS.names(),
    "defenses": DEFENSES.names(),
    "tasks": TASKS.names(),
    "adversaries": ADVERSARIES.names(),
    "experiments": list(embedded_experiments()),
}


@pytest.mark.parametrize("what", EXPECTED)
def test_list_names_everything_with_a_description(what: str) -> None:
    result = invoke("list", what, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert set(EXPECTED[what]) <= set(found)
    assert all(found.values()), "every entry has a description"
    shown = invoke("list", what)
    assert shown.exit_code == 0
    assert all(name in shown.stdout for name in found)


def test_a_run_prints_the_leaderboard_and_says_beforehand_how_long_it_takes(finished: Finished) -> None:
    assert finished.result.exit_code == 0, finished.result.output
    printed = finished.result.stdout
    assert printed.index("Experiment tiny: for tests") < printed.index("Takes about") < printed.index("training: ")
    for part in ("server/oblivious", "server/adaptive", "collusion/adaptive", "plain", "keynet", "Done in"):
        assert part in printed


def test_a_run_writes_tables_images_and_a_page(finished: Finished) -> None:
    tables = finished.tables
    assert set(tables.cells.attack) == {"cosine", "first-layer"}
    assert len(tables.cells) == 2 * 2 * 3
    for path in [*tables.images.original, *tables.images.reconstruction]:
        assert (finished.directory / path).is_file()
    assert (finished.directory / "report" / "index.html").stat().st_size > 10_000


def test_the_secret_root_is_private_and_apart(finished: Finished) -> None:
    root = finished.directory.parent / "tiny.root"
    assert stat.S_IMODE(root.stat().st_mode) == 0o600
    secret = root.read_text().strip().encode()
    for path in finished.directory.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert secret not in content
            assert bytes.fromhex(secret.decode()) not in content


def test_a_new_attack_from_a_file_is_in_every_table(finished: Finished) -> None:
    tables = finished.tables
    cells = tables.cells[(tables.cells.attack == "first-layer") & (tables.cells.defense == "plain")]
    assert (cells.outcome == "measured").all()
    images = tables.images[tables.images.cell.isin(cells.cell)]
    assert images.identified.all(), "on logistic regression the update states the image"
    assert "first-layer" in finished.result.stdout
    written = [path for path in (finished.directory / "report").rglob("*") if path.suffix in (".md", ".csv", ".html")]
    assert {path.suffix for path in written if "first-layer" in path.read_text()} == {".md", ".csv", ".html"}


def test_the_same_command_again_repeats_no_work(finished: Finished) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished.directory / "artefacts").rglob("*")}
    again = invoke(
        *("run", finished.experiment, "--attack", "cosine", "--attack", finished.attack, "--out", finished.directory)
    )
    assert again.exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in (finished.directory / "artefacts").rglob("*")} == before


def test_report_prints_and_writes_the_same(finished: Finished, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(finished.directory, directory)
    shutil.rmtree(directory / "report")
    result = invoke("report", directory)
    assert result.exit_code == 0, result.output
    assert "first-layer" in result.stdout
    assert (directory / "report" / "index.html").is_file()


def test_json_is_all_that_is_printed_where_a_program_reads_it(finished: Finished) -> None:
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


def test_narrowing_options_narrow(finished: Finished, tmp_path: Path) -> None:
    result = invoke(
        *("run", finished.experiment, "--defense", "plain", "--attack", "cosine", "--adversary", "server/oblivious"),
        *("--seed", 3, "--task", "small-digits", "--out", tmp_path / "narrow", "--json"),
    )
    assert result.exit_code == 0, result.output
    json.loads(result.stdout)
    cells = read_run(tmp_path / "narrow").cells
    assert len(cells) == 1
    assert (cells.defense.item(), cells.seed.item(), cells.task.item()) == ("plain", 3, "small-digits")


def test_fresh_begins_anew_and_leaves_other_folders_alone(finished: Finished, tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["quik"], ["no experiment is called 'quik'", "quick"]),
        (["quick", "--preset", "smoke"], ["quick", "smoke", "not both"]),
        (["--preset", "tiny"], ["no experiment is called 'tiny'", "smoke"]),
        (["smoke", "--task", "mnist5k-lenet-zuh"], ["mnist5k-lenet-zuh", "mnist5k-lenet-zhu"]),
        (["smoke", "--defense", "key-net"], ["no defense is called 'key-net'", "keynet"]),
        (["smoke", "--attack", "cosin"], ["no attack is called 'cosin'", "cosine"]),
        (["smoke", "--attack", "missing.py:Attack"], ["missing.py", "does not exist"]),
        (["smoke", "--adversary", "sever/adaptive"], ["sever/adaptive", "server/adaptive"]),
        (["smoke", "--seed", "1", "--seed", "1"], ["seeds", "twice"]),
        (["missing.yaml"], ["missing.yaml", "not a readable experiment"]),
        (["smoke", "--lpips-trunk", "missing.pth"], ["missing.pth", "does not exist"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_name_is_one_line_with_near_matches(options: list[str], parts: list[str], serially: None) -> None:
    message = one_line(invoke("run", *options))
    assert all(part in message for part in parts), message


def test_a_corrupt_experiment_is_one_line_that_names_the_place(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: bad\nseeds: [0, [")
    assert "bad.yaml: not YAML" in one_line(invoke("run", "bad.yaml"))
    (tmp_path / "odd.yaml").write_text("name: odd\npreset: x\nseeds: [zero]\nfederations: []\n")
    assert "odd.yaml: seeds.0: " in one_line(invoke("run", "odd.yaml"))


def test_missing_data_is_one_line_that_says_where_it_is_looked_for(serially: None, tmp_path: Path) -> None:
    message = one_line(invoke("run", "smoke", "--task", "mnist-lenet5", "--data-dir", tmp_path / "nowhere"))
    assert "nowhere" in message
    assert "--download" in message or "KEYHOLE_DATA_DIR" in message


def test_options_that_typer_refuses_end_with_2_and_no_traceback() -> None:
    for arguments in (
        ["run", "--workers", "0"],
        ["run", "--seed", "one"],
        ["walk"],
        ["list", "dragons"],
        ["check", "x"],
    ):
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert "Traceback" not in result.output
        assert "Error: " in result.stderr


def test_a_training_that_diverges_leaves_earlier_results_as_they_were(finished: Finished, tmp_path: Path) -> None:
    content = yaml.safe_load(finished.experiment.read_text())
    content["federations"][0]["algorithm"]["learning_rate"] = 1e38
    content["victims"] = {"real_round": {"images": 1}}
    (tmp_path / "wild.yaml").write_text(yaml.safe_dump(content))
    directory = tmp_path / "run"
    shutil.copytree(finished.directory, directory)
    before = read_run(directory)
    message = one_line(invoke("run", "wild.yaml", "--out", directory))
    assert "small-digits, plain, round 0, client-0: training made" in message
    after = read_run(directory)
    assert after.manifest == before.manifest
    pd.testing.assert_frame_equal(after.cells, before.cells)


@pytest.mark.parametrize("name", ["row.json", ".png", "images.parquet", "manifest.json", "index.html"])
def test_a_full_disk_is_one_line_and_nothing_half_written(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    replace = Path.replace

    def fails(self: Path, target: Path) -> Path:
        if str(target).endswith(name):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return replace(self, target)

    options = ("--defense", "plain", "--attack", "cosine", "--adversary", "server/oblivious")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fails)
        message = one_line(invoke("run", finished.experiment, *options, "--out", "run"))
    assert "the disk is full" in message
    assert name in message
    assert not [path for path in tmp_path.rglob("*") if ".tmp" in path.name]
    assert (tmp_path / "run" / "manifest.json").exists() == (name == "index.html")
    assert invoke("run", finished.experiment, *options, "--out", "run").exit_code == 0
    assert len(read_run(tmp_path / "run").cells) == 1


def test_a_damaged_run_is_one_line(finished: Finished, tmp_path: Path) -> None:
    assert "manifest.json is missing" in one_line(invoke("report", tmp_path))
    directory = tmp_path / "copy"
    shutil.copytree(finished.directory, directory)
    (directory / "cells.parquet").write_bytes((directory / "cells.parquet").read_bytes()[:-20])
    assert "cells.parquet" in one_line(invoke("report", directory))


def raising(error: BaseException) -> Callable[..., Any]:
    def gate(*_: object) -> Any:
        raise error

    return gate


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "keyhole: interrupted; finished work is kept"),
        (DataError("first line\nsecond line"), 2, "keyhole: first line second line"),
        (OSError(errno.ENOSPC, "No space left on device", "some/file"), 2, "keyhole: the disk is full (some/file)"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 2, "keyhole: Permission denied (a/b)"),
    ],
    ids=["interrupt", "house error", "full disk", "permission"],
)
def test_errors_end_with_their_code_and_one_line(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    monkeypatch.setattr(keyhole.commands.check, "gate", raising(error))
    assert one_line(invoke("check", "run", "--baseline", "base"), code).startswith(message)


def test_an_error_of_the_program_itself_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyhole.commands.check, "gate", raising(ZeroDivisionError("a mistake of ours")))
    assert isinstance(invoke("check", "run", "--baseline", "base").exception, ZeroDivisionError)


@pytest.mark.parametrize("status", Status)
def test_the_gate_s_status_is_the_exit_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: Status) -> None:
    class Verdict:
        markdown = "# what changed"

    Verdict.status = status  # type: ignore[attr-defined]
    monkeypatch.setattr(keyhole.commands.check, "gate", lambda run, baseline: Verdict)
    result = invoke("check", "run", "--baseline", "base", "--summary", tmp_path / "gate.md")
    assert result.exit_code == int(status)
    assert "# what changed" in result.stdout
    assert (tmp_path / "gate.md").read_text() == "# what changed"


def test_a_run_passes_the_gate_against_itself(finished: Finished, tmp_path: Path) -> None:
    accepted = invoke("baseline", "accept", finished.directory, tmp_path / "base", "--reason", "the first")
    assert accepted.exit_code == 0, accepted.output
    result = invoke("check", finished.directory, "--baseline", tmp_path / "base")
    assert result.exit_code == 0, result.output
    missing = invoke("check", finished.directory, "--baseline", tmp_path / "nothing")
    assert missing.exit_code == 3, missing.output


def test_the_same_from_python(finished: Finished, tmp_path: Path) -> None:
    """As five lines of a script would have it."""
    experiment = Experiment.model_validate(yaml.safe_load(finished.experiment.read_text()))
    tables = api.run(experiment, defenses=["plain"], adversaries=["server/oblivious"], out=tmp_path / "run")
    assert set(tables.cells.outcome) == {"measured"}
    assert len(tables.images) == 3


def test_a_reader_that_goes_away_is_no_error(subprocess_environment: dict[str, str]) -> None:
    command = f"'{sys.executable}' -c 'from keyhole.main import main; main()' list tasks | head -c 7"
    shown = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=subprocess_environment, check=False
    )
    assert (shown.stdout, shown.stderr) == ("cifar10", "")
