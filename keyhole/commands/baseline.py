"""`keyhole baseline`: the accepted figures that the regression gate compares with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leaderboard.gate import accept_baseline

app = typer.Typer(help="Keep the accepted figures of the regression gate.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep the accepted figures of the regression gate."""


@app.command()
def accept(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    baseline: Annotated[Path, typer.Argument(help="The folder of accepted figures to replace.")],
    reason: Annotated[str, typer.Option(help="Why the new figures are right; kept in the change log.")],
) -> None:
    """Accept the figures of a run, with a reason, and append to the baseline's change log."""
    accept_baseline(run, baseline, reason)
    typer.echo(f"Accepted {run} into {baseline}.")
