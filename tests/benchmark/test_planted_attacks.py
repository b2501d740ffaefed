"""Public randomness gives away neither the victims nor the keys: attacks that replay it stay at the floor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from benchmark.experiment import Experiment
from benchmark.store import RunTables

PLANTED = Path(__file__).with_name("planted.py")
RunIn = Callable[..., RunTables]
Tiny = Callable[..., Experiment]

SECRET = hashlib.sha256(b"a root that nobody guesses").digest()
CARELESS = hashlib.sha256(b"0").digest()
"""What a run would use that made its root of its seed."""

KEYNET = {"name": "keynet", "stages": [{"keynet": {"gain_range": 30.0}}]}
"""Gains over so wide a range that what is keyed looks like nothing without the key; gains near 1 leave a likeness."""


def scored(tables: RunTables, defense: str) -> pd.DataFrame:
    """The image rows of the adaptive server on a defense."""
    cells = tables.cells[(tables.cells.defense == defense) & (tables.cells.knowledge == "adaptive")]
    assert (cells.outcome == "measured").all(), list(cells.detail)
    images = tables.images[tables.images.cell.isin(cells.cell)]
    assert len(images) == 4
    return images


def planted(tiny_experiment: Tiny, name: str, defense: str, evaluations: int, root_file: str = "") -> Experiment:
    return tiny_experiment(
        {
            "federations.0.task": "small-digits-lenet-zhu",
            "federations.0.defenses": ["plain", *([KEYNET] if defense == "keynet" else [])],
            "adversaries": ["server/oblivious", "server/adaptive"],
            "attacks": [{"name": f"{PLANTED}:{name}", "evaluations": evaluations, "options": {"root_file": root_file}}],
            "victims": {"probe": {"count": 4, "batch": 1, "rate": 0.1}},
        }
    )


@pytest.fixture
def run_with(tmp_path: Path, run_in: RunIn, tiny_experiment: Tiny) -> Callable[..., RunTables]:
    """Runs a planted attack; `knows_root` hands it the run's own root."""

    def run(name: str, defense: str, root: bytes, *, knows_root: bool = False, evaluations: int = 1) -> RunTables:
        file = tmp_path / f"run-{root[:4].hex()}.root"  # where `run_in` keeps it
        experiment = planted(tiny_experiment, name, defense, evaluations, str(file) if knows_root else "")
        return run_in(tmp_path / "run", experiment, root=root)

    return run


def test_looking_victims_up_stays_at_the_floor(run_with: Callable[..., RunTables]) -> None:
    images = scored(run_with("Lookup", "plain", SECRET), "plain")
    assert not images.identified.any()
    assert images.gain.mean() < 0
    assert images.psnr.max() < 20


@pytest.mark.parametrize(("root", "knows_root"), [(SECRET, True), (CARELESS, False)], ids=["root", "careless"])
def test_looking_victims_up_would_succeed_with_the_root(
    run_with: Callable[..., RunTables], root: bytes, knows_root: bool
) -> None:
    images = scored(run_with("Lookup", "plain", root, knows_root=knows_root), "plain")
    assert images.identified.all()
    assert (images.psnr == 60).all()


EVALUATIONS = 100


def test_deriving_keys_anew_stays_at_the_floor(run_with: Callable[..., RunTables]) -> None:
    tables = run_with("KeyRederivation", "keynet", SECRET, evaluations=EVALUATIONS)
    images = scored(tables, "keynet")
    assert not images.identified.any()
    assert images.gain.mean() < 0.5
    undefended = scored(tables, "plain")
    assert undefended.identified.mean() >= 0.75, "else the attack shows nothing"
    assert undefended.gain.mean() > 3


@pytest.mark.parametrize(("root", "knows_root"), [(SECRET, True), (CARELESS, False)], ids=["root", "careless"])
def test_deriving_keys_anew_would_succeed_with_the_root(
    run_with: Callable[..., RunTables], root: bytes, knows_root: bool
) -> None:
    tables = run_with("KeyRederivation", "keynet", root, knows_root=knows_root, evaluations=EVALUATIONS)
    opened, undefended = scored(tables, "keynet"), scored(tables, "plain")
    assert opened.identified.mean() >= 0.75
    assert abs(opened.psnr.mean() - undefended.psnr.mean()) < 1.5
