"""`keyhole reproduce`: the papers that Keyhole started from, their figures beside ours; one file a paper."""

from __future__ import annotations

import typer

from keyhole.commands.reproduce import gusain, pride

app = typer.Typer(no_args_is_help=True, help="Compute a source paper's tables and figures anew, ours beside theirs.")
app.command("pride")(pride.pride)
app.command("gusain")(gusain.gusain)
