"""What several test files need: one thread, a tiny experiment, and a run of it that is made once a session."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import benchmark.scoring
from benchmark.experiment import Experiment, validated
from benchmark.harness import run_experiment
from benchmark.metrics.perceptual import Unavailable
from benchmark.metrics.trunk import TRUNK_VARIABLE
from benchmark.store import RunTables, read_run
from benchmark.workspace import Workspace
from federation.datasets import SPLITS, Dataset, LabelledImages, assemble_dataset, load_dataset
from federation.secret_root import SecretRoot
from federation.tasks import TASKS, Task

TINY: Mapping[str, Any] = {
    "name": "tiny",
    "preset": "for tests",
    "seeds": [0],
    "adversaries": ["server/oblivious", "server/adaptive", "collusion/adaptive"],
    "federations": [
        {
            "task": "small-digits",
            "defenses": ["plain", "keynet", "paillier"],
            "snapshots": [0],
            "references": False,
            "algorithm": {
                "clients": 2,
                "rounds": 1,
                "batch_size": 50,
                "steps": 2,
                "learning_rate": 0.1,
                "partition": {"kind": "iid"},
            },
        }
    ],
    "attacks": [{"name": "cosine", "evaluations": 8}],
    "victims": {"probe": {"count": 3, "batch": 1, "rate": 0.1}, "real_round": {"images": 2}},
}


def load_small_digits(data_directory: Path | None, download: bool) -> Dataset:
    """The digits of mnist5k in 14 x 14 pixels, so that encrypting a model takes a moment only."""
    whole = load_dataset("mnist5k")

    def shrunk(images: LabelledImages) -> LabelledImages:
        pixels = F.avg_pool2d(images.images.float(), 2).round().to(torch.uint8)
        return LabelledImages(pixels, images.labels)

    splits = {split: shrunk(getattr(whole, split)) for split in SPLITS}
    return assemble_dataset("small-digits", whole.classes, splits, "mnist5k at half its size")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Results do not depend on the number of threads that PyTorch would use."""
    torch.set_num_threads(1)


Offline = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="session")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Offline:
    """Changes the environment so that LPIPS stays empty without a try to download its weights."""
    home = tmp_path_factory.mktemp("torch-home")
    cached = home / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"no weights: tests do not download them")

    def apply(patch: pytest.MonkeyPatch) -> None:
        patch.setenv("TORCH_HOME", str(home))
        patch.delenv(TRUNK_VARIABLE, raising=False)

    return apply


def changed(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy with some values replaced, each named by its path: {"federations.0.task": "mnist5k-lenet5"}."""
    copied: Any = copy.deepcopy(dict(content))
    for path, value in changes.items():
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        place = copied
        for part in parents:
            place = place[part]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return copied


@pytest.fixture(scope="session")
def small_digits() -> Iterator[None]:
    """Two tasks on them, registered as another package would."""
    with pytest.MonkeyPatch.context() as patch:
        for name, model in {"small-digits": "logistic", "small-digits-lenet-zhu": "lenet-zhu"}.items():
            task = Task(name, "small-digits", model, "for tests", load=load_small_digits)
            patch.setitem(TASKS._entries, name, task)
        yield


@pytest.fixture(scope="session")
def tiny_content(small_digits: None) -> Callable[..., dict[str, Any]]:
    """Content of an experiment file that runs in seconds; call it with changes by path, `...` to delete."""
    return lambda changes=None: changed(TINY, changes or {})


@pytest.fixture(scope="session")
def tiny_experiment(tiny_content: Callable[..., dict[str, Any]]) -> Callable[..., Experiment]:
    """The same as an `Experiment`."""
    return lambda changes=None: validated(tiny_content(changes), "a tiny experiment")


@dataclass
class SerialEngine:
    """Runs jobs one after the other in this process; raises `Interrupted` once `jobs_left` are done."""

    jobs_left: float = float("inf")

    class Interrupted(Exception):
        """Stands for whatever ends a run before its time."""

    def run(self, jobs: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> Iterator[tuple[int, Any]]:
        for index, (function, arguments) in enumerate(jobs):
            if self.jobs_left <= 0:
                raise self.Interrupted
            self.jobs_left -= 1
            yield index, function(*arguments)


@pytest.fixture(scope="session")
def serial_engine() -> type[SerialEngine]:
    return SerialEngine


class Silence:
    """Progress that nobody watches."""

    def begin(self, stage: str, total: int) -> None: ...

    def done(self, label: str) -> None: ...


Runner = Callable[..., RunTables]


@pytest.fixture(scope="session")
def run_in(offline: Offline) -> Runner:
    """Runs an experiment in a folder, serially in this process, and returns its tables.

    Keys and victims derive from `root`, bytes that the test chooses. ST-LPIPS, which takes longest, is left out unless
    asked for.
    """

    def run(
        directory: Path,
        experiment: Experiment,
        *,
        root: bytes = b"r" * 32,
        engine: Any = None,
        st_lpips: bool = False,
        device: str = "cpu",
    ) -> RunTables:
        root_file = directory.parent / f"{directory.name}-{root[:4].hex()}.root"
        workspace = Workspace(directory, root_file, device=device)
        SecretRoot(root).save(workspace.root_file)
        with pytest.MonkeyPatch.context() as patch:
            offline(patch)
            if not st_lpips:
                patch.setattr(benchmark.scoring, "load_st_lpips", lambda: Unavailable("left out"))
            benchmark.scoring.perceptual_metrics.cache_clear()
            try:
                run_experiment(experiment, workspace, progress=Silence(), engine=engine or SerialEngine())
            finally:
                benchmark.scoring.perceptual_metrics.cache_clear()
        return read_run(directory)

    return run


@dataclass(frozen=True)
class TinyRun:
    """A finished run, and what made it."""

    tables: RunTables
    experiment: Experiment
    workspace: Workspace


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, run_in: Runner, tiny_experiment: Any) -> TinyRun:
    """A finished run of the tiny experiment; nobody may change it."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    experiment = tiny_experiment()
    tables = run_in(directory, experiment, st_lpips=True)
    root_file = next(directory.parent.glob("*.root"))
    return TinyRun(tables, experiment, Workspace(directory, root_file))


VARYING = (
    *("seconds_keys", "seconds_train", "seconds_protect", "seconds_aggregate", "seconds_recover"),
    *("peak_memory_bytes", "seconds"),
)


@pytest.fixture(scope="session")
def assert_same_rows() -> Callable[[RunTables, RunTables], None]:
    """Two runs have the same rows but for seconds and memory."""

    def check(one: RunTables, other: RunTables) -> None:
        for name in ("trainings", "cells", "images"):
            frames = [getattr(run, name) for run in (one, other)]
            lasting = [frame.drop(columns=[column for column in VARYING if column in frame]) for frame in frames]
            pd.testing.assert_frame_equal(*lasting, check_exact=True)

    return check


@pytest.fixture(scope="session")
def subprocess_environment(offline: Offline) -> dict[str, str]:
    """What a child process needs to run `keyhole` from this checkout, on one thread and without the network."""
    with pytest.MonkeyPatch.context() as patch:
        offline(patch)
        patch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("COLUMNS", "200")
        return dict(os.environ)
