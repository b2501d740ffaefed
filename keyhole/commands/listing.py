"""`keyhole list`: what there is by name."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.table import Table

from attacks.base import ATTACKS
from benchmark.bundles.lookup import shipped_titles
from benchmark.experiment_files import embedded_experiments
from defenses.registry import DEFENSES
from federation.tasks import TASKS
from federation.threat import ADVERSARIES


class Listed(StrEnum):
    """What can be listed."""

    ATTACKS = "attacks"
    DEFENSES = "defenses"
    TASKS = "tasks"
    ADVERSARIES = "adversaries"
    EXPERIMENTS = "experiments"
    BUNDLES = "bundles"


def list_names(
    what: Annotated[Listed, typer.Argument(help="What to list.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object: name to description.")] = False,
) -> None:
    """List attacks, defenses, tasks, adversaries, experiments or bundles, each with a line of description."""
    found = described(what)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, description in found.items():
        table.add_row(name, description)
    Console(markup=False, highlight=False).print(table)


def described(what: Listed) -> dict[str, str]:
    """Name to one line of description, plug-ins included."""
    if what is Listed.ATTACKS:
        return {name: _first_line(ATTACKS.get(name)) for name in ATTACKS.names()}
    if what is Listed.DEFENSES:
        return {name: _first_line(DEFENSES.get(name)) for name in DEFENSES.names()}
    if what is Listed.TASKS:
        return {name: TASKS.get(name).description for name in TASKS.names()}
    if what is Listed.ADVERSARIES:
        return {name: ADVERSARIES.get(name).description for name in ADVERSARIES.names()}
    if what is Listed.BUNDLES:
        return shipped_titles()
    return {name: str(yaml.safe_load(text)["preset"]) for name, text in embedded_experiments().items()}


def _first_line(entry: object) -> str:
    return (getattr(entry, "__doc__", None) or "").strip().partition("\n")[0]
