"""The command line: `keyhole COMMAND`."""

from __future__ import annotations

import errno
import sys

import click
import typer

from federation.errors import KeyholeError
from keyhole.commands import baseline, check, listing, report, run, score

USAGE_EXIT = 2

app = typer.Typer(
    name="keyhole",
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
app.command("list")(listing.list_names)
app.command("score")(score.score)


def main() -> None:
    """Run the command line and end the process: one line on standard error for anything that a person can mend."""
    try:
        code = app(standalone_mode=False)
    except KeyholeError as error:
        _end(str(error))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print("keyhole: interrupted; finished work is kept, the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        _end(_explained(error))
    sys.exit(code if isinstance(code, int) else 0)


def _explained(error: OSError) -> str:
    place = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{place}; finished work is kept, make room and run the same command again"
    return f"{error.strerror or error}{place}"


def _end(message: str) -> None:
    print(f"keyhole: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(USAGE_EXIT)
