"""The report of the Gusain reproduction: its files, its page, the terminal."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gusain_result import (
    HOSTILE,
    LABEL,
)
from PIL import Image
from rich.console import Console

from benchmark.store.gusain import (
    write_gusain,
)
from federation.errors import DataError
from leaderboard.reproduction.gusain import write_gusain_report
from leaderboard.reproduction.gusain_runs import read_reproduction, sentences
from leaderboard.reproduction.report import ReproductionReport


@pytest.fixture(scope="module")
def report(folder: Path) -> ReproductionReport:
    return write_gusain_report(folder)


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


def test_a_network_without_its_run_is_one_clear_line(folder: Path, tmp_path: Path) -> None:
    write_gusain(tmp_path, read_reproduction(folder).result)
    with pytest.raises(DataError, match=r"not a finished run"):
        write_gusain_report(tmp_path)


def test_sentences_end_with_one_full_stop() -> None:
    assert sentences("one", "two.", "", "three. ") == "one. two. three."
