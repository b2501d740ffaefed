"""Options that several commands share, spelt and explained alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
import yaml

from federation.errors import UsageError

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


def given_options(pairs: Sequence[str]) -> dict[str, object]:
    """Options as they are written in an experiment: numbers, words, or {key: value}."""
    options: dict[str, object] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator or not name:
            raise UsageError(f"an option is written KEY=VALUE, not {pair!r}")
        try:
            options[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"option {name!r}: {text!r} cannot be read as a value") from error
    return options
