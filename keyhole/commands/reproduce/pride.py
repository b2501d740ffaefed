"""`keyhole reproduce pride`: PriDe (Pavlak 2018)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark.reproduce.pride.run import Options, reproduce
from federation.datasets import Dataset, load_dataset
from keyhole.commands.reproduce.common import AsJson, clear, print_result
from keyhole.options import Resume
from keyhole.progress import progress_for_this_output
from leaderboard.reproduction.pride import write_pride_report


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
    resume: Resume = True,
    as_json: AsJson = False,
) -> None:
    """PriDe (Pavlak 2018): six parties, logistic regression, Paillier. As printed, as coded, and sound."""
    directory = out.resolve()
    if not resume:
        clear(directory, ["models"])
    dataset = _data(data_dir)
    if not as_json:
        typer.echo(f"Data: {dataset.name}. {dataset.provenance}")
    with progress_for_this_output(quiet=as_json) as progress:
        result = reproduce(directory, dataset, Options(seed, key_bits), progress=progress)
    print_result(result, write_pride_report(directory), directory, as_json=as_json)


def _data(directory: Path | None) -> Dataset:
    """MNIST at full size where a data directory is given, else the embedded part of it."""
    return load_dataset("mnist5k") if directory is None else load_dataset("mnist", data_directory=directory)
