"""A package of its own brings an attack, a defense and a task through its entry points."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmark.store import read_run

CHECKOUT = Path(__file__).parent.parent
PACKAGE = (
    (CHECKOUT / "examples" / "first_layer.py").read_text()
    + '''

from defenses.quantization import Quantization
from federation.tasks import Task


def coarse():
    """Quantised to very few levels."""
    return Quantization(levels=7)


digits = Task("outside-digits", "mnist5k", "logistic", "logistic regression on digits, from outside")
'''
)

ENTRY_POINTS = """
[keyhole.attacks]
outside-attack = outside_keyhole:FirstLayer

[keyhole.defenses]
outside-coarse = outside_keyhole:coarse

[keyhole.tasks]
outside-digits = outside_keyhole:digits
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, subprocess_environment: dict[str, str]) -> dict[str, str]:
    """The environment of a process that finds the package, as installed by its metadata beside it."""
    site = tmp_path_factory.mktemp("site-packages")
    (site / "outside_keyhole.py").write_text(PACKAGE)
    information = site / "outside_keyhole-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-keyhole\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(ENTRY_POINTS)
    path = os.pathsep.join([str(site), subprocess_environment["PYTHONPATH"]])
    return {**subprocess_environment, "PYTHONPATH": path}


def keyhole(environment: dict[str, str], folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-c", "from keyhole.main import main; main()", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_another_package_brings_runs_and_appears_in_the_tables(
    tmp_path: Path, tiny_content: Callable[..., dict[str, Any]], installed: dict[str, str]
) -> None:
    content = tiny_content(
        {
            "federations.0.task": "outside-digits",
            "federations.0.defenses": ["plain", "outside-coarse"],
            "adversaries": ["server/oblivious"],
            "attacks": [{"name": "outside-attack", "evaluations": 1}],
            "victims.real_round": ...,
        }
    )
    (tmp_path / "outside.yaml").write_text(yaml.safe_dump(content))
    printed = keyhole(installed, tmp_path, "run", "outside.yaml", "--out", "run", "--workers", "1")
    for name in ("first-layer", "outside-coarse", "outside-digits"):
        assert name in printed
    tables = read_run(tmp_path / "run")
    assert set(tables.cells.attack) == {"first-layer"}
    assert set(tables.cells.defense) == {"plain", "outside-coarse"}
    assert (tables.cells.outcome == "measured").all()
    plain = tables.cells[tables.cells.defense == "plain"]
    assert tables.images[tables.images.cell.isin(plain.cell)].identified.all()


@pytest.mark.slow
def test_they_are_listed(tmp_path: Path, installed: dict[str, str]) -> None:
    for what, name in (
        ("attacks", "outside-attack"),
        ("defenses", "outside-coarse"),
        ("tasks", "outside-digits"),
    ):
        assert json.loads(keyhole(installed, tmp_path, "list", what, "--json"))[name]
