"""The grids of pictures of the Gusain reproduction: which images, in which order, and what stands for a missing one."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from gusain_result import (
    FEDAVG,
    READERS,
    SHARED,
    run_of_lenet,
)
from PIL import Image

from benchmark.store import VictimKind
from benchmark.store.gusain import (
    write_gusain,
)
from federation.errors import DataError
from leaderboard.lines import Verdict
from leaderboard.reproduction.gallery import Row, Tile, draw_gallery
from leaderboard.reproduction.gusain_attacks import worst_round_tables
from leaderboard.reproduction.gusain_pictures import _rows, encrypted_inference
from leaderboard.reproduction.gusain_rounds import _series
from leaderboard.reproduction.gusain_runs import Reproduction, read_reproduction


def grid(found: Reproduction, algorithm: str, kind: VictimKind) -> dict[str, Row]:
    """The rows of one grid, by name."""
    pair = next(one for one in found.pairs if (one.network, one.algorithm) == ("lenet", algorithm))
    return {row.name.replace("\n", " "): row for row in _rows(found, found.runs["lenet"], pair, kind)}


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


def test_a_picture_that_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "inference" / "keyed.png").unlink()
    with pytest.raises(DataError, match=r"keyed\.png: missing"):
        list(encrypted_inference(read_reproduction(tmp_path / "copy")))
