"""`keyhole conformance`: the suite that every attack and every defense passes, on one of another package."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from attacks.base import ATTACKS, Attack, Budget, build_attack
from benchmark.conformance.attacks import check_attack
from benchmark.conformance.defenses import Finding, check_defense
from defenses.registry import DEFENSES, build_defense
from federation.errors import UsageError
from federation.models import MODELS, build_model
from federation.network import Network
from federation.registry import load_class_from_file
from federation.secret_root import SecretRoot
from keyhole.options import given_options
from keyhole.output import WIDTH_ELSEWHERE

FAILED_EXIT = 1
SIDE, CLASSES = 14, 10


def conformance(
    reference: Annotated[
        str,
        typer.Argument(metavar="MODULE:CLASS", help="An attack or a defense: MODULE:CLASS, FILE.py:CLASS or a name."),
    ],
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="One of its options; may be repeated.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A network that an attack is meant for, on 14x14 pixels, such as logistic.  [default: lenet-zhu]"
        ),
    ] = None,
    evaluations: Annotated[int, typer.Option(min=8, help="Gradient evaluations that an attack may spend.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of findings, and nothing else.")] = False,
) -> None:
    """Run the conformance suite on an attack or a defense. Ends with 0 if it passed, 1 if not, 2 if it could not be run.

    Example: keyhole conformance my_package.attacks:MyAttack
    """
    options, root = given_options(option or ()), SecretRoot.fresh()
    entry = _entry(reference)
    if isinstance(entry, type) and issubclass(entry, Attack):
        findings = check_attack(_attack(reference, entry, options), root, _network(model), Budget(evaluations))
    else:
        if model is not None:
            raise UsageError("--model is for attacks; a defense is checked on networks of the suite's own")
        DEFENSES.add(reference, entry)
        findings = check_defense(build_defense(reference, [{reference: options}]), root)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print(findings)
    if not all(finding.passed for finding in findings):
        raise typer.Exit(FAILED_EXIT)


def _entry(reference: str) -> Any:
    """What the reference names: a class, or a function that returns a defense; raises UsageError where it names nothing."""
    module_name, separator, name = reference.rpartition(":")
    if not separator:
        return ATTACKS.get(reference) if reference in ATTACKS.names() else DEFENSES.get(reference)
    if Path(module_name).suffix == ".py":
        return load_class_from_file(reference)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(f"{module_name} (from {reference!r}) cannot be imported: {error}") from error
    if not callable(getattr(module, name, None)):
        raise UsageError(f"{module_name} has no class {name!r}")
    return getattr(module, name)


def _attack(reference: str, entry: type[Attack], options: dict[str, object]) -> Attack:
    """The attack with its options checked, whichever way it was named."""
    if ":" in reference and ".py:" not in reference:
        ATTACKS.add(reference, entry)
    return build_attack(reference, options)


def _network(model: str | None) -> Network | None:
    if model is None:
        return None
    MODELS.get(model)
    shape = (1, SIDE, SIDE)
    return Network(lambda: build_model(model, shape, CLASSES, seed=0), shape, CLASSES)


def _print(findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in findings:
        table.add_row("passed" if finding.passed else "FAILED", finding.check, finding.detail)
    console = Console(width=None if sys.stdout.isatty() else WIDTH_ELSEWHERE, markup=False, highlight=False)
    console.print(table)
    failed = sum(not finding.passed for finding in findings)
    console.print(f"{failed} of {len(findings)} checks failed" if failed else f"all {len(findings)} checks passed")
