"""How commands end: their exit status, and one line on standard error for what a person can mend."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from typer.testing import Result

import keyhole.commands.check
from benchmark.store import read_run
from federation.errors import DataError
from leaderboard.gate import Status

pytestmark = pytest.mark.usefixtures("surroundings", "serially")

Invoke = Callable[..., Result]
OneLine = Callable[..., str]


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
        (["smoke", "--device", "cuda:99"], ["device 'cuda:99' is not here", "devices of this machine: cpu"]),
        (["smoke", "--device", "gpu"], ["device 'gpu'", "auto, cpu, cuda and cuda:N"]),
        (["missing.yaml"], ["missing.yaml", "not a readable experiment"]),
        (["smoke", "--lpips-trunk", "missing.pth"], ["missing.pth", "does not exist"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_name_is_one_line_with_near_matches(
    invoke: Invoke, one_line: OneLine, options: list[str], parts: list[str]
) -> None:
    message = one_line(invoke("run", *options))
    assert all(part in message for part in parts), message


def test_a_corrupt_experiment_is_one_line_that_names_the_place(
    invoke: Invoke, one_line: OneLine, tmp_path: Path
) -> None:
    (tmp_path / "bad.yaml").write_text("name: bad\nseeds: [0, [")
    assert "bad.yaml: not YAML" in one_line(invoke("run", "bad.yaml"))
    (tmp_path / "odd.yaml").write_text("name: odd\npreset: x\nseeds: [zero]\nfederations: []\n")
    assert "odd.yaml: seeds.0: " in one_line(invoke("run", "odd.yaml"))


def test_missing_data_is_one_line_that_says_where_it_is_looked_for(
    invoke: Invoke, one_line: OneLine, tmp_path: Path
) -> None:
    message = one_line(invoke("run", "smoke", "--task", "mnist-lenet5", "--data-dir", tmp_path / "nowhere"))
    assert "nowhere" in message
    assert "--download" in message or "KEYHOLE_DATA_DIR" in message


def test_options_that_typer_refuses_end_with_2_and_no_traceback(invoke: Invoke) -> None:
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


def test_a_training_that_diverges_leaves_earlier_results_as_they_were(
    invoke: Invoke, one_line: OneLine, finished: Any, tmp_path: Path
) -> None:
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
    invoke: Invoke, one_line: OneLine, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
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


def test_a_damaged_run_is_one_line(invoke: Invoke, one_line: OneLine, finished: Any, tmp_path: Path) -> None:
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
    invoke: Invoke, one_line: OneLine, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    monkeypatch.setattr(keyhole.commands.check, "gate", raising(error))
    assert one_line(invoke("check", "run", "--baseline", "base"), code).startswith(message)


def test_an_error_of_the_program_itself_is_not_swallowed(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyhole.commands.check, "gate", raising(ZeroDivisionError("a mistake of ours")))
    assert isinstance(invoke("check", "run", "--baseline", "base").exception, ZeroDivisionError)


@pytest.mark.parametrize("status", Status)
def test_the_gate_s_status_is_the_exit_code(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: Status
) -> None:
    class Verdict:
        markdown = "# what changed"

    Verdict.status = status  # type: ignore[attr-defined]
    monkeypatch.setattr(keyhole.commands.check, "gate", lambda run, baseline: Verdict)
    result = invoke("check", "run", "--baseline", "base", "--summary", tmp_path / "gate.md")
    assert result.exit_code == int(status)
    assert "# what changed" in result.stdout
    assert (tmp_path / "gate.md").read_text() == "# what changed"


def test_a_run_passes_the_gate_against_itself(invoke: Invoke, finished: Any, tmp_path: Path) -> None:
    accepted = invoke("baseline", "accept", finished.directory, tmp_path / "base", "--reason", "the first")
    assert accepted.exit_code == 0, accepted.output
    result = invoke("check", finished.directory, "--baseline", tmp_path / "base")
    assert result.exit_code == 0, result.output
    missing = invoke("check", finished.directory, "--baseline", tmp_path / "nothing")
    assert missing.exit_code == 3, missing.output


def test_a_reader_that_goes_away_is_no_error(subprocess_environment: dict[str, str]) -> None:
    command = f"'{sys.executable}' -m keyhole list tasks | head -c 7"
    shown = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=subprocess_environment, check=False
    )
    assert (shown.stdout, shown.stderr) == ("cifar10", "")
