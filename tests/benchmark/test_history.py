"""Histories that span rounds: what an attack sees at a snapshot where it sees all rounds so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from observed import observed

from benchmark.experiment import Experiment, validated
from benchmark.harness import training_plans
from benchmark.observations import ObservedRounds
from benchmark.store import ROUNDS_SO_FAR, RunTables
from benchmark.training_plan import TrainingPlan
from benchmark.workspace import Workspace
from federation.errors import DataError, UsageError
from federation.messages import Transcript
from federation.secret_root import SecretRoot
from federation.threat import PlainModel

SAMPLES = Path(__file__).with_name("sample_attacks.py")
ROTATING = {"name": "keynet-rotating", "stages": [{"keynet": {"rotation": 1, "outputs": "monomial"}}]}
SNAPSHOTS = (0, 1, 2)
PROBES = 2
CHANGES: dict[str, Any] = {
    "federations.0.defenses": ["plain", "keynet", ROTATING],
    "federations.0.snapshots": list(SNAPSHOTS),
    "federations.0.algorithm.rounds": 3,
    "adversaries": ["server/adaptive", "collusion/adaptive"],
    "attacks": [{"name": f"{SAMPLES}:Sample", "evaluations": 1}],
    "victims": {
        "probe": {"count": PROBES, "batch": 1, "rate": 0.1},
        "real_round": {"images": 1},
        "history": "so-far",
    },
}


class Played:
    """An experiment that was run, and its trainings."""

    def __init__(self, experiment: Experiment, tables: RunTables) -> None:
        workspace = Workspace(directory=tables.directory, root_file=next(tables.directory.parent.glob("*.root")))
        self.tables = tables
        self.plans = {plan.defense_spec.name: plan for plan in training_plans(experiment, workspace)}

    def history(
        self, snapshot: int, kind: str = "probe", defense: str = "plain", who: str = "server"
    ) -> ObservedRounds:
        return observed(self.plans[defense], f"{who}/adaptive", kind, snapshot)


@pytest.fixture(scope="module")
def so_far(
    tmp_path_factory: pytest.TempPathFactory,
    run_in: Callable[..., RunTables],
    tiny_experiment: Callable[..., Experiment],
) -> Played:
    experiment = tiny_experiment(CHANGES)
    return Played(experiment, run_in(tmp_path_factory.mktemp("so-far") / "run", experiment))


@pytest.mark.parametrize(("kind", "each"), [("probe", PROBES), ("real-round", 1)])
@pytest.mark.parametrize("snapshot", SNAPSHOTS)
def test_a_snapshot_shows_all_rounds_up_to_it_and_victims_of_its_own(
    so_far: Played, kind: str, each: int, snapshot: int
) -> None:
    history = so_far.history(snapshot, kind)
    assert [seen.round for seen in history] == [number for number in range(snapshot + 1) for _ in range(each)]
    victims = history.victims()
    assert [victim.observation for victim in victims] == list(range(snapshot * each, (snapshot + 1) * each))
    assert all(f"{kind}-{snapshot}-" in victim.identifier for victim in victims)


def test_earlier_rounds_are_what_their_own_snapshot_showed(so_far: Played) -> None:
    for index, early in enumerate(so_far.history(1)):
        late = so_far.history(2)[index]
        assert early.transcript == late.transcript
        assert isinstance(early.view, PlainModel)
        assert isinstance(late.view, PlainModel)
        assert all(torch.equal(early.view.before[name], tensor) for name, tensor in late.view.before.items())


def test_only_what_is_looked_at_is_loaded(so_far: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, load = [], Transcript.load
    monkeypatch.setattr(Transcript, "load", lambda path: loaded.append(path.name) or load(path))
    history = so_far.history(2)
    assert len(history) == len(SNAPSHOTS) * PROBES
    assert loaded == []
    assert history[-1].round == 2
    assert loaded == ["probe-2-1.transcript"]


def test_every_round_has_probes_of_its_own_images(so_far: Played) -> None:
    history = so_far.history(2)
    seen = torch.cat([history.truth(index).indices for index in range(len(history))])
    assert len(seen.unique()) == len(SNAPSHOTS) * PROBES
    by_defense = [[so_far.history(2, defense=name).truth(index).indices for index in range(6)] for name in so_far.plans]
    assert all(torch.equal(one, other) for one, other in zip(*by_defense[:2], strict=True))


@pytest.mark.parametrize("defense", ["keynet", "keynet-rotating"])
def test_keys_are_those_of_the_round_observed(so_far: Played, defense: str) -> None:
    """A colluder opens every round with the keys that it held then; the released weights are the undefended ones."""
    plain, keyed = so_far.history(2), so_far.history(2, defense=defense, who="collusion")
    states = [seen.held["client-1"] for seen in keyed]
    assert len(set(states)) == (1 if defense == "keynet" else len(SNAPSHOTS))
    for seen, expected in zip(keyed, plain, strict=True):
        assert isinstance(seen.view, PlainModel)
        assert isinstance(expected.view, PlainModel)
        assert not seen.view.hidden_by
        for name, tensor in expected.view.before.items():
            torch.testing.assert_close(seen.view.before[name], tensor, atol=1e-5, rtol=1e-4)


def test_rows_say_that_the_history_spans_rounds(so_far: Played) -> None:
    cells: pd.DataFrame = so_far.tables.cells
    assert set(cells["regime"]) == {f"probe b1 s1 e1, {ROUNDS_SO_FAR}", f"real-round, {ROUNDS_SO_FAR}"}
    images = so_far.tables.images.merge(cells[["cell", "snapshot", "victim_kind"]], on="cell")
    probes = images[images["victim_kind"] == "probe"]
    assert all(f"probe-{row.snapshot}-" in row.victim for row in probes.itertuples())


def test_the_usual_history_is_left_unsaid_and_moves_no_address(
    tiny_content: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    workspace = Workspace(directory=tmp_path / "run", root_file=tmp_path / "root")
    SecretRoot(bytes(32)).save(tmp_path / "root")

    def first_plan(**victims: Any) -> TrainingPlan:
        content = tiny_content()
        content["victims"] |= victims
        return training_plans(validated(content, "test"), workspace)[0]

    usual, said, spanning = first_plan(), first_plan(history="snapshot"), first_plan(history="so-far")
    assert "history" not in usual.victims.model_dump(mode="json")
    assert usual.identifier == said.identifier != spanning.identifier
    by_seed = [dataclasses.replace(plan, seed=seed) for plan in (usual, spanning) for seed in (0, 1)]
    same, again, first, second = (plan.probe_indices(plan.victims.probes[0], 0) for plan in by_seed)
    assert torch.equal(same, again)
    assert not torch.equal(first, second)


def test_an_unknown_history_and_too_few_images_are_one_line_each(
    tiny_content: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"victims\.history: .*'snapshot' or 'so-far'"):
        validated(tiny_content({"victims": {"probe": {"count": 1, "rate": 0.1}, "history": "all"}}), "test")
    changes = CHANGES | {"victims": {"probe": {"count": 400, "rate": 0.1}, "history": "so-far"}}
    SecretRoot(bytes(32)).save(tmp_path / "root")
    workspace = Workspace(directory=tmp_path / "run", root_file=tmp_path / "root")
    with pytest.raises(DataError, match="3 times 400 probes of 1 images need more than its 1000 victims"):
        training_plans(validated(tiny_content(changes), "test"), workspace)[0].check()
