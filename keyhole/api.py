"""Keyhole from Python: the same as `keyhole run`, returning the run's tables as pandas frames."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmark.engines.local import LocalEngine
from benchmark.experiment import Experiment
from benchmark.experiment_files import load_experiment
from benchmark.harness import run_experiment
from benchmark.narrowing import narrowed
from benchmark.store import RunTables, read_run
from benchmark.workspace import Workspace, ensure_root, secret_root_beside
from federation.device import CPU, find_device
from federation.errors import UsageError
from keyhole.progress import Quiet

DEFAULT_EXPERIMENT = "quick"


def run(
    experiment: str | Experiment = DEFAULT_EXPERIMENT,
    *,
    tasks: Sequence[str] = (),
    defenses: Sequence[str] = (),
    attacks: Sequence[str] = (),
    adversaries: Sequence[str] = (),
    seeds: Sequence[int] = (),
    out: Path | str | None = None,
    fresh: bool = False,
    workers: int | None = None,
    device: str = CPU,
    data_directory: Path | None = None,
    download: bool = False,
    lpips_trunk: Path | None = None,
    secret_root: Path | None = None,
    progress: Quiet | None = None,
    announce: Callable[[Experiment, Workspace, int], None] | None = None,
) -> RunTables:
    """Run an experiment, or go on with it where it was interrupted, and return its tables.

    Worker processes are spawned: a script that calls this does so under `if __name__ == "__main__":`.

    Args:
        experiment: the name of an embedded experiment, the path of a YAML file, or an `Experiment`.
        tasks, defenses, attacks, adversaries, seeds: narrow the experiment to these.
        out: the run's folder; by default runs/NAME.
        fresh: remove what an earlier run in that folder left.
        workers: worker processes; by default one a core, or one a GPU where these compute.
        device: where training and attacks compute: "cpu", "cuda", "cuda:N", or "auto" for "cuda" where there is one.
        data_directory: where data sets that are not embedded stand.
        download: fetch missing data sets.
        lpips_trunk: AlexNet's trunk for LPIPS.
        secret_root: the file that keys and victims derive from; by default one beside the run's folder, made once.
        progress: told of jobs as they end.
        announce: called once before anything long begins, with experiment, workspace and number of workers.

    Raises:
        KeyholeError: for anything that a person can mend, in one line.
    """
    computing = find_device(device)
    loaded = experiment if isinstance(experiment, Experiment) else load_experiment(experiment)
    chosen = narrowed(loaded, tasks=tasks, defenses=defenses, attacks=attacks, adversaries=adversaries, seeds=seeds)
    directory = Path(out or Path("runs") / chosen.name).resolve()
    workspace = Workspace(
        directory=directory,
        root_file=(secret_root or secret_root_beside(directory)).resolve(),
        data_directory=data_directory,
        download=download,
        lpips_trunk=lpips_trunk,
        device=computing,
    )
    if fresh:
        _clear(directory)
    directory.mkdir(parents=True, exist_ok=True)
    ensure_root(workspace.root_file)
    with LocalEngine(workers, computing) as engine, progress or Quiet() as told:
        if announce is not None:
            announce(chosen, workspace, engine.workers)
        run_experiment(chosen, workspace, progress=told, engine=engine)
    return read_run(directory)


def _clear(directory: Path) -> None:
    """Remove an earlier run's results; anything that is not a run is left alone, with an error."""
    if not directory.exists() or not any(directory.iterdir()):
        return
    if not (directory / "artefacts").is_dir():
        raise UsageError(f"{directory} is not the folder of a run; --fresh removes only those")
    shutil.rmtree(directory)
