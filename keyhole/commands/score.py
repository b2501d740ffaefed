"""`keyhole score`: how alike are two folders of images."""

from __future__ import annotations

import csv
import io
import itertools
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from benchmark.metrics.image_files import ImagePair, pair_folders, read_pair
from benchmark.metrics.perceptual import Perceptual, PerceptualMetric, load_lpips, load_st_lpips
from benchmark.metrics.score import score_aligned
from federation.files import write_text

METRICS = {"mse": "MSE", "psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS", "st_lpips": "ST-LPIPS"}
"""The columns and their headings."""

BATCH = 64
ROWS_SHOWN = 40

Row = dict[str, str | float | None]
Summary = dict[str, dict[str, float | None]]


def score(
    originals: Annotated[Path, typer.Argument(help="Folder with the original images (PNG, JPEG, BMP, TIFF, WebP).")],
    reconstructions: Annotated[
        Path,
        typer.Argument(help="Folder with the reconstructions: one for each original, of the same file name and size."),
    ],
    lpips_trunk: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="AlexNet's ImageNet weights, which LPIPS needs: a PyTorch state dict or safetensors file. Without it "
            "the environment variable KEYHOLE_LPIPS_TRUNK is used, then PyTorch's own cache, then a download (233 MB, "
            "once). Where none can be had, the LPIPS column stays empty.",
        ),
    ] = None,
    download: Annotated[bool, typer.Option(help="Whether those weights may be downloaded.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table, for other programs.")] = False,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Also write every image's figures to this CSV file.")
    ] = None,
) -> None:
    """Measure how closely reconstructed images resemble their originals.

    Images are paired by file name and compared as stored, with 8 bits a channel:

    MSE: squared error, 0 is identical, 1 is black against white.

    PSNR: the same in decibels, higher is more alike, at most 60.

    SSIM: likeness of structure, 1 is identical.

    LPIPS and ST-LPIPS: distance as a person might judge it, 0 is identical.

    Example: keyhole score photos/ attack-output/ --csv scores.csv
    """
    pairs = pair_folders(originals, reconstructions)
    shapes = [read_pair(pair)[0].shape for pair in pairs]  # every file is checked before the slow part starts
    metrics: dict[str, PerceptualMetric] = {
        "lpips": load_lpips(lpips_trunk, download=download),
        "st_lpips": load_st_lpips(),
    }
    rows: list[Row] = []
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("Comparing images", total=len(pairs))
        for batch in _batches(pairs, shapes):
            rows.extend(_score_pairs(batch, metrics))
            progress.advance(task, len(batch))
    summary = _summary(rows)
    if csv_file is not None:
        write_text(csv_file, _as_csv(rows))
    if as_json:
        print(json.dumps({"images": rows, **summary, "weights": _provenance(metrics)}, indent=2))
    else:
        _print_table(rows, summary, metrics)


def _batches(pairs: list[ImagePair], shapes: list[torch.Size]) -> Iterator[list[ImagePair]]:
    """Consecutive pairs of one shape, at most `BATCH` at a time, so that few images are in memory at once."""
    for _, run in itertools.groupby(zip(pairs, shapes, strict=True), key=lambda item: item[1]):
        same_shape = [pair for pair, _ in run]
        for start in range(0, len(same_shape), BATCH):
            yield same_shape[start : start + BATCH]


def _score_pairs(pairs: list[ImagePair], metrics: dict[str, PerceptualMetric]) -> list[Row]:
    truths, guesses = zip(*map(read_pair, pairs), strict=True)
    scores = score_aligned(
        torch.stack(truths),
        torch.stack(guesses),
        list(range(len(pairs))),
        lpips=metrics["lpips"],
        st_lpips=metrics["st_lpips"],
    )
    return [
        {"name": pair.name, **{metric: asdict(image)[metric] for metric in METRICS}}
        for pair, image in zip(pairs, scores, strict=True)
    ]


def _summary(rows: list[Row]) -> Summary:
    columns = {metric: [value for row in rows if isinstance(value := row[metric], float)] for metric in METRICS}
    return {
        "mean": {metric: statistics.fmean(values) if values else None for metric, values in columns.items()},
        "median": {metric: statistics.median(values) if values else None for metric, values in columns.items()},
    }


def _as_csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["name", *METRICS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _provenance(metrics: dict[str, PerceptualMetric]) -> dict[str, dict[str, str]]:
    return {
        name: {"source": metric.source, "sha256": metric.sha256}
        if isinstance(metric, Perceptual)
        else {"unavailable": metric.reason}
        for name, metric in metrics.items()
    }


def _print_table(rows: list[Row], summary: Summary, metrics: dict[str, PerceptualMetric]) -> None:
    table = Table("Image")
    for heading in METRICS.values():
        table.add_column(heading, justify="right")
    for row in rows[:ROWS_SHOWN]:
        table.add_row(Text(str(row["name"])), *(_number(row[metric]) for metric in METRICS))
    table.add_section()
    for name, values in summary.items():
        table.add_row(Text(f"{name} of {len(rows)}", "bold"), *(_number(values[metric]) for metric in METRICS))
    console = Console()
    console.print(table)
    if len(rows) > ROWS_SHOWN:
        console.print(f"{len(rows) - ROWS_SHOWN} more not shown; --csv FILE or --json gives all of them.")
    for name, facts in _provenance(metrics).items():
        if "unavailable" in facts:
            console.print(f"{METRICS[name]} is empty: {facts['unavailable']}", markup=False, soft_wrap=True)


def _number(value: str | float | None) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "-"
