"""`keyhole report`: tables, figures and the page of a finished run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from leaderboard.report import write_report
from leaderboard.summary import print_summary, summary_as_json


def report(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run, such as runs/quick.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the leaderboard as JSON, and write nothing.")] = False,
) -> None:
    """Print the leaderboard of a run and write its tables, figures and page to RUN/report/."""
    if as_json:
        typer.echo(json.dumps(summary_as_json(run), indent=2))
        return
    page = write_report(run)
    print_summary(run)
    typer.echo(f"Page: {page}")
