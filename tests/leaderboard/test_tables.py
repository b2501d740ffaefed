"""Tables: what they say, that nothing is dropped, and that text from outside cannot break out of them."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from benchmark.store import RunTables, read_run
from leaderboard.lines import gather_lines
from leaderboard.ranking import rank_run
from leaderboard.statistics import Interval
from leaderboard.tables import (
    Table,
    TerminalTables,
    attack_tables,
    csv_text,
    glance_tables,
    latex_text,
    leaderboard_tables,
    markdown_text,
    training_tables,
)
from leaderboard.tables.model import MISSING, decibel, duration, percent, points, scientific, size, text
from leaderboard.trainings import summarise_trainings

HOSTILE = "[bold]a|b`c`<script>\\x_{}$&\n\x1b[31m*"


def printed(*tables: Table, width: int = 140) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(TerminalTables(tables))
    return console.export_text()


def leaderboards(tables: RunTables) -> list[Table]:
    return leaderboard_tables(rank_run(tables), summarise_trainings(tables))


def by_defense(table: Table) -> dict[str, dict[str, Any]]:
    return {record["defense"]: record for record in table.records}


def interval(low: float, mean: float, high: float) -> Interval:
    return Interval(low, high, mean, "images only", 1.0, 8, 2)


def test_values_read_as_people_write_them() -> None:
    assert decibel(interval(17.12, 18.31, 19.4)) == "18.3 [17.1, 19.4]"
    assert decibel(interval(-np.inf, 18.31, np.inf)) == "18.3 [?]"
    assert percent(0.954) == "95%"
    assert points(interval(-0.012, 0.004, 0.02)) == "+0.4 [-1.2, +2.0]"
    assert [size(999), size(53_000), size(420_000_000)] == ["999 B", "53.0 kB", "420.0 MB"]
    assert [duration(0.0123), duration(61.04)] == ["12.3 ms", "61.0 s"]
    assert [scientific(0.0), scientific(3e-8)] == ["0", "3.0e-08"]
    assert [show(None) for show in (text, decibel, size, duration, scientific)] == ["\N{EN DASH}"] * 5
    assert text("a\nb\x1b[0m") == "a b [0m"


def test_the_leaderboard_shows_each_number_beside_floor_and_control(usual_folder: Path) -> None:
    tables = read_run(usual_folder)
    server = next(table for table in leaderboards(tables) if table.context["position"] == "server")
    plain = by_defense(server)["plain"]
    assert plain["psnr"].mean == pytest.approx(plain["floor"] + plain["gain"].mean)
    assert plain["control"] == pytest.approx(plain["psnr"].mean)
    assert plain["accuracy"] == pytest.approx(tables.trainings.query("defense == 'plain'")["accuracy"].mean())
    assert by_defense(server)["paillier"]["bytes_up"] == 420_000
    assert by_defense(server)["keynet"]["verdict"] == "not evaluated"
    assert "keynet: no adaptive attack on Key-Net yet" in server.notes
    assert "images and seeds (8 images, 3 seeds)" in server.caption


def test_success_is_an_error_below_a_hundredth(make_run: Any, tmp_path: Path) -> None:
    builder = make_run()
    builder.train("plain")
    builder.attack("plain", gain=9)
    tables = read_run(builder.write(tmp_path))
    (table,) = leaderboards(tables)
    assert table.records[0]["success"] == pytest.approx((tables.images["psnr"] > 20).mean())
    assert 0 < table.records[0]["success"] < 1


def test_an_oblivious_table_says_that_no_verdict_follows(usual_folder: Path) -> None:
    tables = leaderboards(read_run(usual_folder))
    oblivious = [table for table in tables if table.context["knowledge"] == "oblivious"]
    assert len(oblivious) == 2
    assert all("no verdict follows" in table.caption for table in oblivious)
    assert {record["rank"] for table in oblivious for record in table.records} == {None}


def test_empty_lpips_says_why(make_run: Any, tmp_path: Path) -> None:
    builder = make_run()
    builder.train("plain")
    builder.attack("plain", gain=9, lpips=False)
    (table,) = leaderboards(read_run(builder.write(tmp_path)))
    assert "LPIPS is empty: no AlexNet trunk: set KEYHOLE_LPIPS_TRUNK." in table.caption
    assert np.isnan(table.records[0]["lpips"])
    assert table.records[0]["st_lpips"] > 0


def test_every_cell_has_its_line(make_run: Any, tmp_path: Path) -> None:
    builder = make_run()
    builder.train("plain")
    builder.attack("plain", gain=9, only_seeds=(0, 1))
    builder.attack("plain", outcome="crashed", detail="ValueError: boom", only_seeds=(2,))
    builder.attack("plain", outcome="not applicable", detail="needs labels", attack="dlg", controlled_by=None)
    builder.attack("plain", gain=20, role="positive control", controlled_by=None)
    (table,) = attack_tables(gather_lines(read_run(builder.write(tmp_path))))
    found = {(record["attack"], record["role"]): record for record in table.records}
    assert found["cosine", "attack"]["outcomes"] == "2 measured, 1 crashed"
    assert found["cosine", "attack"]["details"] == "ValueError: boom"
    assert found["dlg", "attack"]["verdict"] == "not applicable"
    assert found["cosine", "positive control"]["outcomes"] == "3 measured"
    assert found["cosine", "attack"]["findings"] == "label accuracy 1"


def test_costs_are_empty_where_there_is_no_federation(usual_folder: Path) -> None:
    (table,) = training_tables(summarise_trainings(read_run(usual_folder)))
    found = {record["training"]: record for record in table.records}
    assert list(found) == [
        "plain",
        "keynet",
        "keynet+qsgd",
        "paillier",
        "centralised (reference)",
        "local-only (reference)",
    ]
    assert "bytes_up" not in found["centralised (reference)"]
    assert found["paillier"]["protection_share"] == pytest.approx(4.015 / 7.015)
    assert found["plain"]["accuracy_difference"] is None
    assert found["keynet+qsgd"]["accuracy_difference"].high < 0
    assert found["centralised (reference)"]["accuracy_difference"].low > 0


def test_key_handling_is_part_of_the_share_and_unknown_in_older_runs(make_run: Any, tmp_path: Path) -> None:
    builder = make_run()
    builder.train("plain")
    builder.train("paillier", seconds_keys=2.0, seconds_protect=1.0, seconds_aggregate=0.5, seconds_recover=0.5)
    builder.train("keynet", seconds_keys=None)
    (table,) = training_tables(summarise_trainings(read_run(builder.write(tmp_path))))
    found = {record["training"]: record for record in table.records}
    assert found["paillier"]["seconds_keys"] == 2
    assert found["paillier"]["protection_share"] == pytest.approx(4 / 7)
    assert found["plain"]["protection_share"] == pytest.approx(0.025 / 3.025)
    assert np.isnan(found["keynet"]["protection_share"])
    shown = {column.name: column.show(found["keynet"].get(column.name)) for column in table.columns}
    assert shown["seconds_keys"] == shown["protection_share"] == MISSING


def test_an_error_beyond_the_stated_one_is_noted(make_run: Any, tmp_path: Path) -> None:
    builder = make_run()
    builder.train("plain")
    builder.train("shield", aggregation_error=1e-3, stated_error=1e-6)
    (table,) = training_tables(summarise_trainings(read_run(builder.write(tmp_path))))
    assert table.notes == ["shield: the aggregation error exceeds what the defense states"]


def test_all_verdicts_at_a_glance(usual_folder: Path) -> None:
    glance = glance_tables(rank_run(read_run(usual_folder)))
    assert [table.context["victim_kind"] for table in glance] == ["probe", "real-round"]
    assert by_defense(glance[0])["paillier"] == {
        "defense": "paillier",
        "server/adaptive": "at the floor",
        "collusion/adaptive": "leaks",
        "server/oblivious": "negative control",
    }


def test_data_tables_carry_raw_numbers(usual_folder: Path) -> None:
    tables = leaderboards(read_run(usual_folder))
    rows = list(csv.DictReader(io.StringIO(csv_text(tables))))
    assert len(rows) == 6 * 4
    plain = next(row for row in rows if row["defense"] == "plain" and row["knowledge"] == "adaptive")
    record = by_defense(tables[0])["plain"]
    assert float(plain["psnr_low"]) == record["psnr"].low
    assert plain["psnr_resampled"] == "images and seeds"
    assert {row["victim_kind"] for row in rows} == {"probe", "real-round"}


@pytest.fixture
def hostile(make_run: Any, tmp_path: Path) -> Table:
    builder = make_run()
    builder.train("plain")
    builder.train(HOSTILE)
    builder.attack("plain", gain=9)
    builder.attack(HOSTILE, outcome="crashed", detail=HOSTILE)
    (table,) = leaderboards(read_run(builder.write(tmp_path)))
    return table


def test_markdown_escapes(hostile: Table) -> None:
    lines = [line for line in markdown_text([hostile]).splitlines() if line.startswith("|")]
    counts = {line.replace("\\|", "").count("|") for line in lines}
    assert counts == {len(hostile.columns) - 3 + 1}
    assert "<script>" not in markdown_text([hostile]).replace("\\<script\\>", "")
    assert "\x1b" not in markdown_text([hostile])


def test_latex_escapes(hostile: Table) -> None:
    (line,) = [line for line in latex_text(hostile).splitlines() if "script" in line]
    assert r"\textbackslash{}x\_\{\}\$\&" in line
    assert line.replace(r"\&", "").count("&") == len(latex_text(hostile).splitlines()[5].split("&")) - 1


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_shows_markup_as_text(hostile: Table, width: int) -> None:
    shown = printed(hostile, width=width)
    assert "\x1b" not in shown
    assert "[bold]a" in shown
    assert "crashed" in shown


@pytest.mark.parametrize("width", [80, 100, 140])
def test_numbers_stay_whole_on_any_terminal(usual_folder: Path, width: int) -> None:
    tables = leaderboards(read_run(usual_folder))
    shown = printed(*tables, width=width)
    assert max(map(len, shown.splitlines())) <= width
    words = shown.split()
    for record in tables[0].records:
        if record["rank"] is not None:
            assert percent(record["accuracy"]).rstrip("%")[:2] in {word[:2] for word in words}
            assert decibel(record["floor"]) in words
            assert decibel(record["psnr"]).split(" ")[0] in words
            assert decibel(record["psnr"]).split(" ", 1)[1].replace(" ", "") in words
