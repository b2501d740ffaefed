"""What tests of the command line share: calling it in this process, and a finished run that it made."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

import benchmark.scoring
from benchmark.metrics.perceptual import Unavailable
from benchmark.store import RunTables, read_run
from federation.datasets import DATA_DIRECTORY_VARIABLE
from keyhole import api
from keyhole.main import app

EXAMPLE = Path(__file__).parents[2] / "examples" / "first_layer.py"
"""A new attack of some twenty lines: on logistic regression an update states its image."""

SMALL = {"federations.0.defenses": ["plain", "keynet"], "victims.real_round": ...}

Offline = Callable[[pytest.MonkeyPatch], None]
Invoke = Callable[..., Result]


@pytest.fixture(scope="session")
def invoke() -> Invoke:
    """Runs `keyhole` with these arguments in this process."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture(scope="session")
def one_line() -> Callable[..., str]:
    """The only line on standard error, where nothing but it says how the command ended."""

    def of(result: Result, code: int = 2) -> str:
        assert result.exit_code == code, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit), "no traceback"
        lines = result.stderr.splitlines()
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("keyhole: ")
        return lines[0]

    return of


@pytest.fixture
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

    def __call__(self, workers: int | None = None, device: str = "cpu") -> Serial:
        return self

    def __enter__(self) -> Serial:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, jobs: Any) -> Any:
        return self._engine().run(jobs)


@contextlib.contextmanager
def serial_jobs(engine: Any, offline: Offline) -> Iterator[None]:
    """Jobs run in this process, so that tests reach into them; ST-LPIPS, which takes longest, is left out."""
    with pytest.MonkeyPatch.context() as patch:
        offline(patch)
        patch.setattr(api, "LocalEngine", Serial(engine))
        patch.setattr(benchmark.scoring, "load_st_lpips", lambda: Unavailable("left out"))
        benchmark.scoring.perceptual_metrics.cache_clear()
        try:
            yield
        finally:
            benchmark.scoring.perceptual_metrics.cache_clear()


@pytest.fixture(scope="module")
def serially(serial_engine: Any, offline: Offline) -> Iterator[None]:
    """All tests of a module with `serial_jobs`."""
    with serial_jobs(serial_engine, offline):
        yield


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


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_content: Callable[..., dict[str, Any]],
    serial_engine: Any,
    offline: Offline,
    invoke: Invoke,
) -> Finished:
    """`keyhole run tiny.yaml --attack cosine --attack new_attack.py:FirstLayer`, done once."""
    folder = tmp_path_factory.mktemp("command")
    experiment, plug_in = folder / "tiny.yaml", folder / "new_attack.py"
    experiment.write_text(yaml.safe_dump(tiny_content(SMALL)))
    shutil.copy(EXAMPLE, plug_in)
    attack = f"{plug_in}:FirstLayer"
    with serial_jobs(serial_engine, offline):
        result = invoke("run", experiment, "--attack", "cosine", "--attack", attack, "--out", folder / "runs" / "tiny")
    return Finished(folder / "runs" / "tiny", experiment, attack, result)
