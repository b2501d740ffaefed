"""The command line: `keyhole COMMAND`."""

from __future__ import annotations

import errno
from typing import Any, NoReturn

import typer
import typer.core

from federation.errors import KeyholeError
from keyhole.commands import (
    baseline,
    bench,
    check,
    conformance,
    listing,
    recover_image,
    report,
    reproduce,
    run,
    score,
    try_attack,
)

USAGE_EXIT = 2
INTERRUPTED_EXIT = 130


class Commands(typer.core.TyperGroup):
    """Ends the process with one line on standard error for anything that a person can mend.

    Errors in the command line itself are Typer's: it names them, says how the command is used and ends with 2 as well.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except KeyholeError as error:
            _end(str(error), USAGE_EXIT)
        except KeyboardInterrupt:
            _end("interrupted; finished work is kept, the same command goes on from there", INTERRUPTED_EXIT)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # whoever read the output went away; Typer ends quietly
            _end(_explained(error), USAGE_EXIT)


app = typer.Typer(
    name="keyhole",
    cls=Commands,
    help="Measure what a federated-learning defense really hides.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("run")(run.run)
app.command("report")(report.report)
app.command("check")(check.check)
app.add_typer(baseline.app, name="baseline")
app.add_typer(bench.app, name="bench")
app.add_typer(reproduce.app, name="reproduce")
app.command("list")(listing.list_names)
app.command("score")(score.score)
app.command("try")(try_attack.try_attack)
app.command("conformance")(conformance.conformance)
app.command("recover-image")(recover_image.recover_image)


def main() -> None:
    """Run the command line and end the process."""
    app()


def _explained(error: OSError) -> str:
    place = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{place}; finished work is kept, make room and run the same command again"
    return f"{error.strerror or error}{place}"


def _end(message: str, code: int) -> NoReturn:
    typer.echo(f"keyhole: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)
