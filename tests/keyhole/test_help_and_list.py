"""What there is: the help of every command and option, and `keyhole list`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import typer
from typer.testing import Result

from attacks.base import ATTACKS
from benchmark.bundles.shipped import SHIPPED
from benchmark.experiment_files import embedded_experiments
from defenses.registry import DEFENSES
from federation.tasks import TASKS
from federation.threat import ADVERSARIES
from keyhole.main import app

pytestmark = pytest.mark.usefixtures("surroundings")

Invoke = Callable[..., Result]


def command_paths(group: Any = None, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    group = group or typer.main.get_command(app)
    found = [path]
    for name, command in getattr(group, "commands", {}).items():
        found += command_paths(command, (*path, name))
    return found


@pytest.mark.parametrize("path", command_paths(), ids=" ".join)
def test_every_command_and_every_option_says_what_it_does(invoke: Invoke, path: tuple[str, ...]) -> None:
    result = invoke(*path, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout
    command: Any = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]
    assert command.help
    assert " ".join(command.help.split())[:60] in " ".join(result.stdout.split())
    for parameter in command.params:
        if parameter.name != "help":
            assert parameter.help, f"{' '.join(path)} {parameter.name} has no help"


def test_without_a_command_the_help_is_shown(invoke: Invoke) -> None:
    result = invoke()
    assert result.exit_code == 2
    assert all(name in result.output for name in ("run", "report", "check", "list", "score"))


EXPECTED = {
    "attacks": ATTACKS.names(),
    "defenses": DEFENSES.names(),
    "tasks": TASKS.names(),
    "adversaries": ADVERSARIES.names(),
    "experiments": list(embedded_experiments()),
    "bundles": list(SHIPPED),
}


@pytest.mark.parametrize("what", EXPECTED)
def test_list_names_everything_with_a_description(invoke: Invoke, what: str) -> None:
    result = invoke("list", what, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert set(EXPECTED[what]) <= set(found)
    assert all(found.values()), "every entry has a description"
    shown = invoke("list", what)
    assert shown.exit_code == 0
    assert all(name in shown.stdout for name in found)
