"""Cells: what becomes of each, in a run of well-behaved and ill-behaved attacks."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from benchmark.experiment import Experiment
from benchmark.recovered_weights import RECOVERED_EXACTLY
from benchmark.store import CellRow, ImageRow, RunTables, TrainingRow
from federation.seeds import torch_generator

SAMPLES = Path(__file__).with_name("sample_attacks.py")
CLASSES = [
    *("Sample", "Crashes", "LacksFile", "OneTooMany", "TooBright", "NotANumber", "OddObjective", "TensorObjective"),
    *("Counting", "SeesAll", "NeedsAuxiliary", "NeedsOneImage", "NeedsSparse"),
    *("NeedsOwnUpdate", "ForACipher", "FiguresOnly", "ClaimsWhatItReads"),
]
ADVERSARIES = [
    *("server/oblivious", "server/adaptive", "collusion/adaptive"),
    *("key-agent/adaptive", "client/oblivious", "aggregate/oblivious"),
]


@pytest.fixture(scope="module")
def samples_run(
    tmp_path_factory: pytest.TempPathFactory,
    run_in: Callable[..., RunTables],
    tiny_experiment: Callable[..., Experiment],
) -> RunTables:
    """Every sample attack, and every position but the eavesdropper's, on plain and keynet."""
    experiment = tiny_experiment(
        {
            "attacks": [{"name": f"{SAMPLES}:{name}", "evaluations": 1} for name in CLASSES],
            "federations.0.defenses": ["plain", "keynet"],
            "adversaries": ADVERSARIES,
            "victims": {"probe": {"count": 1, "batch": 1, "rate": 0.1}, "real_round": {"images": 1}},
        }
    )
    return run_in(tmp_path_factory.mktemp("samples") / "run", experiment)


def pick(frame: pd.DataFrame, **values: object) -> pd.DataFrame:
    for column, value in values.items():
        frame = frame[frame[column] == value]
    return frame


def only(frame: pd.DataFrame, **values: object) -> Any:
    found = pick(frame, **values)
    assert len(found) == 1, f"{len(found)} rows of {values}"
    return found.iloc[0]


def stored(tables: RunTables, path: str) -> np.ndarray:
    return np.asarray(Image.open(tables.directory / path))


@pytest.mark.parametrize(
    ("table", "row"), [("trainings", TrainingRow), ("cells", CellRow), ("images", ImageRow)], ids=lambda item: str(item)
)
def test_tables_have_the_documented_columns(tiny_run: Any, table: str, row: type) -> None:
    frame = getattr(tiny_run.tables, table)
    assert list(frame.columns) == [field.name for field in dataclasses.fields(row)]
    assert len(frame)


def test_there_is_one_row_for_every_combination(tiny_run: Any) -> None:
    cells = tiny_run.tables.cells
    combinations = set(
        itertools.product(
            ["plain", "keynet", "paillier"],
            ["server/oblivious", "server/adaptive", "collusion/adaptive"],
            ["probe", "real-round"],
        )
    )
    found = list(zip(cells.defense, cells.position + "/" + cells.knowledge, cells.victim_kind, strict=True))
    assert len(found) == len(set(found))
    assert set(found) == combinations


def test_scored_cells_have_an_image_row_for_every_victim(tiny_run: Any) -> None:
    cells, images = tiny_run.tables.cells, tiny_run.tables.images
    scored = cells[cells.outcome.isin(["measured", "ciphertext"])]
    counts = images.groupby("cell").size()
    assert set(counts.index) == set(scored.cell)
    for cell in scored.itertuples():
        assert counts[cell.cell] == (3 if cell.victim_kind == "probe" else 2)


def test_an_adaptive_row_without_an_adaptive_attack_is_not_evaluated(tiny_run: Any) -> None:
    rows = pick(tiny_run.tables.cells, defense="keynet", position="server", knowledge="adaptive")
    assert len(rows) == 2
    assert (rows.outcome == "not evaluated").all()
    assert rows.detail.str.contains("does not know how to undo keynet").all()
    assert not tiny_run.tables.images.cell.isin(rows.cell).any()


