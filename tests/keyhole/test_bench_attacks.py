"""`keyhole bench attacks` from the outside."""

from __future__ import annotations

import functools
import json

import pytest
from typer.testing import CliRunner, Result

from benchmark.speed.attacks import CASES, measure_attacks
from benchmark.speed.attacks.figures import CaseResult, Figure
from benchmark.speed.measure import Stage
from keyhole.commands import bench
from keyhole.main import app


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", "attacks", *arguments])


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cases that take no time."""

    def case(name: str, progress: Stage) -> CaseResult:
        progress(name, 1, 1)
        return CaseResult(name, (Figure(f"{name} figure", 9.5, "x", 8, 12, detail="peer 19, ours 2"),), ("of a test",))

    cases = {name: functools.partial(case, name) for name in ("first", "second")}
    monkeypatch.setattr(bench, "measure_attacks", functools.partial(measure_attacks, cases=cases))


@pytest.mark.usefixtures("made_up")
def test_all_cases_are_shown_as_one_table() -> None:
    result = invoke()
    assert result.exit_code == 0, result.output
    for expected in ("first figure", "second figure", "9.5x", "8x", "12x", "peer 19, ours 2", "of a test", "cores"):
        assert expected in result.stdout


@pytest.mark.usefixtures("made_up")
def test_named_cases_alone_are_run_and_json_is_all_that_is_printed() -> None:
    found = json.loads(invoke("--case", "second", "--json").stdout)
    assert [case["name"] for case in found["cases"]] == ["second"]
    assert found["cases"][0]["figures"][0]["reached"] is True


def test_an_unknown_case_is_one_line() -> None:
    result = invoke("--case", "cosin")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("keyhole: no case cosin; there are ")
    assert all(name in line for name in CASES)


def test_help_names_the_cases() -> None:
    assert "dlg-mnist" in CliRunner().invoke(app, ["bench", "attacks", "--help"], terminal_width=300).output
