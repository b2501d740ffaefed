"""`keyhole reproduce`: the papers that Keyhole started from, their figures beside ours."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmark.reproduce.pride.run import Options, reproduce
from benchmark.store.pride import FILE, PrideResult
from federation.datasets import Dataset, load_dataset
from federation.errors import UsageError
from keyhole.output import WIDTH_ELSEWHERE, shown
from keyhole.progress import progress_for_this_output
from leaderboard.reproduction.pride import write_pride_report

app = typer.Typer(no_args_is_help=True, help="Compute a source paper's tables and figures anew, ours beside theirs.")


@app.callback()
def papers() -> None:
    """Compute a source paper's tables and figures anew, ours beside theirs."""


@app.command("pride")
def pride(
    data_dir: Annotated[
        Path | None,
        typer.Option(envvar="KEYHOLE_DATA_DIR", help="Where MNIST stands, for the paper's own sizes; else mnist5k."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The result's folder.")] = Path("runs/pride"),
    seed: Annotated[
        int, typer.Option(min=0, help="Divides the images among the parties; keys never come from it.")
    ] = 0,
    key_bits: Annotated[int, typer.Option(help="Length of the Paillier modulus, 2048 at least.")] = 2048,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Go on from what an earlier run finished, or begin anew.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
) -> None:
    """PriDe (Pavlak 2018): six parties, logistic regression, Paillier. As printed, as coded, and sound."""
    directory = out.resolve()
    if not resume:
        _clear(directory)
    dataset = _data(data_dir)
    if not as_json:
        typer.echo(f"Data: {dataset.name}. {dataset.provenance}")
    with progress_for_this_output(quiet=as_json) as progress:
        result = reproduce(directory, dataset, Options(seed, key_bits), progress=progress)
    report = write_pride_report(directory)
    if as_json:
        typer.echo(json.dumps(asdict(result), indent=1))
        return
    # a pipe or log has no width of its own; the tables fit this one
    console = Console(width=None if sys.stdout.isatty() else WIDTH_ELSEWHERE)
    console.print(report.terminal)
    typer.echo(_ending(result, directory, report.page))


def _data(directory: Path | None) -> Dataset:
    """MNIST at full size where a data directory is given, else the embedded part of it."""
    return load_dataset("mnist5k") if directory is None else load_dataset("mnist", data_directory=directory)


def _clear(directory: Path) -> None:
    """Remove an earlier result; anything that is not one is left alone, with an error."""
    if not directory.exists() or not any(directory.iterdir()):
        return
    if not (directory / FILE).is_file() and not (directory / "models").is_dir():
        raise UsageError(f"{directory} is not the folder of a reproduction; --fresh removes only those")
    shutil.rmtree(directory)


def _ending(result: PrideResult, directory: Path, page: Path) -> str:
    return f"Took {result.seconds / 60:.1f} min to compute. Results: {shown(directory)}; page: {shown(page)}"