@pytest.mark.parametrize(("knowledge", "floor"), [("oblivious", "floor_grey"), ("adaptive", "floor_mean")])
def test_ciphertext_scores_the_prior_guess(tiny_run: Any, knowledge: str, floor: str) -> None:
    tables = tiny_run.tables
    rows = pick(tables.cells, defense="paillier", position="server", knowledge=knowledge)
    assert (rows.outcome == "ciphertext").all()
    assert rows.detail.str.contains("paillier ciphertext without a key").all()
    assert (rows.evaluations == 0).all()
    images = tables.images[tables.images.cell.isin(rows.cell)]
    assert len(images) == 5
    np.testing.assert_allclose(images.psnr, images[floor], atol=1e-9)
    assert (images.gain <= 0).all()
    assert not images.identified.any()


def test_collusion_undoes_both_keyed_defenses(tiny_run: Any) -> None:
    tables = tiny_run.tables
    by_defense = {}
    for defense in ("plain", "keynet", "paillier"):
        rows = pick(tables.cells, defense=defense, position="collusion", victim_kind="probe")
        assert (rows.outcome == "measured").all()
        by_defense[defense] = tables.images[tables.images.cell.isin(rows.cell)].psnr.to_numpy()
    np.testing.assert_allclose(by_defense["keynet"], by_defense["plain"], atol=0.5)
    np.testing.assert_allclose(by_defense["paillier"], by_defense["plain"], atol=0.5)


def test_controls_point_to_the_same_attack_on_plain(tiny_run: Any) -> None:
    cells = tiny_run.tables.cells.set_index("cell", drop=False)
    for row in cells.itertuples():
        if (row.defense, row.position, row.knowledge) == ("plain", "server", "oblivious"):
            assert row.control == ""
            continue
        control = cells.loc[row.control]
        assert (control.defense, control.position, control.knowledge) == ("plain", "server", "oblivious")
        same = ["task", "algorithm", "attack", "snapshot", "victim_kind", "regime", "seed"]
        assert [control[name] for name in same] == [getattr(row, name) for name in same]
    assert (cells.role == "attack").all()


def test_adversaries_to_whom_all_looks_the_same_share_a_run(tiny_run: Any) -> None:
    tables = tiny_run.tables
    for kind in ("probe", "real-round"):
        rows = pick(tables.cells, defense="plain", victim_kind=kind)
        assert len(rows) == 3
        assert rows.seconds.nunique() == 1, "seconds of separate runs differ"
        files = tables.images[tables.images.cell.isin(rows.cell)].reconstruction
        assert len(files) == 3 * files.nunique()
    finished = list((tables.directory / "artefacts" / "attacks").glob("*/result.json"))
    measured = tables.cells[tables.cells.outcome == "measured"]
    assert len(finished) == measured.seconds.nunique() < len(measured)


