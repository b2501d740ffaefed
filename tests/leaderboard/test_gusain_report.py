"""Tables, figures and the page of the Gusain reproduction, from a result and a run that the tests make up."""

from __future__ import annotations

import csv
import html
import io
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from benchmark.store import Manifest, VictimKind
from benchmark.store.documents import Deviation
from benchmark.store.gusain import (
    AlgorithmName,
    EncryptedExample,
    EncryptedVictim,
    GusainResult,
    InferenceRefusal,
    InferenceRow,
    NetworkName,
    NetworkResult,
    Reader,
    TableEntry,
    write_gusain,
)
from federation.errors import DataError
from leaderboard.lines import Verdict
from leaderboard.reproduction.gallery import Row, Tile, draw_gallery
from leaderboard.reproduction.gusain import write_gusain_report
from leaderboard.reproduction.gusain_attacks import round_tables, worst_round_tables
from leaderboard.reproduction.gusain_pictures import _rows, encrypted_inference
from leaderboard.reproduction.gusain_rounds import _series
from leaderboard.reproduction.gusain_runs import Reproduction, read_reproduction, sentences
from leaderboard.reproduction.gusain_tables import accuracy_table, cost_tables, inference_table, setting_table
from leaderboard.reproduction.report import ReproductionReport

HOSTILE = "<img src=x onerror=alert(1)>&\"'{{ 7 * 7 }}$x_1$"
LABEL = "quick: embedded data, not the paper's size"
FEDAVG, FEDPAQ = "fedavg disjoint-classes K=2", "fedpaq disjoint-classes K=2 tau=5"
PRINTED: dict[tuple[NetworkName, AlgorithmName], tuple[float, float]] = {
    ("lenet", "fedavg"): (0.98, 0.96),
    ("mobilenet", "fedavg"): (0.84, 0.82),
    ("lenet", "fedpaq"): (0.98, 0.96),
    ("mobilenet", "fedpaq"): (0.82, 0.86),
}
DEFENSES = {"fedavg": ("plain", "keynet"), "fedpaq": ("qsgd", "keynet-quantized")}
READERS = [
    Reader("server", "oblivious", "oblivious", "The paper's attacker."),
    Reader("server", "adaptive", "knowing the scheme", "It lacks the key."),
    Reader("collusion", "adaptive", "with the key", "The server with one client."),
]
SHARED = {"stream": "shared", "task": "mnist5k-lenet5"}


def run_of_lenet(builder: Any) -> Any:
    """Three rounds of both algorithms and both kinds of victim; one cell of the oblivious reader crashed."""
    for algorithm, defenses in ((FEDAVG, DEFENSES["fedavg"]), (FEDPAQ, ("plain", *DEFENSES["fedpaq"]))):
        for defense in defenses:
            keyed = defense.startswith("keynet")
            builder.train(
                defense,
                task="mnist5k-lenet5",
                algorithm=algorithm,
                accuracy=0.9 if keyed else 0.92,
                aggregation_error=2e-3 if defense == "keynet-quantized" else 1e-7,
                stated_error=1e-3 if keyed else 1e-6,
                seconds_keys=0.5 if keyed else 0.0,
                seconds_protect=0.25,
                seconds_aggregate=0.25,
                seconds_recover=0.25,
                seconds_train=2.75 if keyed else 3.25,
            )
            for kind in ("real-round", "probe"):
                for snapshot in (0, 1, 2):
                    attack_each_reader(builder, algorithm, defense, kind, snapshot)
    return builder


def attack_each_reader(builder: Any, algorithm: str, defense: str, kind: str, snapshot: int) -> None:
    common = {**SHARED, "algorithm": algorithm, "victim_kind": kind, "snapshot": snapshot}
    keyed = defense.startswith("keynet")
    for reader in READERS:
        whose = {**common, "position": reader.position, "knowledge": reader.knowledge}
        if not keyed or reader.position == "collusion":
            builder.attack(defense, gain=12 - 3 * snapshot, identified=1.0, **whose)
        elif reader.knowledge == "adaptive":
            builder.attack(defense, outcome="not evaluated", detail="no attack knows it", **whose)
        elif (algorithm, kind, snapshot) == (FEDAVG, "probe", 1):
            builder.attack(defense, outcome="crashed", detail="out of memory", **whose)
        else:
            builder.attack(defense, gain=-4, **whose)


