"""The house is one-way: import-linter's contracts hold, and torchvision has one door."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("federation", "attacks", "defenses", "benchmark", "leaderboard", "keyhole")
DOOR = ROOT / "federation" / "vision.py"
BRING_TORCHVISION = ("lpips", "stlpips_pytorch")


def lint(folder: Path, configuration: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    return subprocess.run(
        [*command, "--config", str(configuration), "--no-cache"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, with the line."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, node.lineno


def sources() -> list[Path]:
    return sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


def test_the_contracts_of_the_house_hold() -> None:
    finished = lint(ROOT, ROOT / "pyproject.toml")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "0 broken" in finished.stdout


def test_a_breach_of_the_contracts_is_found(tmp_path: Path) -> None:
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / "attacks" / "breach.py").write_text("import defenses\n")
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    layers_only = text.split('\n[[tool.importlinter.contracts]]\nname = "The leaderboard')[0]
    (tmp_path / "pyproject.toml").write_text(layers_only)
    finished = lint(tmp_path, tmp_path / "pyproject.toml")
    assert finished.returncode == 1
    assert "attacks.breach -> defenses" in finished.stdout


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(ROOT)))
def test_torchvision_has_one_door(file: Path) -> None:
    names = list(imports(file))
    if file != DOOR:
        assert not [line for name, line in names if name.split(".")[0] == "torchvision"]
    bringers = [line for name, line in names if name.split(".")[0] in BRING_TORCHVISION]
    doors = [line for name, line in names if name == "federation.vision"]
    assert not bringers or (doors and min(doors) < min(bringers))
