"""Options that several commands share, spelt and explained alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

DataDirectory: TypeAlias = Annotated[
    Path | None, typer.Option("--data-dir", envvar="KEYHOLE_DATA_DIR", help="Where mnist and cifar10 stand.")
]
Download: TypeAlias = Annotated[bool, typer.Option("--download", help="Download data sets that are missing.")]
LpipsTrunk: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--lpips-trunk",
        envvar="KEYHOLE_LPIPS_TRUNK",
        help="AlexNet's ImageNet trunk, for LPIPS; else torch's cache.",
    ),
]
Workers: TypeAlias = Annotated[
    int | None, typer.Option("--workers", min=1, help="Worker processes.  [default: one a core, or one a GPU]")
]
Device: TypeAlias = Annotated[
    str,
    typer.Option("--device", help="Where training and attacks compute: cpu, cuda, cuda:N, or auto.", metavar="DEVICE"),
]
Resume: TypeAlias = Annotated[
    bool, typer.Option("--resume/--fresh", help="Go on from what an earlier run finished, or begin anew.")
]