def test_scores_are_those_of_the_stored_images(tiny_run: Any) -> None:
    tables = tiny_run.tables
    for row in tables.images.itertuples():
        truth, guess = stored(tables, row.original), stored(tables, row.reconstruction)
        assert truth.dtype == guess.dtype == np.uint8
        error = np.mean((truth.astype(float) - guess.astype(float)) ** 2) / 255**2
        assert row.mse == pytest.approx(error, rel=1e-12)
        assert row.psnr == pytest.approx(min(60.0, peak_signal_noise_ratio(truth, guess, data_range=255)))
        ssim = structural_similarity(
            truth, guess, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert row.ssim == pytest.approx(ssim)


def test_identification_is_that_of_the_stored_images(tiny_run: Any) -> None:
    tables, workspace = tiny_run.tables, tiny_run.workspace
    probes = tables.images[tables.images.pairing.str.startswith("probe/")]
    private = workspace.private("small-digits", "victims", raw=False).images.numpy()[:, 0].astype(float)
    assert (probes.gallery == len(private)).all(), "of 1,000 victims all are in the gallery"
    for row in probes.itertuples():
        own = int(row.pairing.rpartition("/")[2])
        np.testing.assert_array_equal(private[own], stored(tables, row.original))
        errors = ((private - stored(tables, row.reconstruction).astype(float)) ** 2).sum((1, 2))
        assert row.identified == (errors[own] < np.delete(errors, own).min())


def test_floors_are_those_of_the_auxiliary_images(tiny_run: Any) -> None:
    tables = tiny_run.tables
    auxiliary = tiny_run.workspace.dataset("small-digits").auxiliary
    images, labels = auxiliary.images.numpy()[:, 0].astype(float), auxiliary.labels.numpy()
    probes = tables.images[tables.images.pairing.str.startswith("probe/") & tables.images.label_guess.notna()]
    assert len(probes)
    for row in probes.itertuples():
        drawn = torch.randint(len(images), (1,), generator=torch_generator("floor", "small-digits", row.victim))
        guesses = {
            "floor_grey": np.full((14, 14), 128.0),
            "floor_mean": images.mean(0).round(),
            "floor_class_mean": images[labels == row.label_guess].mean(0).round(),
            "floor_random": images[int(drawn)],
        }
        truth = stored(tables, row.original).astype(float)
        for name, guess in guesses.items():
            psnr = 10 * np.log10(255**2 / np.mean((truth - guess) ** 2))
            assert getattr(row, name) == pytest.approx(psnr, abs=0.02), name  # means may round either way at a half
        assert row.gain == pytest.approx(row.psnr - max(getattr(row, name) for name in guesses))


def test_a_crash_is_a_row_with_its_message(samples_run: RunTables) -> None:
    rows = pick(samples_run.cells, attack="crashes", position="server", defense="plain")
    assert len(rows) == 4
    assert (rows.outcome == "crashed").all()
    assert rows.detail.str.fullmatch(r"ZeroDivisionError: the moon is full \(sample_attacks.py, line \d+\)").all()
    assert not samples_run.images.cell.isin(rows.cell).any()


@pytest.mark.parametrize(
    ("attack", "part"),
    [
        ("lacks file", "weights.bin"),
        ("one too many", "images (2, 1, 14, 14), expected (1, 1, 14, 14)"),
        ("too bright", "finite and in [0, 1]"),
        ("not a number", "finite and in [0, 1]"),
        ("odd objective", "could not convert string to float: 'low'"),
    ],
)
def test_what_an_attack_cannot_have_meant_is_a_crash(samples_run: RunTables, attack: str, part: str) -> None:
    row = only(
        samples_run.cells,
        attack=attack,
        defense="plain",
        position="server",
        knowledge="oblivious",
        victim_kind="probe",
    )
    assert row.outcome == "crashed"
    assert part in row.detail


def test_numbers_may_come_as_tensors(samples_run: RunTables) -> None:
    rows = pick(samples_run.cells, attack="tensor objective", defense="plain", position="server")
    assert (rows.outcome == "measured").all()
    assert (rows.objective == 2.5).all()
    assert (rows.detail == "a note").all()
    assert all(json.loads(findings) == {"half": 0.5} for findings in rows.findings)


@pytest.mark.parametrize(
    ("attack", "setting", "detail"),
    [
        ("needs auxiliary", ("server", "oblivious", "probe"), "needs auxiliary images"),
        ("needs one image", ("server", "oblivious", "real-round"), "needs updates made from a single image"),
        ("needs sparse layers", ("server", "adaptive", "probe"), "needs sparse keyed layers (it reads something else)"),
        ("grey", ("client", "oblivious", "probe"), "this position reads no individual update"),
        ("grey", ("aggregate", "oblivious", "probe"), "this position reads no individual update"),
        ("grey", ("aggregate", "oblivious", "real-round"), "this position reads no individual update"),
        ("needs own update", ("server", "adaptive", "probe"), "needs the update of a client that the position holds"),
    ],
)
def test_an_unmet_need_is_not_applicable(
    samples_run: RunTables, attack: str, setting: tuple[str, str, str], detail: str
) -> None:
    position, knowledge, kind = setting
    row = only(
        samples_run.cells,
        attack=attack,
        defense="plain",
        position=position,
        knowledge=knowledge,
        victim_kind=kind,
    )
    assert (row.outcome, row.detail) == ("not applicable", detail)


def test_a_met_need_runs(samples_run: RunTables) -> None:
    for attack, setting in {
        "needs auxiliary": {"position": "server", "knowledge": "adaptive"},
        "needs one image": {"position": "server", "victim_kind": "probe"},
    }.items():
        rows = pick(samples_run.cells, attack=attack, defense="plain", **setting)
        assert len(rows)
        assert (rows.outcome == "measured").all()


def test_an_attack_on_one_scheme_runs_on_that_scheme_and_in_clear(samples_run: RunTables) -> None:
    rows = pick(samples_run.cells, attack="for a cipher", position="server", knowledge="adaptive")
    assert set(rows[rows.defense == "plain"].outcome) == {"measured"}
    keyed = rows[rows.defense == "keynet"]
    assert set(zip(keyed.outcome, keyed.detail, strict=True)) == {("not applicable", "made for a cipher")}


def test_an_attack_that_starts_from_its_own_update_has_its_own_adversary_as_control(samples_run: RunTables) -> None:
    cells = samples_run.cells.set_index("cell")
    rows = pick(samples_run.cells, attack="needs own update", defense="keynet", position="collusion")
    assert (rows.outcome == "measured").all()
    for control in rows.control:
        assert (cells.loc[control].defense, cells.loc[control].position) == ("plain", "collusion")
        assert cells.loc[control].outcome == "measured"


def test_an_attack_that_reports_figures_has_no_control_to_qualify_it(samples_run: RunTables) -> None:
    rows = pick(samples_run.cells, attack="figures only", outcome="measured")
    assert len(rows)
    assert set(rows.control) == {""}


def test_the_referee_scores_recovered_weights(samples_run: RunTables) -> None:
    exact = {
        defense: json.loads(
            only(
                samples_run.cells,
                attack="claims what it reads",
                defense=defense,
                position="server",
                knowledge="oblivious",
                victim_kind="probe",
            ).findings
        )[RECOVERED_EXACTLY]
        for defense in ("plain", "keynet")
    }
    assert exact["plain"] == 1.0
    assert exact["keynet"] < 0.5


def findings(
    tables: RunTables, attack: str, position: str, knowledge: str, defense: str = "keynet"
) -> dict[str, float]:
    row = only(
        tables.cells, attack=attack, position=position, knowledge=knowledge, defense=defense, victim_kind="probe"
    )
    assert row.outcome == "measured", row.detail
    found: dict[str, float] = json.loads(row.findings)
    return found


def test_an_attack_sees_what_it_declares(samples_run: RunTables) -> None:
    oblivious = findings(samples_run, "sees all", "server", "oblivious")
    assert (oblivious["auxiliary"], oblivious["held"], oblivious["scheme"]) == (0, 0, 0)
    assert oblivious["envelopes"] > 0
    colluding = findings(samples_run, "sees all", "collusion", "adaptive")
    assert (colluding["auxiliary"], colluding["held"], colluding["scheme"]) == (0, 1, 2)
    agent = findings(samples_run, "sees all", "key-agent", "adaptive")
    assert agent["held"] == 1
    everything = findings(samples_run, "needs auxiliary", "collusion", "adaptive")
    assert (everything["auxiliary"], everything["envelopes"], everything["held"], everything["scheme"]) == (
        600,
        0,
        0,
        0,
    )


def test_an_attack_does_not_see_what_it_does_not_declare(samples_run: RunTables) -> None:
    for position, knowledge in (("server", "oblivious"), ("collusion", "adaptive"), ("key-agent", "adaptive")):
        found = findings(samples_run, "sees nothing", position, knowledge)
        assert (found["auxiliary"], found["envelopes"], found["held"], found["scheme"]) == (0, 0, 0, 0)


def test_randomness_follows_the_attack_and_not_the_adversary(samples_run: RunTables) -> None:
    draws = {
        findings(samples_run, "sees all", position, knowledge, defense)["draw"]
        for position, knowledge in (("server", "oblivious"), ("collusion", "adaptive"))
        for defense in ("plain", "keynet")
    }
    assert len(draws) == 1
    assert draws != {findings(samples_run, "sees nothing", "server", "oblivious")["draw"]}


def test_a_full_disk_is_no_property_of_an_attack(
    tmp_path: Path, run_in: Callable[..., RunTables], tiny_experiment: Callable[..., Experiment]
) -> None:
    attacks: Sequence[dict[str, object]] = [{"name": f"{SAMPLES}:FillsDisk", "evaluations": 1}]
    experiment = tiny_experiment({"attacks": attacks, "federations.0.defenses": ["plain"]})
    with pytest.raises(OSError, match="No space left on device"):
        run_in(tmp_path / "run", experiment)
