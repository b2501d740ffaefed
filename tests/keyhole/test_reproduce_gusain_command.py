"""`keyhole reproduce gusain` from the outside, on small digits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import benchmark.scoring
from benchmark.metrics.perceptual import Unavailable
from benchmark.reproduce.gusain import scales
from benchmark.store.gusain import read_gusain
from keyhole.commands.reproduce import gusain

pytestmark = pytest.mark.usefixtures("surroundings", "affordable")

QUICK = ("reproduce", "gusain", "--quick", "--network", "lenet")


@pytest.fixture(scope="module")
def affordable(tiny_experiment: Any, serial_engine: Any, offline: Any) -> Iterator[None]:
    """Logistic regression on small digits in place of every experiment, in this process."""

    class Engine:
        """Stands in for the pool of worker processes."""

        def __init__(self, *_: object) -> None: ...

        def __enter__(self) -> Any:
            return serial_engine()

        def __exit__(self, *_: object) -> None: ...

    parts = []
    for algorithm, defenses in (("fedavg", ["plain", "keynet"]), ("fedpaq", ["qsgd", "keynet-quantized"])):
        experiment = tiny_experiment(
            {
                "federations.0.defenses": defenses,
                "federations.0.algorithm.name": algorithm,
                "victims.real_round.images": 2,
            }
        )
        parts += experiment.federations
    both = experiment.model_copy(update={"federations": tuple(parts)})
    with pytest.MonkeyPatch.context() as patch:
        offline(patch)
        patch.setattr(gusain, "LocalEngine", Engine)
        patch.setattr(scales, "experiment_of", lambda scale, network: both)
        patch.setattr(benchmark.scoring, "load_st_lpips", lambda: Unavailable("left out"))
        benchmark.scoring.perceptual_metrics.cache_clear()
        yield
    benchmark.scoring.perceptual_metrics.cache_clear()


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, affordable: None, invoke: Callable[..., Any]
) -> tuple[Path, str]:
    directory = tmp_path_factory.mktemp("gusain") / "out"
    printed = invoke(*QUICK, "--out", directory)
    assert printed.exit_code == 0, printed.output
    return directory, printed.stdout


def test_prints_the_tables_and_where_the_page_is(finished: tuple[Path, str]) -> None:
    directory, printed = finished
    for word in ("Quick scale", "Table 4.1", "98.0%", "with the key", "encrypted inference: 3/3"):
        assert word in printed
    assert "give --data-dir" not in printed, "quick was asked for"
    assert (directory / "report" / "index.html").is_file()
    assert (directory.parent / "out.root").is_file(), "the secret lies beside the result, not in it"
    assert not list(directory.rglob("*.root"))
    assert [one.network for one in read_gusain(directory).networks] == ["lenet"]


def test_json_is_the_result_and_nothing_else(finished: tuple[Path, str], invoke: Callable[..., Any]) -> None:
    printed = invoke(*QUICK, "--out", finished[0], "--json")
    assert printed.exit_code == 0, printed.output
    assert json.loads(printed.stdout) == json.loads((finished[0] / "result.json").read_text())


def test_fresh_removes_an_earlier_result_and_nothing_else(
    tmp_path: Path, invoke: Callable[..., Any], one_line: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    assert "not the folder of a reproduction" in one_line(invoke(*QUICK, "--out", theirs, "--fresh"))
    assert (theirs / "thesis.txt").is_file()

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gusain, "reproduce", stop)
    ours = tmp_path / "ours"
    (ours / "lenet" / "artefacts").mkdir(parents=True)
    assert invoke(*QUICK, "--out", ours).exit_code == 130
    assert (ours / "lenet").is_dir()
    assert invoke(*QUICK, "--out", ours, "--fresh").exit_code == 130
    assert not (ours / "lenet").exists()


@pytest.mark.parametrize(
    ("options", "directory", "scale"),
    [
        ([], None, "quick"),
        ([], "data", "reduced"),
        (["--quick"], "data", "quick"),
        (["--full"], "data", "full"),
        (["--full"], None, "full"),
    ],
)
def test_the_scale_is_what_was_asked_for_or_follows_the_data(
    tmp_path: Path,
    invoke: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    directory: str | None,
    scale: str,
) -> None:
    asked: list[Any] = []

    def stop(workspace: Any, given: Any, **_: object) -> None:
        asked.append((workspace.data_directory, given))
        raise KeyboardInterrupt

    monkeypatch.setattr(gusain, "reproduce", stop)
    data = None if directory is None else tmp_path / directory
    where = [] if data is None else ["--data-dir", data]
    printed = invoke("reproduce", "gusain", *options, *where, "--seed", 3, "--seed", 1, "--out", tmp_path / "out")
    ((found, given),) = asked
    assert (found, given.scale, given.seeds, given.networks) == (data, scale, (3, 1), ("lenet", "mobilenet"))
    assert ("give --data-dir" in printed.stdout) == (directory is None and not options)


def test_an_unknown_network_is_one_line(invoke: Callable[..., Any], one_line: Callable[..., str]) -> None:
    message = one_line(invoke("reproduce", "gusain", "--quick", "--network", "resnet"))
    assert "lenet, mobilenet" in message


def test_an_unknown_device_is_one_line(invoke: Callable[..., Any], one_line: Callable[..., str]) -> None:
    assert "device 'tpu'" in one_line(invoke(*QUICK, "--device", "tpu"))


def test_help_names_the_options(invoke: Callable[..., Any]) -> None:
    shown = invoke("reproduce", "gusain", "--help").stdout
    for option in (
        "--quick",
        "--full",
        "--network",
        "--data-dir",
        "--download",
        "--out",
        "--seed",
        "--device",
        "--fresh",
        "--json",
    ):
        assert option in shown
