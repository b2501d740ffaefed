"""`keyhole run`: run an experiment."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from benchmark.estimate import estimated_seconds
from benchmark.experiment import Experiment
from benchmark.provenance import hardware
from benchmark.workspace import Workspace
from federation.device import CPU
from federation.errors import UsageError
from keyhole import api
from keyhole.options import DataDirectory, Device, Download, LpipsTrunk, Resume, Workers
from keyhole.output import print_json, print_report, shown
from keyhole.progress import progress_for_this_output
from leaderboard.report import write_report


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
    resume: Resume = True,
    workers: Workers = None,
    device: Device = CPU,
    data_dir: DataDirectory = None,
    download: Download = False,
    lpips_trunk: LpipsTrunk = None,
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
    started = time.perf_counter()
    tables = api.run(
        experiment or preset or api.DEFAULT_EXPERIMENT,
        tasks=task or (),
        defenses=defense or (),
        attacks=attack or (),
        adversaries=adversary or (),
        seeds=seed or (),
        out=out,
        fresh=not resume,
        workers=workers,
        device=device,
        data_directory=data_dir,
        download=download,
        lpips_trunk=lpips_trunk,
        secret_root=secret_root,
        progress=progress_for_this_output(quiet=as_json),
        announce=None if as_json else _announce,
    )
    report = write_report(tables.directory)
    if as_json:
        print_json(report)
        return
    print_report(report)
    minutes = (time.perf_counter() - started) / 60
    typer.echo(f"Done in {minutes:.1f} min. Results: {shown(tables.directory)}; page: {shown(report.page)}")


def _announce(experiment: Experiment, workspace: Workspace, workers: int) -> None:
    typer.echo(f"Experiment {experiment.name}: {experiment.preset}")
    if workspace.device != CPU:  # the forecast measures the processor
        typer.echo(f"Computes on {workspace.device} ({hardware(workspace.device)['gpu']}), {workers} at a time.")
        return
    minutes = max(estimated_seconds(experiment, workspace, workers) / 60, 0.5)
    typer.echo(
        f"Takes about {minutes:.1f} min on this machine, encryption not counted; less where an earlier run got part of "
        "the way."
    )
