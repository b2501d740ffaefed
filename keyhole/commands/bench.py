"""`keyhole bench`: speed against a peer in the same run, as ratios."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated

import rich.box
import rich.table
import typer
from rich.console import Console

from benchmark.speed.attacks import CASES, measure_attacks
from benchmark.speed.keynet import REPEATS, measure_keynet
from benchmark.speed.measure import Stage, Table
from benchmark.speed.paillier import measure_paillier
from benchmark.speed.paillier_round import measure_round
from keyhole.progress import Quiet, progress_for_this_output

app = typer.Typer(help="Measure speed against a peer in the same run, as ratios.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Measure speed against a peer in the same run, as ratios."""


@app.command()
def paillier(
    key_bits: Annotated[int, typer.Option(help="Length of the modulus in bits.")] = 3072,
    values: Annotated[int, typer.Option(help="Weights that Keyhole encrypts in each repeat.")] = 9800,
    whole_round: Annotated[
        bool, typer.Option("--round", help="Play a whole round of MobileNetV2's size with six clients (minutes).")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(help="Threads of the whole round; as many as there are cores by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Keyhole's Paillier against phe: value by value, and with the same packing."""
    with progress_for_this_output(quiet=as_json) as progress:
        stage = _stages(progress)
        speed = (
            measure_round(key_bits, threads=threads, progress=stage)
            if whole_round
            else measure_paillier(key_bits, values, progress=stage)
        )
    if as_json:
        typer.echo(json.dumps(speed.as_json(), indent=2))
    else:
        print_tables(speed.tables())


@app.command()
def keynet(
    repeats: Annotated[int, typer.Option(help="Turns of every case.")] = REPEATS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Key-Net against SciPy's sparse products and against the bytes that must move."""
    with progress_for_this_output(quiet=as_json) as progress:
        speed = measure_keynet(repeats=repeats, progress=_stages(progress))
    if as_json:
        typer.echo(json.dumps(speed.as_json(), indent=2))
    else:
        print_tables(speed.tables())


@app.command()
def attacks(
    cases: Annotated[
        list[str] | None,
        typer.Option(
            "--case", help=f"A case to run, repeatable; all by default, which takes long: {', '.join(CASES)}."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """The attacks against the published algorithms, run one trial at a time."""
    with progress_for_this_output(quiet=as_json) as progress:
        figures = measure_attacks(cases or (), progress=_stages(progress))
    if as_json:
        typer.echo(json.dumps(figures.as_json(), indent=2))
    else:
        print_tables(figures.tables())


def print_tables(tables: Sequence[Table]) -> None:
    """Tables with lines on a terminal, Markdown elsewhere, each with its notes."""
    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else 200, markup=False, highlight=False)
    for content in tables:
        table = rich.table.Table(box=rich.box.ROUNDED if terminal else rich.box.MARKDOWN)
        for index, column in enumerate(content.columns):
            table.add_column(column, justify="right" if index else "left")
        for row in content.rows:
            table.add_row(*row)
        console.print(content.title, table, *content.notes, "", sep="\n")


def _stages(progress: Quiet) -> Stage:
    """Steps of one stage after another, as the progress display counts them."""
    current, finished = "", 0

    def stage(name: str, done: int, total: int) -> None:
        nonlocal current, finished
        if name != current or done < finished:
            progress.begin(name, total)
            current, finished = name, 0
        for _ in range(done - finished):
            progress.done(name)
        finished = done

    return stage
