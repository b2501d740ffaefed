"""The Gusain reproduction from end to end on small digits, and its deviations held to the run's own tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import benchmark.scoring
from benchmark import harness
from benchmark.experiment import Experiment
from benchmark.metrics.perceptual import Unavailable
from benchmark.reproduce.gusain import inference, scales
from benchmark.reproduce.gusain.deviations import deviations
from benchmark.reproduce.gusain.run import Options, reproduce
from benchmark.store import RunTables, read_run
from benchmark.store.gusain import EncryptedExample, EncryptedVictim, GusainResult, InferenceRow, read_gusain
from benchmark.workspace import Workspace
from federation.secret_root import SecretRoot

OPTIONS = Options("quick", ("lenet",))


class Silence:
    """Progress that nobody watches."""

    def begin(self, stage: str, total: int) -> None: ...

    def done(self, label: str) -> None: ...


@pytest.fixture(scope="module", autouse=True)
def small(tiny_experiment: Any, offline: Any) -> Iterator[None]:
    """Logistic regression on small digits in place of every experiment; the learnt metrics are left out."""
    fedavg = {"snapshots": [0, 1], "defenses": ["plain", "keynet"], "algorithm.rounds": 2, "references": True}
    fedpaq = {"snapshots": [1], "defenses": ["qsgd", "keynet-quantized"], "algorithm.rounds": 2}
    experiment: Experiment = tiny_experiment({f"federations.0.{name}": value for name, value in fedavg.items()})
    second = tiny_experiment(
        {f"federations.0.{name}": value for name, value in (fedpaq | {"algorithm.name": "fedpaq"}).items()}
    )
    both = experiment.model_copy(update={"federations": (*experiment.federations, *second.federations)})
    with pytest.MonkeyPatch.context() as patch:
        offline(patch)
        patch.setattr(scales, "experiment_of", lambda scale, network: both)
        patch.setattr(benchmark.scoring, "load_st_lpips", lambda: Unavailable("left out"))
        benchmark.scoring.perceptual_metrics.cache_clear()
        yield
    benchmark.scoring.perceptual_metrics.cache_clear()


def workspace_in(directory: Path) -> Workspace:
    workspace = Workspace(directory, directory.parent / "gusain.root")
    SecretRoot(b"g" * 32).save(workspace.root_file)
    return workspace


@dataclass(frozen=True)
class Finished:
    workspace: Workspace
    result: GusainResult
    run: RunTables


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, serial_engine: Any, small: None) -> Finished:
    workspace = workspace_in(tmp_path_factory.mktemp("gusain") / "out")
    result = reproduce(workspace, OPTIONS, engine=serial_engine(), progress=Silence())
    return Finished(workspace, result, read_run(workspace.directory / "lenet"))


def test_the_result_is_stored_beside_its_run(finished: Finished) -> None:
    result = finished.result
    assert read_gusain(finished.workspace.directory) == result
    assert [one.network for one in result.networks] == ["lenet"]
    assert len(result.entries) == 8, "the paper's figures are all there, whatever was run"
    assert result.seeds == [0]
    assert result.manifest.datasets == finished.run.manifest.datasets
    assert (result.networks[0].folder, result.networks[0].task) == ("lenet", "small-digits")


def test_every_entry_of_the_table_has_a_training(finished: Finished) -> None:
    rows = finished.run.trainings
    for entry in finished.result.entries:
        if entry.network == "lenet":
            chosen = rows[rows["algorithm"].str.startswith(entry.algorithm) & (rows["defense"] == entry.defense)]
            assert len(chosen) == 1
            assert (chosen["aggregation_error"] <= chosen["stated_error"]).all()


def test_every_reader_has_cells_at_every_snapshot(finished: Finished) -> None:
    cells = finished.run.cells
    for reader in finished.result.readers:
        seen = cells[(cells["position"] == reader.position) & (cells["knowledge"] == reader.knowledge)]
        assert set(seen["snapshot"]) == {0, 1}
        assert set(seen["victim_kind"]) == {"probe", "real-round"}


def test_attacked_images_are_shown_keyed(finished: Finished) -> None:
    directory, network = finished.workspace.directory, finished.result.networks[0]
    assert {one.original for one in network.encrypted_victims} == {
        f"lenet/{name}" for name in finished.run.images["original"]
    }
    shown: list[EncryptedExample | EncryptedVictim] = [*network.encrypted_victims, *network.examples]
    for one in shown:
        assert (directory / one.original).is_file()
        assert (directory / one.shown).is_file()
    assert len({one.keys for one in network.encrypted_victims}) == 1
    assert [row.agreement for row in network.inference] == [1, 1, 1]


def test_deviations_carry_the_runs_own_figures(finished: Finished) -> None:
    said = {row.what: row.effect for row in finished.result.deviations}
    words = " ".join(said.values())
    trainings = finished.run.trainings.set_index(["defense", "reference"])["accuracy"]

    def accuracy(defense: str) -> float:
        rows = finished.run.trainings
        fedavg = rows["algorithm"].str.startswith("fedavg") & (rows["defense"] == defense) & (rows["reference"] == "")
        quantised = rows["defense"].isin(["qsgd", "keynet-quantized"]) & (rows["defense"] == defense)
        return float(rows[fedavg | quantised]["accuracy"].iloc[0])

    assert f"{100 * accuracy('plain'):.1f}% under FedAvg, {100 * accuracy('qsgd'):.1f}% under FedPAQ" in words
    assert f"centralised {100 * trainings['', 'centralised']:.1f}%" in words
    for one, other in (("keynet", "plain"), ("keynet-quantized", "qsgd")):
        assert f"{100 * (accuracy(one) - accuracy(other)):+.2f} points for LeNet on MNIST (printed -2;" in words
    images = finished.run.images.merge(finished.run.cells, on="cell")
    with_key = images[
        (images["position"] == "collusion") & (images["defense"] == "keynet") & (images["victim_kind"] == "probe")
    ]
    assert f"{with_key['psnr'].mean():.1f} with the key" in words
    assert "NOT within" not in words
    assert "600 of 600 test images" in words


def test_seeds_can_be_given(finished: Finished) -> None:
    assert replace(OPTIONS, seeds=(3, 4)).experiment("lenet").seeds == (3, 4)
    assert OPTIONS.experiment("lenet").seeds == (0,)


def test_nothing_finished_is_computed_again(
    finished: Finished, serial_engine: Any, monkeypatch: pytest.MonkeyPatch, assert_same_rows: Callable[..., None]
) -> None:
    monkeypatch.setattr(inference, "measure", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(benchmark.trainings, "_Training", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(benchmark.cells, "run_attack", lambda *_: pytest.fail("attacked again"))
    again = reproduce(finished.workspace, OPTIONS, engine=serial_engine(), progress=Silence())
    kept = replace(again, seconds=finished.result.seconds, manifest=finished.result.manifest)
    assert kept == finished.result
    assert_same_rows(read_run(finished.workspace.directory / "lenet"), finished.run)


def test_an_interrupted_call_goes_on(finished: Finished, tmp_path: Path, serial_engine: Any) -> None:
    workspace = workspace_in(tmp_path / "out")
    with pytest.raises(serial_engine.Interrupted):
        reproduce(workspace, OPTIONS, engine=serial_engine(jobs_left=9), progress=Silence())
    assert not (workspace.directory / "result.json").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "run_training", _refusing(harness.run_training))
        result = reproduce(workspace, OPTIONS, engine=serial_engine(), progress=Silence())

    def untimed(row: InferenceRow) -> InferenceRow:
        return replace(row, seconds_plain=0, seconds_keyed=0)

    ours, theirs = (one.networks[0] for one in (result, finished.result))
    assert [untimed(row) for row in ours.inference] == [untimed(row) for row in theirs.inference]
    assert ours.examples == theirs.examples


def _refusing(train: Callable[..., Any]) -> Callable[..., Any]:
    def run(plan: Any) -> Any:
        assert (plan.directory / "row.json").is_file(), "trainings were all done before the interruption"
        return train(plan)

    return run


def made_up(finished: Finished, **columns: float) -> RunTables:
    """The run with other values in its encrypted trainings."""
    trainings = finished.run.trainings.copy()
    encrypted = trainings["defense"].isin(["keynet", "keynet-quantized"])
    for name, value in columns.items():
        trainings.loc[encrypted, name] = value
    return replace(finished.run, trainings=trainings)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"aggregation_error": 0.5, "stated_error": 0.25}, "5.0e-01 (NOT within the stated 2.5e-01)"),
        ({"aggregation_error": 0.125, "stated_error": 0.25}, "1.2e-01 (within the stated 2.5e-01)"),
        (
            {
                "seconds_keys": 1.0,
                "seconds_protect": 1.0,
                "seconds_recover": 2.0,
                "seconds_train": 11.0,
                "seconds_aggregate": 1.0,
            },
            "LeNet on MNIST, FedAvg 25.0%; LeNet on MNIST, FedPAQ 25.0%",
        ),
    ],
)
def test_deviations_follow_the_tables(finished: Finished, columns: dict[str, float], expected: str) -> None:
    rows = deviations({"lenet": made_up(finished, **columns)}, finished.result.networks)
    assert expected in " ".join(row.effect for row in rows)


def test_a_change_is_set_beside_the_plain_networks_own_swings(finished: Finished) -> None:
    trainings = finished.run.trainings.copy()
    trainings["accuracy_by_round"] = [[0.1, 0.9, 0.5, 0.55, 0.45]] * len(trainings)
    rows = deviations({"lenet": replace(finished.run, trainings=trainings)}, finished.result.networks)
    said = next(row.effect for row in rows if "floating-point" in row.what)
    assert "the plain network alone moves by up to 10.0)" in said, "the first half of training does not count"


def test_an_attack_that_fails_on_plain_weights_shows_nothing(finished: Finished) -> None:
    found = {}
    for psnr in (5.0, 25.0):
        images = finished.run.images.assign(psnr=psnr, floor_mean=12.0)
        rows = deviations({"lenet": replace(finished.run, images=images)}, finished.result.networks)
        found[psnr] = next(row.effect for row in rows if "figure 4.7" in row.what)
    assert "shows nothing either way" in found[5.0]
    assert "shows nothing either way" not in found[25.0]


def test_deviations_of_a_refused_key_say_why(finished: Finished) -> None:
    refused = replace(
        finished.result.networks[0],
        refusals=[inference.InferenceRefusal("gains up to 2", "relu6: gains do not commute")],
    )
    rows = deviations({"lenet": finished.run}, [refused])
    assert any("gains up to 2: relu6: gains do not commute" in row.effect for row in rows)


def test_images_rows_are_of_stated_victims(finished: Finished) -> None:
    kinds = pd.merge(finished.run.images, finished.run.cells, on="cell").groupby("victim_kind")["pairing"].nunique()
    assert kinds["probe"] == 3, "the same three images under every defense and at every round"
