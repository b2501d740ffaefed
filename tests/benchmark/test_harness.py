"""The harness: repeatable, resumable, and never with half a result."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmark.engines.local import LocalEngine
from benchmark.experiment import Experiment
from benchmark.harness import cell_groups, training_plans
from benchmark.store import RunTables, read_run
from benchmark.workspace import Workspace
from federation.errors import DataError, KeyholeError
from federation.secret_root import SecretRoot

Tiny = Callable[..., Experiment]
RunIn = Callable[..., RunTables]
SameRows = Callable[[RunTables, RunTables], None]

SAMPLES = Path(__file__).with_name("sample_attacks.py")


def artefacts(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file of every finished artefact with its inode, time of writing and content."""
    return {
        str(path.relative_to(directory)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in (directory / "artefacts").rglob("*")
        if path.is_file()
    }


def leftovers(directory: Path) -> list[Path]:
    """Temporary files that a writer left behind."""
    return [
        path for path in directory.rglob("*") if path.name.endswith((".tmp", ".tmp.json")) or ".tmp" in path.suffixes
    ]


def test_two_runs_of_one_seed_and_one_root_have_the_same_rows(
    tmp_path: Path, tiny_run: Any, run_in: RunIn, assert_same_rows: SameRows
) -> None:
    again = run_in(tmp_path / "again", tiny_run.experiment, st_lpips=True)
    assert_same_rows(again, tiny_run.tables)
    for path in again.images.reconstruction:
        assert (again.directory / path).read_bytes() == (tiny_run.tables.directory / path).read_bytes()


def test_another_root_gives_other_victims(tmp_path: Path, tiny_run: Any, run_in: RunIn, tiny_experiment: Tiny) -> None:
    plain = tiny_experiment({"federations.0.defenses": ["plain"]})
    other = run_in(tmp_path / "other", plain, root=b"another root " * 3)
    assert set(other.images.pairing).isdisjoint(tiny_run.tables.images.pairing)
    assert set(other.trainings.training).isdisjoint(tiny_run.tables.trainings.training)


def test_another_seed_keeps_the_probes(tmp_path: Path, tiny_run: Any, run_in: RunIn, tiny_experiment: Tiny) -> None:
    experiment = tiny_experiment({"federations.0.defenses": ["plain"], "seeds": [0, 1]})
    images = run_in(tmp_path / "seeds", experiment).images
    by_seed = {seed: set(images.pairing[images.victim.str.startswith(f"seed{seed}/probe")].tolist()) for seed in (0, 1)}
    assert by_seed[0] == by_seed[1]
    assert by_seed[0] < set(tiny_run.tables.images.pairing)


def test_a_finished_run_is_not_computed_again(tmp_path: Path, tiny_run: Any, run_in: RunIn) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(tiny_run.tables.directory, directory)
    before = artefacts(directory)
    again = run_in(directory, tiny_run.experiment)
    assert artefacts(directory) == before
    for name in ("trainings", "cells", "images"):
        assert getattr(again, name).equals(getattr(tiny_run.tables, name)), "seconds and memory included"


@pytest.mark.parametrize("jobs", [1, 2, 4, 5])
def test_an_interrupted_run_goes_on_where_it_was(
    tmp_path: Path,
    tiny_experiment: Tiny,
    run_in: RunIn,
    serial_engine: Any,
    assert_same_rows: SameRows,
    jobs: int,
) -> None:
    undisturbed = tiny_experiment({"federations.0.defenses": ["plain", "keynet"]})
    directory = tmp_path / "run"
    with pytest.raises(serial_engine.Interrupted):
        run_in(directory, undisturbed, engine=serial_engine(jobs_left=jobs))
    assert not (directory / "manifest.json").exists()
    finished = artefacts(directory)
    assert len(list((directory / "artefacts" / "trainings").glob("*/row.json"))) == min(jobs, 2)
    resumed = run_in(directory, undisturbed)
    assert {name: state for name, state in artefacts(directory).items() if name in finished} == finished
    whole = run_in(tmp_path / "whole", undisturbed)
    assert_same_rows(resumed, whole)


def test_a_second_experiment_in_the_folder_shares_what_it_can(
    tmp_path: Path, run_in: RunIn, tiny_experiment: Tiny, assert_same_rows: SameRows
) -> None:
    small = tiny_experiment({"federations.0.defenses": ["plain"], "adversaries": ["server/oblivious"]})
    first = run_in(tmp_path / "run", small)
    before = artefacts(first.directory)
    larger = tiny_experiment({"federations.0.defenses": ["plain", "keynet"]})
    second = run_in(tmp_path / "run", larger)
    assert {name: state for name, state in artefacts(second.directory).items() if name in before} == before
    assert len(second.cells) == 12
    assert_same_rows(run_in(tmp_path / "run", small), first)


DAMAGED = {
    "trainings/*/row.json": "not a readable training",
    "trainings/*/probe-0-1.truth": "missing, or not what the training wrote",
    "trainings/*/probe-0-1.transcript": "missing, or not what the training wrote",
    "trainings/*/real-round-0-0.victim": "missing, or not what the training wrote",
    "attacks/*/result.json": "not a readable attack run",
    "attacks/*/reconstructions.safetensors": "not a readable attack run",
    "cells/*.json": "not a readable cell",
}
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda content: content[:-9],
    "emptied": lambda content: b"",
    "a byte changed": lambda content: bytes([content[0] ^ 0x80, *content[1:]]),
}


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory, run_in: RunIn, tiny_experiment: Tiny) -> RunTables:
    """A run of plain alone, to be copied."""
    return run_in(tmp_path_factory.mktemp("plain") / "run", tiny_experiment({"federations.0.defenses": ["plain"]}))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("pattern", DAMAGED)
