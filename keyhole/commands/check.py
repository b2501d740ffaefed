"""`keyhole check`: the regression gate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from federation.files import write_text
from leaderboard.gate import check as gate


def check(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    baseline: Annotated[Path, typer.Option(help="The folder of accepted figures, such as baselines/ci.")],
    summary: Annotated[Path | None, typer.Option(help="Also write the Markdown summary to this file.")] = None,
) -> None:
    """Compare a run with accepted figures.

    Exit status: 0 passed, 1 regressed, 2 usage or infrastructure, 3 missing or incomparable.
    """
    result = gate(run, baseline)
    typer.echo(result.markdown)
    if summary is not None:
        write_text(summary, result.markdown)
    raise typer.Exit(int(result.status))
