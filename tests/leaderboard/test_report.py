"""Figures and the page: they are there, they say what they show, and they hold nothing from outside that acts."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from benchmark.store import read_run
from federation.errors import DataError
from leaderboard.figures import draw_figures
from leaderboard.figures.reconstructions import _picks
from leaderboard.figures.style import Styles
from leaderboard.lines import gather_lines
from leaderboard.ranking import rank_run
from leaderboard.report import write_report
from leaderboard.trainings import summarise_trainings

HOSTILE = "<img src=x onerror=alert(1)>&\"'{{ 7 * 7 }}$x_1$"


def small(make_run: Any) -> Any:
    """Two defenses, one attack: enough for every kind of figure."""
    builder = make_run(images=3, seeds=(0, 1))
    for defense in ("plain", "shield"):
        builder.train(defense, accuracy=0.9)
        builder.attack(defense, gain=9, identified=1.0)
    return builder


def test_the_usual_run_is_reported_whole(usual_folder: Path, tmp_path: Path, read_page: Callable[[Path], Any]) -> None:
    folder = tmp_path / "run"
    shutil.copytree(usual_folder, folder)
    report = write_report(folder)
    assert all(path.is_file() and path.stat().st_size for path in report.files)
    names = [path.stem for path in report.files if path.suffix == ".png"]
    kinds = {
        kind: sum(name.startswith(kind) for name in names)
        for kind in ("tradeoff", "knowledge", "accuracy", "bytes", "reconst", "confusion")
    }
    assert kinds == {"tradeoff": 2, "knowledge": 2, "accuracy": 1, "bytes": 1, "reconst": 6, "confusion": 1}
    assert len(names) == sum(kinds.values())

    page = read_page(report.page)
    assert page.stands_alone
    assert len(page.anchors) == 10
    assert page.tags.count("img") == len(names)
    assert not re.search(r"url\(|@import", page.text)
    for expected in ("not evaluated", "at the floor", "negative control", "Positive control", "5,000 MNIST digits"):
        assert expected in page.text
    for picture in (path for path in report.files if path.suffix == ".png"):
        with Image.open(picture) as image:
            image.verify()


def test_names_from_outside_are_shown_and_never_act(
    make_run: Any, tmp_path: Path, read_page: Callable[[Path], Any]
) -> None:
    builder = small(make_run)
    builder.train(HOSTILE, provenance=HOSTILE, key_holders=HOSTILE)
    builder.attack(HOSTILE, gain=3, attack=HOSTILE, controlled_by=None)
    builder.attack(HOSTILE, outcome="crashed", detail=HOSTILE)
    folder = builder.write(tmp_path, pictures=True, name=HOSTILE, config={HOSTILE: HOSTILE})
    page = read_page(write_report(folder).page)
    assert page.stands_alone
    assert "<img src=x" not in page.text
    assert "&lt;img src=x onerror=alert(1)&gt;" in page.text
    assert "{{ 7 * 7 }}" in page.text


def test_figures_never_mix_kinds_of_victim(make_run: Any, tmp_path: Path) -> None:
    builder = small(make_run)
    for defense in ("plain", "shield"):
        builder.attack(defense, gain=5, victim_kind="real-round")
    tables = read_run(builder.write(tmp_path, pictures=True))
    pictures = draw_figures(tables.directory, rank_run(tables), summarise_trainings(tables))
    assert [item.kind for item in pictures].count("tradeoff") == 2
    for item in pictures:
        if item.kind in ("tradeoff", "knowledge", "conditions", "reconstructions"):
            assert ("probe messages" in item.title) != ("messages of real rounds" in item.title)
        assert "5,000 MNIST digits" in item.caption


def test_best_median_and_worst_are_by_psnr(make_run: Any, tmp_path: Path) -> None:
    tables = read_run(small(make_run).write(tmp_path))
    line = gather_lines(tables)[0]
    best, median, worst = (float(image["psnr"]) for image in _picks(line))
    psnr = line.scored.images["psnr"]
    assert (best, worst) == (psnr.max(), psnr.min())
    assert sorted(psnr)[len(psnr) // 2 - 1] <= median <= sorted(psnr)[len(psnr) // 2]


def drawn(folder: Path) -> dict[str, bytes]:
    tables = read_run(folder)
    return {item.kind: item.png for item in draw_figures(folder, rank_run(tables), summarise_trainings(tables))}


def test_figures_are_the_same_each_time_and_leave_no_settings(make_run: Any, tmp_path: Path) -> None:
    folder = small(make_run).write(tmp_path, pictures=True)
    before = dict(matplotlib.rcParams)
    assert drawn(folder) == drawn(folder)
    assert dict(matplotlib.rcParams) == before


def test_a_figure_shows_the_stored_pictures(make_run: Any, tmp_path: Path) -> None:
    builder = small(make_run)
    folder = builder.write(tmp_path, pictures=True)
    black = drawn(folder)["reconstructions"]
    for path in (folder / "images").glob("0*.png"):
        Image.fromarray(np.full((28, 28), 255, dtype=np.uint8)).save(path)
    white = drawn(folder)["reconstructions"]
    bright = [np.asarray(Image.open(io.BytesIO(png)).convert("L")).mean() for png in (black, white)]
    assert bright[1] > bright[0] + 20


def test_a_missing_picture_is_one_clear_error(make_run: Any, tmp_path: Path) -> None:
    folder = small(make_run).write(tmp_path, pictures=True)
    for path in (folder / "images").glob("original-*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"original-\d\.png: missing, the results name it"):
        write_report(folder)


def test_a_picture_that_is_none_is_one_clear_error(make_run: Any, tmp_path: Path) -> None:
    folder = small(make_run).write(tmp_path, pictures=True)
    for path in (folder / "images").glob("*.png"):
        path.write_bytes(b"not a picture")
    with pytest.raises(DataError, match="not a readable image"):
        write_report(folder)


def test_pictures_outside_the_run_are_refused(make_run: Any, tmp_path: Path) -> None:
    builder = small(make_run)
    builder.image_rows = [replace(row, original="../elsewhere.png") for row in builder.image_rows]
    with pytest.raises(DataError, match="lies outside the results' folder"):
        write_report(builder.write(tmp_path, pictures=True))


def test_a_run_without_pictures_is_reported_without_them(
    make_run: Any, tmp_path: Path, read_page: Callable[[Path], Any]
) -> None:
    builder = small(make_run)
    builder.image_rows = [replace(row, original="", reconstruction="") for row in builder.image_rows]
    report = write_report(builder.write(tmp_path))
    assert not [path for path in report.files if "reconstructions" in path.name]
    assert "reconstructions" not in read_page(report.page).anchors


def test_trainings_alone_are_reported(make_run: Any, tmp_path: Path) -> None:
    builder = make_run()
    builder.train("plain")
    builder.attack("plain", outcome="crashed", detail="boom", controlled_by=None)
    report = write_report(builder.write(tmp_path))
    assert "boom" in report.page.read_text(encoding="utf-8")
    assert [path.stem for path in report.files if path.suffix == ".png"] == [
        "accuracy-mnist5k-lenet-fedavg",
        "confusion-mnist5k-lenet-fedavg",
    ]


def test_a_defense_keeps_its_colour_and_none_are_alike() -> None:
    few, many = (Styles.of([f"d{index}" for index in range(count)] + ["plain"]) for count in (3, 14))
    assert len(set(many.colours.values())) == 15
    assert len(set(few.colours.values())) == 4
    assert few.colours["plain"] == many.colours["plain"]
