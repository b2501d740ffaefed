"""`keyhole conformance` from the outside: findings, and what the command ends with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from benchmark.conformance import CHECKS as DEFENSE_CHECKS
from benchmark.conformance.attacks import CHECKS as ATTACK_CHECKS
from keyhole.commands import conformance as command

pytestmark = pytest.mark.usefixtures("surroundings")

Invoke = Callable[..., Result]
OneLine = Callable[..., str]

PACKAGE = '''
from dataclasses import dataclass

import torch

from attacks.base import Attack, Reconstruction
from defenses.plain import Plain
from defenses.quantization import Quantization


@dataclass(frozen=True)
class Grey(Attack):
    shade: float = 0.5
    name = "grey"

    def reconstruct(self, history, victims, *, generator, budget):
        shape = history[0].network.image_shape
        return [Reconstruction(torch.full((1, *shape), self.shade), None, None, 0, 0.0) for _ in victims]


class Secretive(Plain):
    """Sends weights as they are and says that they are hidden."""

    name = "secretive"

    def claims(self, network):
        from defenses.base import Claim
        return {spec.name: Claim.HIDDEN for spec in network.layout}


def coarse(levels: int = 7):
    """Few levels."""
    return Quantization(levels=levels)


number = 3
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that can be imported, by a name that no other test uses."""
    name = f"package_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@pytest.mark.slow
def test_an_attack_that_finds_nothing_fails_and_is_told_why(invoke: Invoke, package: str) -> None:
    result = invoke("conformance", f"{package}:Grey", "--model", "logistic", "--option", "shade=0.2", "--json")
    assert result.exit_code == command.FAILED_EXIT, result.output
    findings = {item["check"]: item for item in json.loads(result.stdout)}
    assert set(findings) == set(ATTACK_CHECKS)
    assert not findings["clears the floor undefended"]["passed"]
    assert "dB are needed" in findings["clears the floor undefended"]["detail"]
    assert findings["reads what it declares"]["passed"]


def test_a_defense_that_hides_nothing_fails(invoke: Invoke, package: str) -> None:
    result = invoke("conformance", f"{package}:Secretive")
    assert result.exit_code == command.FAILED_EXIT, result.output
    (line,) = (line for line in result.stdout.splitlines() if "wire claims" in line)
    assert line.startswith("FAILED")
    assert f"of {len(DEFENSE_CHECKS)} checks failed" in result.stdout


def test_a_function_that_builds_a_defense_passes(invoke: Invoke, tmp_path: Path, package: str) -> None:
    for reference in (f"{package}:coarse", "plain"):
        result = invoke("conformance", reference)
        assert result.exit_code == 0, result.output
        assert f"all {len(DEFENSE_CHECKS)} checks passed" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("kosine",), "no defense is called 'kosine'"),
        (("nowhere.at_all:Attack",), "nowhere.at_all (from 'nowhere.at_all:Attack') cannot be imported"),
        (("{package}:Missing",), "has no class 'Missing'"),
        (("{package}:number",), "has no class 'number'"),
        (("{package}:Grey", "--model", "lenet"), "no model is called 'lenet'"),
        (("{package}:Grey", "--option", "colour=1"), "no option 'colour'"),
        (("plain", "--model", "logistic"), "--model is for attacks"),
        (("{package}:coarse", "--option", "levels=none"), "option 'levels'"),
    ],
)
def test_what_cannot_be_checked_is_answered_in_one_line(
    arguments: tuple[str, ...], message: str, invoke: Invoke, one_line: OneLine, package: str
) -> None:
    assert message in one_line(invoke("conformance", *[part.replace("{package}", package) for part in arguments]))
