"""Keyed images as victims: what an experiment may say, what is sent and read, how cells come out, and what stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from observed import observed

from benchmark.bundles.make import Wanted, bundle_from_run
from benchmark.experiment import Experiment
from benchmark.harness import training_plans
from benchmark.regimes import Victims
from benchmark.store import RunTables
from benchmark.training_plan import TrainingPlan
from benchmark.workspace import Workspace
from defenses.inference import IMAGE_PHASE, NETWORK_PHASE
from federation.errors import DataError, UsageError
from federation.messages import SERVER
from federation.normalisation import Normalisation
from federation.threat import KeyedImage, Nothing
from leaderboard.lines import Verdict
from leaderboard.ranking import rank_run

COUNT = 3
SOFT = {"name": "soft", "stages": [{"keynet-toeplitz": {"alpha": 2}}]}
READERS = ("server", "eavesdropper", "collusion", "key-agent")
CHANGES: dict[str, Any] = {
    "federations.0.task": "small-digits-lenet-zhu",
    "federations.0.defenses": ["plain", "keynet", "keynet-toeplitz", SOFT],
    "federations.0.snapshots": [0, 1],
    "federations.0.algorithm.rounds": 2,
    "adversaries": [f"{position}/adaptive" for position in (*READERS, "client", "aggregate")],
    "attacks": [{"name": name, "evaluations": 1} for name in ("keynet-image", "keynet-grid", "cosine")],
    "victims": {"keyed_image": {"count": COUNT}},
}


class Played:
    """A run and its trainings by defense."""

    def __init__(self, experiment: Experiment, tables: RunTables) -> None:
        self.tables = tables
        self.root_file = next(tables.directory.parent.glob("*.root"))
        workspace = Workspace(tables.directory, self.root_file)
        self.plans: dict[str, TrainingPlan] = {
            plan.defense_spec.name: plan for plan in training_plans(experiment, workspace)
        }

    def cells(self, **values: object) -> pd.DataFrame:
        found = self.tables.cells
        for column, value in values.items():
            found = found[found[column] == value]
        assert len(found), values
        return found

    def images(self, cells: pd.DataFrame) -> pd.DataFrame:
        return self.tables.images[self.tables.images.cell.isin(cells.cell)]


Play = Callable[[dict[str, Any]], Played]


@pytest.fixture(scope="module")
def play(
    tmp_path_factory: pytest.TempPathFactory,
    run_in: Callable[..., RunTables],
    tiny_experiment: Callable[..., Experiment],
) -> Play:
    def run(changes: dict[str, Any]) -> Played:
        experiment = tiny_experiment({**CHANGES, **changes})
        return Played(experiment, run_in(tmp_path_factory.mktemp("keyed") / "run", experiment))

    return run


@pytest.fixture(scope="module")
def served(play: Play) -> Played:
    return play({})


@pytest.mark.parametrize(
    ("victims", "words"),
    [
        ({"keyed_image": {"count": 0}}, ["victims.keyed_image.count", "greater than or equal to 1"]),
        ({"keyed_image": {"count": 1, "bits": 8}}, ["victims.keyed_image.bits"]),
        ({"keyed_image": 3}, ["victims.keyed_image", "must be keys with values"]),
        ({}, ["attacks need victims", "victims.keyed_image"]),
    ],
)
def test_a_mistake_names_its_place(tiny_experiment: Callable[..., Experiment], victims: Any, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        tiny_experiment({"victims": victims})
    assert all(word in str(caught.value) for word in words), caught.value


def test_what_is_not_there_is_not_written() -> None:
    """Addresses and baselines depend on what an experiment is saved as."""
    without = Victims.model_validate({"real_round": {"images": 2}}).model_dump(mode="json")
    assert without == {"probe": None, "real_round": {"images": 2, "evaluations": None}, "raw": False}
    victims = Victims.model_validate({"keyed_image": {"count": 2, "eight_bit": True}})
    assert victims.model_dump(mode="json")["keyed_image"] == {"count": 2, "eight_bit": True}
    assert Victims.model_validate(victims.model_dump(mode="json")) == victims
    assert [regime.label for regime in victims.regimes] == ["keyed-image 8-bit"]


def test_a_real_rounds_budget_is_its_own(tiny_experiment: Callable[..., Experiment]) -> None:
    victims = {"keyed_image": {"count": 1}, "real_round": {"images": 1, "evaluations": 3}}
    experiment = tiny_experiment({"victims": victims})
    for regime, evaluations in zip(experiment.victims.regimes, (3, 8), strict=True):
        chosen = experiment.attacks_on(experiment.federations[0], regime.kind)
        assert [spec.evaluations for spec in chosen] == [evaluations]


def test_too_many_images_are_an_error_before_anything_runs(play: Play) -> None:
    with pytest.raises(DataError, match="2 times 501 keyed images need more than its 1000 victims"):
        play({"victims": {"keyed_image": {"count": 501}, "history": "so-far"}})


@pytest.mark.parametrize("position", READERS)
@pytest.mark.parametrize(("defense", "hidden_by"), [("plain", set()), ("keynet-toeplitz", {"keynet-toeplitz"})])
def test_who_reads_the_wire_reads_the_network_and_one_image(
    served: Played, position: str, defense: str, hidden_by: set[str]
) -> None:
    history = observed(served.plans[defense], f"{position}/adaptive", "keyed-image")
    assert len(history) == len(history.victims()) == COUNT
    for index, victim in enumerate(history.victims()):
        assert (victim.observation, victim.sender, victim.image_count) == (index, "client-0", 1)
        sent = [(item.phase, item.sender, item.receiver) for item in history[index].transcript]
        assert sent == [(NETWORK_PHASE, "client-0", SERVER), (IMAGE_PHASE, "client-0", SERVER)]
        view = history[index].view
        assert isinstance(view, KeyedImage)
        assert view.hidden_by == hidden_by
        assert bool(view.layers) == bool(hidden_by)


@pytest.mark.parametrize("position", ["client", "aggregate"])
@pytest.mark.parametrize("defense", ["plain", "keynet-toeplitz"])
def test_who_does_not_read_the_wire_reads_nothing(served: Played, position: str, defense: str) -> None:
    seen = observed(served.plans[defense], f"{position}/adaptive", "keyed-image")[0]
    assert seen.view == Nothing("this position reads no images of others")
    assert not seen.transcript


def test_the_owner_is_no_adversary_of_itself(play: Play) -> None:
    alone = play(
        {
            "federations.0.algorithm.clients": 1,
            "federations.0.defenses": ["plain"],
            "adversaries": ["client/adaptive"],
            "federations.0.snapshots": [0],
        }
    )
    assert set(alone.cells(role="attack").detail) == {"this position is the owner of the images"}


def test_in_clear_the_image_itself_is_sent(served: Played) -> None:
    history = observed(served.plans["plain"], "server/adaptive", "keyed-image")
    for index in range(COUNT):
        seen, truth = history[index], history.truth(index)
        assert isinstance(seen.view, KeyedImage)
        inputs = Normalisation(seen.mean, seen.deviation).apply(truth.images.float() / 255)
        assert torch.equal(seen.view.image, inputs.flatten())


def test_truths_are_secretly_changed_images_and_differ(served: Played) -> None:
    plan = served.plans["plain"]
    public = plan.workspace.dataset(plan.task).victims
    history = observed(plan, "server/adaptive", "keyed-image")
    truths = [history.truth(index) for index in range(COUNT)]
    assert len({int(truth.indices) for truth in truths}) == COUNT
    for truth in truths:
        assert torch.equal(truth.labels, public.labels[truth.indices])
        assert not torch.equal(truth.images, public.images[truth.indices])


def test_each_snapshot_defense_and_seed_has_keys_of_its_own(served: Played) -> None:
    plan, soft = served.plans["keynet-toeplitz"], served.plans["soft"]
    roots = [plan.inference_root(0), plan.inference_root(1), soft.inference_root(0)]
    roots.append(plan.workspace.root.derive(*plan.parties_root()))
    assert len({root.stream(32) for root in roots}) == len(roots)
    early, late = (observed(plan, "server/adaptive", "keyed-image", snapshot)[0].view for snapshot in (0, 1))
    assert isinstance(early, KeyedImage)
    assert isinstance(late, KeyedImage)
    assert not torch.equal(early.image, late.image), "the same image under other keys"


@pytest.mark.parametrize("position", READERS)
@pytest.mark.parametrize("snapshot", [0, 1])
def test_keyed_images_open_as_well_as_images_in_clear(served: Played, position: str, snapshot: int) -> None:
    values = {"attack": "keynet-image", "position": position, "snapshot": snapshot}
    plain = served.cells(defense="plain", role="attack", **values).iloc[0]
    assert (plain.outcome, plain.regime, plain.victim_kind) == ("measured", "keyed-image", "keyed-image")
    keyed = served.cells(defense="keynet-toeplitz", **values).iloc[0]
    assert (keyed.outcome, keyed.control) == ("measured", plain.cell)
    for cells, least in ((served.cells(cell=plain.cell), 60.0), (served.cells(cell=keyed.cell), 40.0)):
        images = served.images(cells)
        assert len(images) == COUNT
        assert images.pairing.str.startswith("keyed-image/").all()
        assert images.psnr.min() >= least
        assert images.identified.all()
    found = json.loads(keyed.findings)
    assert found["share of pixels placed"] == found["share of pixels placed rightly"] == 1
    assert found["largest error of log gains"] < 1e-5


def test_soft_keys_are_not_evaluated_and_have_no_rank(served: Played) -> None:
    cells = served.cells(defense="soft", attack="keynet-image", position="server")
    assert set(cells.outcome) == {"not applicable"}
    assert set(cells.detail) == {"needs keys that mix no pixels (here alpha is 2)"}
    entries = [entry for ranking in rank_run(served.tables) for entry in ranking.entries if entry.defense == "soft"]
    assert {(entry.verdict, entry.rank) for entry in entries} == {(Verdict.NOT_EVALUATED, None)}


def test_a_defense_without_encrypted_inference_is_a_row(served: Played) -> None:
    cells = served.cells(defense="keynet")
    assert set(zip(cells.outcome, cells.detail, strict=True)) == {("not applicable", "keynet encrypts no images")}
    assert observed(served.plans["keynet"], "server/adaptive", "keyed-image")[0].view == Nothing(
        "keynet encrypts no images"
    )


@pytest.mark.parametrize("attack", ["keynet-grid", "cosine"])
@pytest.mark.parametrize("defense", ["plain", "keynet-toeplitz", "soft"])
def test_attacks_on_updates_are_not_applicable(served: Played, attack: str, defense: str) -> None:
    cells = served.cells(defense=defense, attack=attack, position="server", knowledge="adaptive")
    assert set(zip(cells.outcome, cells.detail, strict=True)) == {
        ("not applicable", "needs updates (it reads images)"),
    }


def test_the_attack_on_images_is_not_applicable_to_updates(play: Play) -> None:
    probes = play(
        {
            "federations.0.snapshots": [0],
            "federations.0.defenses": ["plain", "keynet", "keynet-toeplitz"],
            "adversaries": ["server/adaptive"],
            "victims": {"probe": {"count": 1, "rate": 0.1}},
        }
    )
    needs = "needs keyed images and the keyed layers that read them (it reads something else)"
    rows = probes.cells(attack="keynet-image", role="attack")
    assert dict(zip(rows.defense, rows.detail, strict=True)) == {
        "plain": needs,
        "keynet": "made for keynet-toeplitz",
        "keynet-toeplitz": needs,
    }
    assert set(rows.outcome) == {"not applicable"}


def test_pictures_of_eight_bits_open_too(play: Play) -> None:
    pictures = play(
        {
            "federations.0.snapshots": [0],
            "federations.0.defenses": ["plain", "keynet-toeplitz"],
            "adversaries": ["server/adaptive"],
            "victims": {"keyed_image": {"count": COUNT, "eight_bit": True}},
        }
    )
    view = observed(pictures.plans["keynet-toeplitz"], "server/adaptive", "keyed-image")[0].view
    assert isinstance(view, KeyedImage)
    assert (view.image.dtype, len(view.image)) == (torch.uint8, 14 * 14)
    cells = pictures.cells(attack="keynet-image", defense="keynet-toeplitz")
    assert set(cells.regime) == {"keyed-image 8-bit"}
    images = pictures.images(cells)
    assert images.gain.mean() > 5
    assert images.psnr.max() < 60, "brightness and rounding are lost"


def test_rounds_so_far_have_images_of_their_own(play: Play) -> None:
    both = play(
        {
            "federations.0.defenses": ["plain", "keynet-toeplitz"],
            "adversaries": ["server/adaptive"],
            "attacks": CHANGES["attacks"][:1],
            "victims": {"keyed_image": {"count": COUNT}, "history": "so-far"},
        }
    )
    history = observed(both.plans["keynet-toeplitz"], "server/adaptive", "keyed-image", 1)
    assert [seen.round for seen in history] == [0] * COUNT + [1] * COUNT
    assert [victim.observation for victim in history.victims()] == list(range(COUNT, 2 * COUNT))
    assert len({int(history.truth(index).indices) for index in range(2 * COUNT)}) == 2 * COUNT
    cells = both.cells(attack="keynet-image", defense="keynet-toeplitz", snapshot=1)
    assert (both.images(cells).psnr > 40).all()


def test_the_served_network_is_checked_before_it_is_read(play: Play) -> None:
    run = play(
        {"federations.0.snapshots": [0], "federations.0.defenses": ["plain"], "adversaries": ["server/adaptive"]}
    )
    file = next(Path(run.plans["plain"].directory).glob("served-network*"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="missing, or not what the training wrote"):
        observed(run.plans["plain"], "server/adaptive", "keyed-image")[0]


def test_a_bundle_holds_no_keyed_images(served: Played, tmp_path: Path) -> None:
    wanted = Wanted(task="small-digits-lenet-zhu", defense="plain", adversary="server/adaptive")
    with pytest.raises(UsageError, match="a bundle holds updates, and keyed-image is none"):
        bundle_from_run(served.tables.directory, wanted, tmp_path / "bundle", served.root_file)
