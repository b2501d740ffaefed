"""`keyhole reproduce` and its first paper, `pride`, from the outside, on small digits and a short key."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import benchmark.reproduce.pride.key_lengths
from benchmark.reproduce.pride import run
from benchmark.store.pride import read_pride
from defenses.paillier.keys import generate_keypair
from federation.tasks import find_task
from keyhole.commands.reproduce import pride
from leaderboard.reproduction import pride_figures

pytestmark = pytest.mark.usefixtures("surroundings")

FROM_DIRECTORY = pride._data
"""What the command loads by itself; most tests put something smaller in its place."""


@pytest.fixture(scope="module")
def affordable(small_digits: None) -> Iterator[None]:
    """Digits of 14 x 14 pixels in place of mnist5k, short keys, and no matrices of numbers, which take long to draw."""
    digits = find_task("small-digits").load_data(None, False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "generate_keypair", lambda bits, root: generate_keypair(512, root, allow_small=True))
        patch.setattr(benchmark.reproduce.pride.key_lengths, "BITS", (256,))
        patch.setattr(pride, "_data", lambda directory: digits)
        patch.setattr(pride_figures, "confusion_matrices", lambda result: [])
        yield


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, affordable: None, invoke: Callable[..., Any]
) -> tuple[Path, str]:
    directory = tmp_path_factory.mktemp("pride") / "out"
    printed = invoke("reproduce", "pride", "--out", directory)
    assert printed.exit_code == 0, printed.output
    return directory, printed.stdout


def test_prints_the_tables_and_where_the_page_is(finished: tuple[Path, str]) -> None:
    directory, printed = finished
    for word in ("As coded, 1e-7", "anyone on the wire", "In parallel", "In the paper"):
        assert word in printed
    assert "training: 7/7" in printed, "plain lines of progress where there is no terminal"
    assert "report/index.html" in printed
    assert (directory / "report" / "index.html").is_file()
    assert len(read_pride(directory).models) == 45


def test_json_is_the_result_and_nothing_else(finished: tuple[Path, str], invoke: Callable[..., Any]) -> None:
    printed = invoke("reproduce", "pride", "--out", finished[0], "--json")
    assert printed.exit_code == 0, printed.output
    content = json.loads(printed.stdout)
    assert content == json.loads((finished[0] / "result.json").read_text())


def test_resumes_what_is_finished(
    finished: tuple[Path, str], invoke: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "divide", lambda *_: pytest.fail("computed again"))
    before = (finished[0] / "result.json").read_bytes()
    printed = invoke("reproduce", "pride", "--out", finished[0])
    assert printed.exit_code == 0, printed.output
    assert (finished[0] / "result.json").read_bytes() == before


def test_fresh_removes_an_earlier_result_and_nothing_else(
    affordable: None,
    tmp_path: Path,
    invoke: Callable[..., Any],
    one_line: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    message = one_line(invoke("reproduce", "pride", "--out", theirs, "--fresh"))
    assert "not the folder of a reproduction" in message
    assert (theirs / "thesis.txt").is_file()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_play", stop)
    ours = tmp_path / "ours"
    assert invoke("reproduce", "pride", "--out", ours).exit_code == 130
    kept = list((ours / "models").iterdir())
    assert len(kept) == 7
    (ours / "result.json").write_text("{}")
    assert invoke("reproduce", "pride", "--out", ours, "--fresh").exit_code == 130
    assert not (ours / "result.json").exists()


def test_a_short_key_is_refused_in_one_line(
    affordable: None, invoke: Callable[..., Any], one_line: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "generate_keypair", generate_keypair)
    assert "1024 bits" in one_line(invoke("reproduce", "pride", "--key-bits", "1024", "--json"))


def test_a_directory_without_mnist_is_named(
    tmp_path: Path, invoke: Callable[..., Any], one_line: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pride, "_data", FROM_DIRECTORY)
    assert "mnist is not in" in one_line(invoke("reproduce", "pride", "--data-dir", tmp_path))


def test_data_follow_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(pride, "load_dataset", lambda name, **options: asked.append((name, options)))
    FROM_DIRECTORY(None)
    FROM_DIRECTORY(tmp_path)
    assert asked == [("mnist5k", {}), ("mnist", {"data_directory": tmp_path})]


def test_help_names_the_papers_and_their_options(invoke: Callable[..., Any]) -> None:
    papers = invoke("reproduce", "--help").stdout
    assert "pride" in papers
    assert "gusain" in papers
    shown = invoke("reproduce", "pride", "--help").stdout
    for option in ("--data-dir", "--out", "--seed", "--key-bits", "--fresh", "--json"):
        assert option in shown