def test_a_damaged_artefact_is_one_line_that_names_it_and_the_remedy(
    tmp_path: Path,
    plain_run: RunTables,
    run_in: RunIn,
    tiny_experiment: Tiny,
    assert_same_rows: SameRows,
    pattern: str,
    damage: str,
) -> None:
    experiment = tiny_experiment({"federations.0.defenses": ["plain"]})
    directory = tmp_path / "run"
    shutil.copytree(plain_run.directory, directory)
    file = next((directory / "artefacts").glob(pattern))
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    if not pattern.startswith("cells"):
        shutil.rmtree(directory / "artefacts" / "cells")  # else nobody looks at the rest again
    with pytest.raises(DataError, match=DAMAGED[pattern]) as caught:
        run_in(directory, experiment)
    message = str(caught.value)
    assert "\n" not in message
    assert str(file.parent) in message
    assert "to have it made anew" in message
    if file.parent.name == "cells":
        file.unlink()
    else:
        shutil.rmtree(file.parent)
    assert_same_rows(run_in(directory, experiment), plain_run)


@pytest.mark.parametrize(
    "name", ["row.json", "probe-0-2.truth", "real-round-0-0.transcript", "result.json", ".png", "manifest.json"]
)
def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path,
    run_in: RunIn,
    tiny_experiment: Tiny,
    monkeypatch: pytest.MonkeyPatch,
    plain_run: RunTables,
    assert_same_rows: SameRows,
    name: str,
) -> None:
    experiment = tiny_experiment({"federations.0.defenses": ["plain"]})
    with monkeypatch.context() as patch:
        fill_disk_at(patch, name)
        with pytest.raises(OSError, match="No space left on device"):
            run_in(tmp_path / "run", experiment)
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "run" / "manifest.json").exists()
    assert_same_rows(run_in(tmp_path / "run", experiment), plain_run)


def fill_disk_at(patch: pytest.MonkeyPatch, name: str) -> None:
    """From the first file whose name ends in `name` on, no temporary file can be put into its place."""
    replace = Path.replace
    full = False

    def fails(self: Path, target: Path) -> Path:
        nonlocal full
        full = full or str(target).endswith(name)
        if full:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return replace(self, target)

    patch.setattr(Path, "replace", fails)


def test_a_control_that_nobody_asked_for_stands_beside(tmp_path: Path, run_in: RunIn, tiny_experiment: Tiny) -> None:
    experiment = tiny_experiment({"federations.0.defenses": ["keynet"], "adversaries": ["collusion/adaptive"]})
    cells = run_in(tmp_path / "run", experiment).cells
    added = cells[cells.role == "positive control"]
    assert set(zip(added.defense, added.position, added.knowledge, strict=True)) == {("plain", "server", "oblivious")}
    asked = cells[cells.role == "attack"]
    assert set(asked.defense) == {"plain", "keynet"}
    assert set(asked.position) == {"collusion"}
    assert set(asked.control) == set(added.cell)


