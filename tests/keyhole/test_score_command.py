"""`keyhole score` from the outside: folders in, a table, JSON or CSV out, one clear line for what cannot be scored."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.metrics
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from benchmark.metrics.trunk import TRUNK_VARIABLE
from federation.errors import DataError
from keyhole.commands import score as command

NAMED_TRUNK = os.environ.get(TRUNK_VARIABLE)
"""As the environment has it, before `no_trunk` hides it."""

application = typer.Typer()
application.command()(command.score)


@pytest.fixture(autouse=True)
def no_trunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRUNK_VARIABLE, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("COLUMNS", "150")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three originals, two grey and one in colour and larger, and noisy reconstructions."""
    generator = np.random.default_rng(0)
    originals, reconstructions = tmp_path / "originals", tmp_path / "reconstructions"
    for folder in (originals, reconstructions):
        folder.mkdir()
    for name, shape in {"a.png": (28, 28), "b.png": (28, 28), "c.png": (40, 32, 3)}.items():
        stored = generator.integers(0, 256, shape, dtype=np.uint8)
        noisy = np.clip(stored + generator.normal(0, 30, shape), 0, 255).astype(np.uint8)
        Image.fromarray(stored).save(originals / name)
        Image.fromarray(noisy).save(reconstructions / name)
    return originals, reconstructions


def run(*arguments: object) -> Result:
    return CliRunner().invoke(application, ["--no-download", *map(str, arguments)])


def test_json_holds_every_image_its_summary_and_the_reason_for_an_empty_column(folders: tuple[Path, Path]) -> None:
    result = run(*folders, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [image["name"] for image in found["images"]] == ["a.png", "b.png", "c.png"]
    for image in found["images"]:
        original, reconstruction = (np.asarray(Image.open(folder / image["name"])) for folder in folders)
        expected = skimage.metrics.peak_signal_noise_ratio(original, reconstruction)
        assert image["psnr"] == pytest.approx(expected)
        assert image["mse"] == pytest.approx(10 ** (-expected / 10))
        assert 0 < image["ssim"] < 1
        assert image["lpips"] is None
        assert image["st_lpips"] > 0
    psnr = [image["psnr"] for image in found["images"]]
    assert found["mean"]["psnr"] == pytest.approx(np.mean(psnr))
    assert found["median"]["psnr"] == pytest.approx(np.median(psnr))
    assert found["mean"]["lpips"] is found["median"]["lpips"] is None
    assert "no AlexNet trunk was named" in found["weights"]["lpips"]["unavailable"]
    assert len(found["weights"]["st_lpips"]["sha256"]) == 64


def test_the_table_shows_images_summary_and_reason(folders: tuple[Path, Path]) -> None:
    result = run(*folders)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    row = next(line for line in lines if "b.png" in line)
    assert row.split("│")[5].strip() == "-"
    assert any("mean of 3" in line for line in lines)
    assert any("median of 3" in line for line in lines)
    assert any(line.startswith("LPIPS is empty: no AlexNet trunk was named") for line in lines)


def test_csv_has_a_row_for_each_image(folders: tuple[Path, Path], tmp_path: Path) -> None:
    result = run(*folders, "--json", "--csv", tmp_path / "new" / "scores.csv")
    assert result.exit_code == 0, result.output
    with (tmp_path / "new" / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, image in zip(rows, json.loads(result.stdout)["images"], strict=True):
        assert row["name"] == image["name"]
        assert row["lpips"] == ""
        assert float(row["st_lpips"]) == image["st_lpips"]
        assert float(row["ssim"]) == image["ssim"]


def test_batches_give_the_same_figures_as_all_at_once(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.loads(run(*folders, "--json").stdout)["images"]
    monkeypatch.setattr(command, "BATCH", 1)
    single = json.loads(run(*folders, "--json").stdout)["images"]
    for one, other in zip(whole, single, strict=True):
        assert other["name"] == one["name"]
        for metric in ("mse", "psnr", "ssim", "st_lpips"):
            assert other[metric] == pytest.approx(one[metric], rel=1e-5)


def test_a_long_table_is_cut_and_says_so(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "ROWS_SHOWN", 2)
    output = run(*folders).stdout
    assert "b.png" in output
    assert "c.png" not in output
    assert "1 more not shown; --csv FILE or --json gives all of them." in output
    assert "mean of 3" in output


def test_a_name_with_brackets_is_printed_as_it_is(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        (folder / "a.png").rename(folder / "[bold]a[0].png")
    assert "[bold]a[0].png" in run(*folders).stdout


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "b.png").unlink(), r"reconstructions lacks a counterpart of b\.png; each original"),
        (lambda folder: Image.new("L", (27, 28)).save(folder / "b.png"), r"b\.png: the original has 28x28 .* 27x28"),
        (lambda folder: (folder / "b.png").write_bytes(b"\x89PNG"), r"b\.png cannot be read as an image"),
        (shutil.rmtree, r"reconstructions is not a folder"),
    ],
)
def test_what_cannot_be_scored_is_named_and_nothing_is_written(
    spoil: Callable[[Path], object], message: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    spoil(folders[1])
    result = run(*folders, "--csv", tmp_path / "scores.csv")
    assert isinstance(result.exception, DataError)
    assert result.exc_info is not None
    with pytest.raises(DataError, match=message):
        raise result.exception
    assert "\n" not in str(result.exception)
    assert not (tmp_path / "scores.csv").exists()


def test_a_named_trunk_must_exist(folders: tuple[Path, Path], tmp_path: Path) -> None:
    result = run(*folders, "--lpips-trunk", tmp_path / "absent.pth")
    assert isinstance(result.exception, DataError)
    assert "absent.pth does not exist" in str(result.exception)


def test_the_help_explains_every_metric_and_option() -> None:
    output = run("--help").stdout
    for word in (
        "MSE",
        "PSNR",
        "SSIM",
        "LPIPS",
        "ST-LPIPS",
        "--lpips-trunk",
        "--no-download",
        "--json",
        "--csv",
        "Example",
    ):
        assert word in output


@pytest.mark.real_data
@pytest.mark.skipif(
    "KEYHOLE_DATA_DIR" not in os.environ or not NAMED_TRUNK,
    reason=f"KEYHOLE_DATA_DIR and {TRUNK_VARIABLE} do not name the example images and the trunk",
)
def test_the_example_images_of_the_lpips_repository(tmp_path: Path) -> None:
    examples = Path(os.environ["KEYHOLE_DATA_DIR"]) / "lpips-example"
    for folder, names in {"left": ("ex_ref", "ex_ref"), "right": ("ex_p0", "ex_p1")}.items():
        (tmp_path / folder).mkdir()
        for number, name in enumerate(names):
            shutil.copyfile(examples / f"{name}.png", tmp_path / folder / f"{number}.png")
    result = run(tmp_path / "left", tmp_path / "right", "--json", "--lpips-trunk", NAMED_TRUNK)
    assert [image["lpips"] for image in json.loads(result.stdout)["images"]] == pytest.approx(
        [0.7219, 0.1376], abs=5e-5
    )