def made_up(folder: Path) -> GusainResult:
    """A result with LeNet alone; its keyed pictures are drawn into `folder`."""
    rng = np.random.default_rng(0)
    (folder / "inference").mkdir()
    for name in ("plain", "keyed"):
        Image.fromarray(rng.integers(0, 256, (28, 28)).astype(np.uint8)).save(folder / "inference" / f"{name}.png")
    examples = [
        EncryptedExample("permutations", label, label, label, 9, "inference/plain.png", "inference/keyed.png")
        for label in range(4)
    ]
    lenet = NetworkResult(
        network="lenet",
        title="LeNet on MNIST",
        folder="lenet",
        task="mnist5k-lenet5",
        setting="LeNet-5 on mnist5k",
        departures=["5,000 digits in place of 70,000."],
        training="2 rounds of one epoch.",
        budget="cosine: 400 gradient evaluations.",
        victims="3 probes of one raw image.",
        inference=[InferenceRow("permutations", 200, 0.97, 0.97, 1.0, 1e-6, 20.0, 0.1, 30.0, 1000, 2000, 0.001, 0.01)],
        refusals=[InferenceRefusal("gains up to 2", HOSTILE)],
        examples=examples,
        encrypted_victims=[EncryptedVictim("permutations", "lenet/images/original-0.png", "inference/keyed.png")],
    )
    entries = [
        TableEntry(network, algorithm, encrypted, PRINTED[network, algorithm][encrypted], DEFENSES[algorithm][encrypted])
        for network, algorithm in PRINTED
        for encrypted in (False, True)
    ]  # fmt: skip
    return GusainResult(
        manifest=Manifest(
            name="gusain",
            created="2026-01-01T00:00:00+00:00",
            preset="",
            config={"scale": HOSTILE},
            versions={"python": "3.11"},
            git_commit="c" * 40,
            git_dirty=False,
            hardware={"cpu": HOSTILE, "cores": 2, "memory": 1},
            datasets={"mnist5k": "d" * 64},
            lpips_trunk=None,
        ),
        scale="quick",
        label=LABEL,
        seeds=[0, 1],
        entries=entries,
        readers=READERS,
        networks=[lenet],
        deviations=[Deviation("The paper's 2% drop", f"not floating point; {HOSTILE}")],
        seconds=60.0,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_run: type[Any]) -> Path:
    directory = tmp_path_factory.mktemp("gusain")
    run_of_lenet(make_run(seeds=(0, 1), images=3)).write(directory / "lenet", pictures=True)
    write_gusain(directory, made_up(directory))
    return directory


@pytest.fixture(scope="module")
def found(folder: Path) -> Reproduction:
    return read_reproduction(folder)


@pytest.fixture(scope="module")
def report(folder: Path) -> ReproductionReport:
    return write_gusain_report(folder)


def test_table_4_1_has_every_entry_of_the_paper_and_says_what_was_not_run(found: Reproduction) -> None:
    table = accuracy_table(found)
    records = table.records
    assert [record["printed"] for record in records] == [0.98, 0.96, 0.84, 0.82, 0.98, 0.96, 0.82, 0.86]
    (ours,) = (column for column in table.columns if column.name == "ours")
    shown = [ours.show(record.get("ours")) for record in records]
    assert [cell == "not run" for cell in shown] == [False, False, True, True] * 2
    assert records[7]["printed_change"] == pytest.approx(0.04), "the paper's MobileNet gains from encryption"


def test_ours_is_that_of_the_entry_and_the_change_is_paired(found: Reproduction) -> None:
    plain, keyed = accuracy_table(found).records[:2]
    rows = found.runs["lenet"].tables.trainings
    mean = rows[rows["algorithm"] == FEDAVG].groupby("defense")["accuracy"].mean()
    assert plain["ours"] == pytest.approx(mean["plain"])
    assert keyed["difference"] == pytest.approx(mean["keynet"] - 0.96)
    assert keyed["change"].mean == pytest.approx(mean["keynet"] - mean["plain"])
    assert keyed["change"].low < keyed["change"].mean < keyed["change"].high
    assert "change" not in plain


def test_fedpaq_is_compared_with_quantised_weights_not_with_the_reference(found: Reproduction) -> None:
    quantised, keyed = accuracy_table(found).records[4:6]
    assert (quantised["defense"], keyed["defense"]) == ("qsgd", "keynet-quantized")
    assert quantised["tested_on"] == 400


