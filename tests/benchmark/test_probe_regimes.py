"""Several regimes of probes in one experiment: what may be written, what is played, and what stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest
import torch

from benchmark.experiment import Experiment
from benchmark.harness import training_plans
from benchmark.observations import ObservedRounds
from benchmark.regimes import ProbeVictims, Victims
from benchmark.store import RunTables
from benchmark.training_plan import TrainingPlan
from benchmark.workspace import Workspace
from federation.errors import UsageError
from federation.threat import ADVERSARIES

SINGLE = {"count": 4, "batch": 1, "rate": 0.1}
REGIMES = [SINGLE, {"count": 2, "batch": 2, "rate": 0.1}, {"count": 2, "batch": 1, "epochs": 3, "rate": 0.05}]
LABELS = ["probe b1 s1 e1", "probe b2 s1 e1", "probe b1 s3 e3"]
CHANGES: dict[str, Any] = {
    "federations.0.defenses": ["plain", "keynet"],
    "adversaries": ["server/oblivious"],
    "victims": {"real_round": {"images": 2}, "probe": REGIMES},
}


@dataclass(frozen=True)
class Played:
    tables: RunTables
    plan: TrainingPlan


@pytest.fixture(scope="module")
def play(
    tmp_path_factory: pytest.TempPathFactory,
    run_in: Callable[..., RunTables],
    tiny_experiment: Callable[..., Experiment],
) -> Callable[[Any], Played]:
    def run(probe: Any) -> Played:
        experiment = tiny_experiment({**CHANGES, "victims": {**CHANGES["victims"], "probe": probe}})
        tables = run_in(tmp_path_factory.mktemp("regimes") / "run", experiment)
        workspace = Workspace(tables.directory, next(tables.directory.parent.glob("*.root")))
        return Played(tables, training_plans(experiment, workspace)[0])

    return run


@pytest.fixture(scope="module")
def several(play: Callable[[Any], Played]) -> Played:
    return play(REGIMES)


def scored(tables: RunTables) -> pd.DataFrame:
    return tables.images.merge(tables.cells[["cell", "defense", "attack", "regime", "victim_kind"]], on="cell")


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ([SINGLE, {**SINGLE, "rate": 0.2}], ["victims.probe", "two regimes probe b1 s1 e1"]),
        ([SINGLE, {**SINGLE, "batch": 0}], ["victims.probe.1.batch", "greater than or equal to 1"]),
        ([SINGLE, 3], ["victims.probe.1", "must be keys with values"]),
        ([], ["attacks need victims"]),
        ("b1", ["victims.probe", "must be keys with values"]),
    ],
)
def test_a_mistake_names_its_place(tiny_experiment: Callable[..., Experiment], probe: Any, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        tiny_experiment({"victims": {"probe": probe}})
    assert all(word in str(caught.value) for word in words), caught.value


def test_one_regime_is_written_as_before() -> None:
    """Addresses and baselines depend on what an experiment is saved as."""
    victims = Victims.model_validate({"probe": SINGLE})
    probe = {"count": 4, "batch": 1, "steps": None, "epochs": 1, "rate": 0.1}
    assert victims.model_dump(mode="json") == {"probe": probe, "real_round": None, "raw": False}
    assert victims.probes == (ProbeVictims(**SINGLE),)
    assert Victims.model_validate(victims.model_dump(mode="json")) == victims


def test_several_regimes_survive_being_saved() -> None:
    victims = Victims.model_validate({"probe": REGIMES})
    assert [regime.label for regime in victims.regimes] == LABELS
    assert Victims.model_validate(victims.model_dump(mode="json")) == victims


def test_every_regime_has_its_cells_and_their_controls(several: Played) -> None:
    cells = several.tables.cells
    assert set(cells["regime"]) == {"real-round", *LABELS}
    assert not cells.duplicated(["defense", "attack", "regime", "snapshot", "knowledge", "role"]).any()
    regimes = cells.set_index("cell")["regime"]
    controlled = cells[cells["control"] != ""]
    assert len(controlled)
    assert (controlled["regime"] == controlled["control"].map(regimes)).all(), "a control is of the same regime"


def test_each_regime_is_scored_on_its_own_images(several: Played) -> None:
    images = scored(several.tables)
    of_plain = images[images["defense"] == "plain"]
    for regime, count in zip(several.plan.victims.probes, (4, 4, 2), strict=True):
        rows = of_plain[of_plain["regime"] == regime.label]
        assert (rows.groupby("cell").size() == count).all()
        assert set(rows.groupby("cell")["victim"].nunique()) == {regime.count}
    # regimes with as many images have the same ones, and a smaller one the first of them
    one, two, three = (set(of_plain.loc[of_plain["regime"] == label, "pairing"]) for label in LABELS)
    assert one == two
    assert three < one


def test_an_observation_tells_its_own_regime(several: Played) -> None:
    for regime, facts in zip(several.plan.victims.probes, [(1, 1, 0.1), (2, 1, 0.1), (1, 3, 0.05)], strict=True):
        history = ObservedRounds(several.plan, ADVERSARIES.get("server/oblivious"), regime, 0)
        assert len(history) == regime.count
        for index in range(len(history)):
            seen = history[index].facts
            assert (seen.batch_size, seen.steps, seen.learning_rate) == facts
            assert len(history.truth(index).labels) == regime.batch


def test_no_two_probes_are_one_round(several: Played) -> None:
    names = [
        victim.identifier
        for regime in several.plan.victims.probes
        for victim in ObservedRounds(several.plan, ADVERSARIES.get("server/oblivious"), regime, 0).victims()
    ]
    assert len(names) == len(set(names)) == 8


def test_the_first_regime_is_what_it_is_alone(several: Played, play: Callable[[Any], Played]) -> None:
    alone, among = (scored(played.tables) for played in (play(SINGLE), several))
    numbers = ["defense", "attack", "victim", "pairing", "psnr", "floor_mean", "label_guess"]
    ours, theirs = (
        rows.loc[rows["regime"] == LABELS[0], numbers].sort_values(numbers[:3]).reset_index(drop=True)
        for rows in (among, alone)
    )
    assert len(ours)
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


def test_each_regime_begins_the_secret_order(several: Played) -> None:
    first, second, third = (several.plan.probe_indices(probe, 0) for probe in several.plan.victims.probes)
    assert torch.equal(first.flatten(), second.flatten())
    assert torch.equal(first.flatten()[:2], third.flatten())
