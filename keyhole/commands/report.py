"""`keyhole report`: tables, figures and the page of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keyhole.output import print_json, print_report, shown
from leaderboard.report import write_report


def report(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run, such as runs/quick.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the leaderboard as JSON, and nothing else.")] = False,
) -> None:
    """Print the leaderboard of a run and write its tables, figures and page to RUN/report/."""
    written = write_report(run)
    if as_json:
        print_json(written)
        return
    print_report(written)
    typer.echo(f"Page: {shown(written.page)}")