def test_costs_are_shares_of_a_round_and_errors_stand_beside_what_is_stated(found: Reproduction) -> None:
    (table,) = cost_tables(found)
    records = {(record["algorithm"], record["defense"]): record for record in table.records}
    assert records["FedAvg", "keynet"]["key_share"] == pytest.approx(1.0 / 4)
    assert records["FedAvg", "plain"]["key_share"] == pytest.approx(0.5 / 4)
    assert records["FedAvg", "keynet"]["within"] == "yes"
    assert records["FedPAQ", "keynet-quantized"]["within"] == "no"
    assert len(records) == 5
    assert "negligible" in table.caption


def test_attacks_stand_at_their_worst_round_with_the_verdict_words(found: Reproduction) -> None:
    lenet, mobilenet = worst_round_tables(found)
    records = {
        (record["algorithm"], record["victims"], record["reader"], record["defense"]): record
        for record in lenet.records
    }
    assert len(records) == 2 * 3 * 2 + 2 * 3 * 3
    probe = "probe messages"
    assert records["FedAvg", probe, "oblivious", "keynet"]["verdict"] is Verdict.NEGATIVE_CONTROL
    assert records["FedAvg", probe, "knowing the scheme", "keynet"]["verdict"] is Verdict.NOT_EVALUATED
    with_key = records["FedAvg", probe, "with the key", "keynet"]
    assert (with_key["verdict"], with_key["worst"]) == (Verdict.LEAKS, "cosine, round 0")
    assert with_key["psnr"].low > with_key["floor"]
    crashed = "cosine crashed (out of memory): FedAvg, probe messages, oblivious, keynet, round 1"
    assert crashed in lenet.notes
    (unknown,) = (note for note in lenet.notes if "no attack knows it" in note)
    assert unknown.count("round 0, 1, 2") == 4, "each algorithm, each kind of victim"
    assert any(note.startswith("with the key (collusion/adaptive): The server") for note in lenet.notes)
    assert [record["algorithm"] for record in mobilenet.records] == ["not run"]


def test_a_reader_with_an_attack_of_his_own_is_drawn_by_it(
    found: Reproduction, make_run: type[Any], tmp_path: Path
) -> None:
    builder = make_run(seeds=(0,), images=3)
    knowing = {**SHARED, "algorithm": FEDAVG, "knowledge": "adaptive"}
    builder.train("keynet", task="mnist5k-lenet5", algorithm=FEDAVG)
    builder.attack("keynet", outcome="not evaluated", controlled_by=None, **knowing)
    builder.attack("keynet", attack="key-solver", gain=9, controlled_by=None, **knowing)
    builder.attack("keynet", attack="weak-solver", gain=3, controlled_by=None, **knowing)
    builder.attack("keynet", attack="key-solver", gain=9, controlled_by=None, **{**knowing, "knowledge": "oblivious"})
    builder.attack("keynet", gain=1, controlled_by=None, **{**knowing, "knowledge": "oblivious"})
    write_gusain(tmp_path, found.result)
    builder.write(tmp_path / "lenet")
    small = read_reproduction(tmp_path)
    entry = found.result.entries[1]
    chosen = {reader.knowledge: small.by_round(entry, reader, "probe")[0].attack for reader in READERS[:2]}
    assert chosen == {"adaptive": "key-solver", "oblivious": "cosine"}
    rows = grid(small, "fedavg", "probe")
    assert "from encrypted weights, knowing the scheme (key-solver), before training" in rows
    assert rows["from plain weights (4.5), before training"].tiles == [Tile("", "not run")] * 3
    assert small.by_round(entry, READERS[0], "real-round") == {}
    assert small.by_round(entry, READERS[2], "probe") == {}


def test_every_round_is_listed_also_where_it_failed(found: Reproduction) -> None:
    tables = {(item.context["algorithm"], item.context["victim_kind"]): item for item in round_tables(found)}
    assert len(tables) == 4
    records = tables[FEDAVG, "probe"].records
    assert len(records) == 3 * 3 * 2
    (crashed,) = (record for record in records if record["verdict"] is Verdict.CRASHED)
    assert (crashed["snapshot"], crashed["defense"], crashed["details"]) == (1, "keynet", "out of memory")
    assert not [record for record in tables[FEDAVG, "real-round"].records if record["verdict"] is Verdict.CRASHED]


def test_inference_lists_what_was_refused_and_what_was_not_run(found: Reproduction) -> None:
    ran, refused, absent = inference_table(found).records
    assert (ran["agreement"], ran["wrong_key_agreement"], ran["state"]) == (1.0, 0.1, "run")
    assert refused["state"] == f"refused: {HOSTILE}"
    assert (absent["network"], absent["state"]) == ("MobileNetV2 on CIFAR-10", "not run")