def test_every_cell_has_an_address_of_its_own(tmp_path: Path, tiny_experiment: Tiny) -> None:
    workspace = Workspace(tmp_path, tmp_path / "some.root")
    SecretRoot.fresh().save(workspace.root_file)
    experiment = tiny_experiment(
        {
            "seeds": [0, 1],
            "federations.0.defenses": ["plain", "keynet"],
            "federations.0.algorithm.rounds": 2,
            "federations.0.snapshots": [0, "last"],
            "attacks": [{"name": "cosine", "evaluations": 2}, {"name": f"{SAMPLES}:Sample", "evaluations": 1}],
        }
    )
    groups = cell_groups(experiment, training_plans(experiment, workspace))
    identifiers = [cell.identifier for group in groups for cell in group.cells]
    assert len(identifiers) == len(set(identifiers)) == 2 * 2 * 2 * 2 * 2 * 3


@pytest.fixture(scope="module")
def jobs_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Jobs that worker processes can import."""
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "some_jobs.py").write_text(
        "import os, time\n"
        "from federation.errors import DataError\n"
        "def die(): os._exit(9)\n"
        "def fail(message): raise DataError(message)\n"
        "def double(number): return 2 * number\n"
        "def process(): return os.getpid()\n"
        "def rest(seconds, file):\n"
        "    open(file, 'w').write(str(os.getpid()))\n"
        "    time.sleep(seconds)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(Path(__file__).parents[2])]))
        import some_jobs

        yield some_jobs


def test_workers_return_results_and_raise_the_house_errors(jobs_module: Any) -> None:
    with LocalEngine(1) as engine:
        results = dict(engine.run([(jobs_module.double, (3,)), (jobs_module.double, (4,))]))
        assert results == {0: 6, 1: 8}
        assert dict(engine.run([(jobs_module.process, ())])) == dict(engine.run([(jobs_module.process, ())]))
        with pytest.raises(DataError, match=r"^a file is missing$"):
            list(engine.run([(jobs_module.fail, ("a file is missing",))]))


def test_a_worker_that_dies_is_one_line(jobs_module: Any) -> None:
    with LocalEngine(1) as engine, pytest.raises(KeyholeError, match=r"a worker process died.*run again") as caught:
        list(engine.run([(jobs_module.die, ()), (jobs_module.double, (1,))]))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(
    tmp_path: Path,
    tiny_content: Callable[..., dict[str, Any]],
    subprocess_environment: dict[str, str],
    assert_same_rows: SameRows,
) -> None:
    content = tiny_content(
        {"federations.0.task": "mnist5k-logistic", "federations.0.defenses": ["plain", "keynet"], "seeds": [0, 1, 2]}
    )
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    SecretRoot.fresh().save(tmp_path / "shared.root")

    def command(out: str) -> subprocess.Popen[bytes]:
        keyhole = [sys.executable, "-c", "from keyhole.main import main; main()"]
        options = ["run", "tiny.yaml", "--out", out, "--secret-root", "shared.root", "--workers", "1"]
        return subprocess.Popen(
            [*keyhole, *options], cwd=tmp_path, env=subprocess_environment, stdout=subprocess.DEVNULL
        )

    running = command("killed")
    folder = tmp_path / "killed" / "artefacts"
    deadline = time.monotonic() + 120
    while len(list(folder.glob("cells/*.json"))) < 5 and time.monotonic() < deadline:
        assert running.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    time.sleep(2)  # its workers notice
    assert not (tmp_path / "killed" / "manifest.json").exists()
    finished = artefacts(tmp_path / "killed")
    assert finished
    assert command("killed").wait() == 0
    after = artefacts(tmp_path / "killed")
    assert {name: after[name] for name in finished if ".tmp" not in name} == {
        name: state for name, state in finished.items() if ".tmp" not in name
    }
    assert command("whole").wait() == 0
    assert_same_rows(read_run(tmp_path / "killed"), read_run(tmp_path / "whole"))
