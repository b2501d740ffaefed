"""Claims about keys, from an attack through its stored run to the findings of a cell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark.attack_runs import AttackRun, StoredReconstruction
from benchmark.experiment import Experiment
from benchmark.store import RunTables

SAMPLES = Path(__file__).with_name("sample_attacks.py")
SCORES = {
    *("share of channels placed rightly", "share of gains claimed"),
    *("largest error of log gains", "mean error of log gains", "median error of log gains"),
}


def row(tables: RunTables, **values: object) -> Any:
    cells = tables.cells
    for column, value in values.items():
        cells = cells[cells[column] == value]
    assert len(cells) == 1, f"{len(cells)} rows of {values}"
    return cells.iloc[0]


def findings(tables: RunTables, **values: object) -> dict[str, float]:
    found: dict[str, float] = json.loads(row(tables, outcome="measured", role="attack", **values).findings)
    return found


@pytest.fixture(scope="module")
def claims_run(
    tmp_path_factory: pytest.TempPathFactory,
    run_in: Callable[..., RunTables],
    tiny_experiment: Callable[..., Experiment],
) -> RunTables:
    """Attacks that claim channel keys, or what cannot be any; all images are beside the point."""
    experiment = tiny_experiment(
        {
            "federations.0.defenses": ["plain", "keynet"],
            "adversaries": ["server/adaptive"],
            "oracles": ["initial model"],
            "attacks": [
                {"name": "known-initialisation", "evaluations": 1},
                {"name": f"{SAMPLES}:ClaimsNoKeys", "evaluations": 1},
                {"name": f"{SAMPLES}:Sample", "evaluations": 1},
            ],
            "victims": {"probe": {"count": 2, "batch": 1, "rate": 0.1}},
        }
    )
    return run_in(tmp_path_factory.mktemp("claims") / "run", experiment)


def test_keys_that_were_found_are_findings_of_the_cell(claims_run: RunTables) -> None:
    found = findings(claims_run, attack="known-initialisation", defense="keynet")
    assert found["share of channels placed rightly"] == 1
    assert "share of gains claimed" not in found, "one layer has outputs alone, and those have no gains"


def test_without_claims_there_are_no_scores(claims_run: RunTables) -> None:
    assert not SCORES & findings(claims_run, attack="known-initialisation", defense="plain").keys()


def test_claims_that_cannot_be_any_are_a_crash_with_one_line(claims_run: RunTables) -> None:
    crashed = row(claims_run, attack="claims no keys", defense="keynet")
    assert crashed.outcome == "crashed"
    assert crashed.detail == "key claims: 'gains.99' is neither 'places.SPACE' nor 'gains.SPACE', SPACE under 2"
    assert not claims_run.images.cell.isin([crashed.cell]).any()


def test_claims_about_a_defense_without_keys_are_nothing(claims_run: RunTables) -> None:
    assert findings(claims_run, attack="claims no keys", defense="plain") == {}


def test_claims_are_kept_with_the_run(tmp_path: Path) -> None:
    claims = {"places.1": torch.tensor([1, 0, -1]), "gains.1": torch.tensor([0.5, 2.0, float("nan")])}
    item = StoredReconstruction(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), None, None, 0, 0.0, {}, "", {}, claims)
    without = StoredReconstruction(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), None, None, 0, 0.0, {}, "")
    AttackRun("run", (item, without), "").save(tmp_path)
    read, none = AttackRun.load(tmp_path).reconstructions
    assert read.key_claims.keys() == claims.keys()
    for name, claim in claims.items():
        torch.testing.assert_close(read.key_claims[name], claim, rtol=0, atol=0, equal_nan=True)
    assert not read.recovered_weights
    assert none.key_claims == {}


def test_gains_from_updates_are_scored_by_the_keys_of_their_epoch(
    tmp_path: Path, run_in: Callable[..., RunTables], tiny_experiment: Callable[..., Experiment]
) -> None:
    rotating = {"name": "rotating", "stages": [{"keynet": {"rotation": 1}}]}
    experiment = tiny_experiment(
        {
            "federations.0.task": "mnist5k-lenet5",
            "federations.0.defenses": ["plain", rotating],
            "federations.0.snapshots": [0, 1],
            "federations.0.algorithm.rounds": 2,
            "adversaries": ["server/adaptive", "eavesdropper/adaptive"],
            "attacks": [{"name": "keynet-gauge", "evaluations": 1}],
            "victims": {"probe": {"count": 2, "batch": 1, "rate": 0.1}},
        }
    )
    tables = run_in(tmp_path / "run", experiment)
    for snapshot in (0, 1):
        for position in ("server", "eavesdropper"):
            found = findings(tables, defense="rotating", snapshot=snapshot, position=position)
            assert "share of channels placed rightly" not in found, "it claims no hidden place"
            assert found["share of gains claimed"] == 1
            assert found["median error of log gains"] < 1e-3
            assert (
                found["mean error of log gains"] < 0.2
            )  # units that never fire keep gain 1; with gain 1 everywhere 0.35 or more


def test_pixel_keys_that_were_found_are_findings_of_the_cell(
    tmp_path: Path, run_in: Callable[..., RunTables], tiny_experiment: Callable[..., Experiment]
) -> None:
    experiment = tiny_experiment(
        {
            "federations.0.task": "mnist5k-lenet-zhu",
            "federations.0.defenses": ["plain", "keynet-toeplitz"],
            "federations.0.algorithm.steps": 1,
            "adversaries": ["server/adaptive"],
            "attacks": [{"name": "keynet-grid", "evaluations": 150}],
            "victims": {"probe": {"count": 2, "batch": 1, "rate": 0.1}},
        }
    )
    tables = run_in(tmp_path / "run", experiment)
    found = findings(tables, defense="keynet-toeplitz")
    assert found["share of pixels placed rightly, best pose and colours (oracle)"] == 1
    assert found["share of pixels placed rightly"] <= 1
    assert found["share of gains claimed"] == 1
    assert found["largest error of log gains"] < 1e-3