def test_what_was_run_is_said_and_what_was_not(found: Reproduction) -> None:
    records = setting_table(found).records
    assert [record["what"] for record in records] == ["Network and data", "Training", "Attack", "Victims", ""]
    assert records[-1]["here"] == "not run"
    assert accuracy_table(found).notes == ["LeNet on MNIST: 5,000 digits in place of 70,000."]


def grid(found: Reproduction, algorithm: str, kind: VictimKind) -> dict[str, Row]:
    """The rows of one grid, by name."""
    pair = next(one for one in found.pairs if (one.network, one.algorithm) == ("lenet", algorithm))
    return {row.name.replace("\n", " "): row for row in _rows(found, found.runs["lenet"], pair, kind)}


def test_a_grid_shows_the_same_images_in_the_order_of_the_run_whatever_came_of_them(found: Reproduction) -> None:
    rows = grid(found, "fedavg", "probe")
    assert list(rows) == [
        "original (4.4)",
        "encrypted image (4.6), permutations",
        *(
            f"from {row}, {when}"
            for when in ("before training", "after round 2")
            for row in (
                "plain weights (4.5)",
                "encrypted weights (4.7), oblivious",
                "encrypted weights, knowing the scheme",
                "encrypted weights, with the key",
            )
        ),
    ]
    originals = [f"lenet/images/original-{index}.png" for index in range(3)]
    assert [tile.file for tile in rows["original (4.4)"].tiles] == originals
    assert [tile.file for tile in rows["encrypted image (4.6), permutations"].tiles] == ["inference/keyed.png", "", ""]
    shown = rows["from encrypted weights, with the key, before training"].tiles
    cells, images = found.runs["lenet"].tables.cells, found.runs["lenet"].tables.images
    wanted = {"algorithm": FEDAVG, "defense": "keynet", "victim_kind": "probe", "position": "collusion", "snapshot": 0}
    (cell,) = cells[(cells[list(wanted)] == pd.Series(wanted)).all(axis=1) & (cells["seed"] == 0)]["cell"]
    stored = images[images["cell"] == cell]
    assert [tile.file for tile in shown] == [f"lenet/{name}" for name in stored["reconstruction"]]
    assert [tile.word for tile in shown] == [f"{value:.1f} dB" for value in stored["psnr"]]
    assert sorted(stored["psnr"]) not in (list(stored["psnr"]), list(stored["psnr"])[::-1]), "sorting them would show"


def test_a_gallery_shows_the_stored_pictures_and_hatches_what_is_missing(tmp_path: Path) -> None:
    def brightness(value: int) -> float:
        Image.fromarray(np.full((8, 8), value, dtype=np.uint8)).save(tmp_path / "one.png")
        drawn = draw_gallery([Row("a name", [Tile("one.png", "20 dB"), Tile("", "crashed")])], tmp_path)
        return float(np.asarray(Image.open(io.BytesIO(drawn)).convert("L")).mean())

    assert brightness(255) > brightness(0) + 40
    Image.fromarray(np.full((8, 8), 255, dtype=np.uint8)).save(tmp_path / "white.png")
    whole, missing = (
        np.asarray(Image.open(io.BytesIO(draw_gallery([Row("", [tile])], tmp_path))).convert("L"))
        for tile in (Tile("white.png", ""), Tile("", ""))
    )
    assert (whole < 250).sum() == 0
    assert (missing < 250).sum() > 200
    with pytest.raises(DataError, match="lies outside"):
        draw_gallery([Row("", [Tile("../elsewhere.png", "")])], tmp_path)


