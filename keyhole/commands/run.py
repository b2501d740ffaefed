"""`keyhole run`: run an experiment."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmark.engines.local import LocalEngine
from benchmark.estimate import estimated_seconds
from benchmark.experiment import Experiment, load_experiment
from benchmark.harness import run_experiment
from benchmark.workspace import Workspace, ensure_root, secret_root_beside
from federation.errors import UsageError
from keyhole.progress import progress_for_this_output
from leaderboard.report import write_report
from leaderboard.summary import print_summary, summary_as_json

DEFAULT = "quick"


def run(
    experiment: Annotated[
        str | None,
        typer.Argument(help="An experiment that comes with Keyhole (see `keyhole list experiments`), or a .yaml file."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Size of the default experiment: smoke, quick, standard or full.")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be repeated.")] = None,
    defense: Annotated[
        list[str] | None, typer.Option(help="Only this defense (plain stays, as the control); may be repeated.")
    ] = None,
    attack: Annotated[
        list[str] | None, typer.Option(help="Only this attack: a name, or FILE.py:CLASS; may be repeated.")
    ] = None,
    adversary: Annotated[
        list[str] | None, typer.Option(help="Only this adversary, such as server/adaptive; may be repeated.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Only this seed; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder.  [default: runs/NAME]")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Go on from what an earlier run finished, or begin anew.")
    ] = True,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes.  [default: one a core]")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(envvar="KEYHOLE_DATA_DIR", help="Where mnist and cifar10 stand.")
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Download data sets that are missing.")] = False,
    lpips_trunk: Annotated[
        Path | None,
        typer.Option(envvar="KEYHOLE_LPIPS_TRUNK", help="AlexNet's ImageNet trunk, for LPIPS; else torch's cache."),
    ] = None,
    secret_root: Annotated[
        Path | None,
        typer.Option(
            help="File with the secret that keys and victims derive from.  [default: beside the run's folder]"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the leaderboard as JSON, and nothing else.")] = False,
) -> None:
    """Run an experiment: train under every defense, attack, score, rank. Writes runs/NAME/."""
    if experiment and preset:
        raise UsageError(f"give an experiment ({experiment}) or a preset of the default one ({preset}), not both")
    chosen = load_experiment(experiment or preset or DEFAULT).narrowed(
        tasks=tuple(task or ()),
        defenses=tuple(defense or ()),
        attacks=tuple(attack or ()),
        adversaries=tuple(adversary or ()),
        seeds=tuple(seed or ()),
    )
    directory = (out or Path("runs") / chosen.name).resolve()
    workspace = Workspace(
        directory=directory,
        root_file=(secret_root or secret_root_beside(directory)).resolve(),
        data_directory=data_dir,
        download=download,
        lpips_trunk=lpips_trunk,
    )
    if not resume:
        _clear(directory)
    directory.mkdir(parents=True, exist_ok=True)
    ensure_root(workspace.root_file)
    progress = progress_for_this_output(quiet=as_json)
    if not as_json:
        _announce(chosen, workspace, workers)
    started = time.perf_counter()
    with progress:
        run_experiment(chosen, workspace, progress=progress, engine=LocalEngine(workers))
    page = write_report(directory)
    if as_json:
        typer.echo(json.dumps(summary_as_json(directory), indent=2))
        return
    print_summary(directory)
    minutes = (time.perf_counter() - started) / 60
    typer.echo(f"Done in {minutes:.1f} min. Results: {_shown(directory)}; page: {_shown(page)}")


def _announce(experiment: Experiment, workspace: Workspace, workers: int | None) -> None:
    typer.echo(f"Experiment {experiment.name}: {experiment.preset}")
    seconds = estimated_seconds(experiment, workspace, LocalEngine(workers).workers)
    typer.echo(
        f"Takes about {max(seconds / 60, 0.5):.1f} min on this machine, less where an earlier run got part of the way."
    )


def _clear(directory: Path) -> None:
    """Remove an earlier run's results; anything that is not a run is left alone, with an error."""
    if not directory.exists() or not any(directory.iterdir()):
        return
    if not (directory / "artefacts").is_dir():
        raise UsageError(f"{directory} is not the folder of a run; --fresh removes only those")
    shutil.rmtree(directory)


def _shown(path: Path) -> str:
    """The path as a person would type it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