def test_a_cell_without_a_score_is_shown_as_such(found: Reproduction, make_run: type[Any], tmp_path: Path) -> None:
    builder = run_of_lenet(make_run(seeds=(0, 1), images=3))
    lost = {cell.cell for cell in builder.cells if cell.knowledge == "oblivious" and cell.defense == "keynet"}
    builder.cells = [
        replace(cell, outcome="crashed", detail="boom", objective=None) if cell.cell in lost else cell
        for cell in builder.cells
    ]
    builder.image_rows = [row for row in builder.image_rows if row.cell not in lost]
    builder.write(tmp_path / "lenet")
    write_gusain(tmp_path, found.result)
    broken = read_reproduction(tmp_path)
    rows, whole = (grid(one, "fedavg", "probe") for one in (broken, found))
    assert rows.keys() == whole.keys(), "the rows stay, with the reason in place of pictures"
    assert rows["from encrypted weights (4.7), oblivious, after round 2"].tiles == [Tile("", "crashed")] * 3
    assert rows["from encrypted weights, knowing the scheme, after round 2"].tiles == [Tile("", "not evaluated")] * 3
    assert [item.name for item in _series(broken, next(broken.pairs), "probe")] == [
        "plain weights",
        "encrypted, oblivious: crashed",
        "encrypted, knowing the scheme: not evaluated",
        "encrypted, with the key",
    ]
    builder.cells = [replace(cell, outcome="crashed", detail="boom", objective=None) for cell in builder.cells]
    builder.image_rows = []
    builder.write(tmp_path / "lenet")
    assert [row.tiles for row in grid(read_reproduction(tmp_path), "fedavg", "probe").values()] == [
        [Tile("", "no image scored and kept")]
    ] * 2
    lenet = worst_round_tables(broken)[0]
    crashed = [record for record in lenet.records if record["verdict"] is Verdict.CRASHED]
    assert {(record["reader"], record["defense"]) for record in crashed} == {("oblivious", "keynet")}
    assert any("boom" in note for note in lenet.notes)


def test_report_holds_page_tables_and_figures(report: ReproductionReport) -> None:
    assert {file.name for file in report.files} == {
        *("index.html", "gusain.md", "table-4-1.csv", "deviations.csv", "attacks.csv", "attacks-by-round.csv"),
        *("inference.csv", "costs.csv", "setting.csv", "figure-4-1.png", "figure-4-2.png"),
        *("by-round-lenet-fedavg.png", "by-round-lenet-fedpaq.png"),
        *(
            f"figures-4-4-to-4-7-lenet-{algorithm}-{kind}.png"
            for algorithm in ("fedavg", "fedpaq")
            for kind in ("real-round", "probe")
        ),
    }
    for file in report.files:
        if file.suffix == ".png":
            with Image.open(file) as image:
                assert image.width > 400
                assert np.asarray(image.convert("L")).std() > 5, f"{file.name} is not empty"
    rounds = list(csv.DictReader(io.StringIO((report.directory / "tables" / "attacks-by-round.csv").read_text())))
    assert len(rounds) == 2 * 18 + 2 * 27
    assert {row["network"] for row in rounds} == {"lenet"}


def test_page_stands_alone_and_escapes_what_comes_from_outside(
    report: ReproductionReport, read_page: Callable[[Path], Any]
) -> None:
    page = read_page(report.page)
    assert page.stands_alone
    assert page.anchors == ["accuracy", "attacks", "pictures", "inference", "costs", "setting", "run"]
    assert page.tags.count("img") == 8
    assert HOSTILE not in page.text
    assert "{{ 7 * 7 }}" in page.text, "text is shown, not evaluated"
    assert '<span class="chip not-evaluated">not evaluated</span>' in page.text
    assert page.tags.count("details") >= 4, "every round is folded away"


def test_every_caption_has_scale_and_every_attack_its_budget(report: ReproductionReport) -> None:
    page = html.unescape(report.page.read_text(encoding="utf-8"))
    captions = re.findall(r"<h3>([^<]*)</h3>\s*<div class=.plate.>.*?<figcaption>(.*?)</figcaption>", page, re.DOTALL)
    assert len(captions) == 8
    assert all(f"{LABEL}." in caption for _, caption in captions)
    attacked = [caption for title, caption in captions if title.startswith(("What comes out", "Figures 4.4 to 4.7"))]
    assert len(attacked) == 6
    for caption in attacked:
        for words in ("400 gradient evaluations.", "one raw image.", "negative control", "LeNet-5 on mnist5k."):
            assert words in caption


def test_terminal_shows_every_table_but_those_folded_away(report: ReproductionReport) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(report.terminal)
    text = console.export_text()
    for word in ("98.0%", "not run", "not evaluated", "negative control", "The paper's 2% drop", "with the key"):
        assert word in text
    assert "Every round" not in text


def test_a_picture_that_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "inference" / "keyed.png").unlink()
    with pytest.raises(DataError, match=r"keyed\.png: missing"):
        list(encrypted_inference(read_reproduction(tmp_path / "copy")))


def test_a_network_without_its_run_is_one_clear_line(folder: Path, tmp_path: Path) -> None:
    write_gusain(tmp_path, read_reproduction(folder).result)
    with pytest.raises(DataError, match=r"not a finished run"):
        write_gusain_report(tmp_path)


def test_sentences_end_with_one_full_stop() -> None:
    assert sentences("one", "two.", "", "three. ") == "one. two. three."
