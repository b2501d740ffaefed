"""What was seen in weights, as figures of the PriDe reproduction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, UnidentifiedImageError

from benchmark.store.pride import PrideResult
from federation.errors import DataError
from leaderboard.figures.style import INK, Picture, look, png


def recovered_digits(result: PrideResult, directory: Path) -> Picture:
    """Originals over what the wire shows of updates on one image."""
    by_rows = [one for one in result.pictures if one.kind == "one-image update, rows alone"]
    by_ratio = [one for one in result.pictures if one.kind == "one-image update, eq. 2.2"]
    lines = [
        ("original", [(one.original, "") for one in by_rows]),
        ("read from the two rows\nthat the paper sends", [(one.shown, f"{one.psnr:.1f} dB") for one in by_rows]),
        ("with the intercepts:\neq. 2.2", [(one.shown, f"{one.psnr:.1f} dB") for one in by_ratio]),
    ]
    return Picture(
        kind="reconstructions",
        name="one-image-updates",
        title="What the wire shows of a gradient step on one image, without any key",
        caption=(
            "Weights read bit by bit from the quotient of upload and broadcast; their change is the image. PSNR capped at"
            f" 60 dB. The party trains from the cloud's model. {result.setting.source}"
        ),
        png=_gallery(lines, directory),
    )


def weight_pictures(result: PrideResult, directory: Path) -> Picture:
    """Rows of weights as pictures, with what they are: blends."""
    blends = [one for one in result.pictures if one.kind == "weight image"]
    parties = list(dict.fromkeys(one.party for one in blends))
    classes = [f"class {name}" for name in result.setting.classes]
    lines = [
        (
            f"{party}\n{size:,} images",
            [(one.shown, f"{one.psnr:.1f} / {one.reference_psnr:.1f}") for one in blends if one.party == party],
        )
        for party, size in zip(parties, result.setting.sizes, strict=True)
    ]
    return Picture(
        kind="reconstructions",
        name="weight-images",
        title="Trained weights as pictures are blends, not training images",
        caption=(
            "One row of coef_ a class, grey is 0. Below each, in dB: how close its best rescaling comes to any training"
            " image of that party / how close the party's mean image does. Who reads trained weights sees this; who reads"
            f" an update of one image sees the image. {result.setting.source}"
        ),
        png=_gallery(lines, directory, classes),
    )


def _gallery(
    lines: Sequence[tuple[str, Sequence[tuple[str, str]]]], directory: Path, heads: Sequence[str] = ()
) -> bytes:
    """Lines of pictures, each line with a name to its left and a word below each picture, under heads."""
    across = max(len(pictures) for _, pictures in lines)
    with look():
        figure = Figure(figsize=(1.0 * across + 1.6, 1.2 * len(lines)))
        grid = figure.subplots(len(lines), across, squeeze=False)
        figure.subplots_adjust(left=1.6 / (across + 1.6), right=1, top=1, bottom=0.02, wspace=0.08, hspace=0.28)
        for axes, head in zip(grid[0], heads, strict=False):
            axes.set_title(head, fontsize=8.5, loc="center", pad=4)
        for row, (name, pictures) in enumerate(lines):
            grid[row, 0].text(-0.12, 0.5, name, transform=grid[row, 0].transAxes, ha="right", va="center", fontsize=8.5)
            for axes in grid[row]:
                axes.set_axis_off()
            for axes, (file, word) in zip(grid[row], pictures, strict=False):
                axes.imshow(_read(directory, file), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                axes.text(0.5, -0.03, word, transform=axes.transAxes, ha="center", va="top", fontsize=7, color=INK)
        return png(figure)


def _read(directory: Path, name: str) -> np.ndarray:
    try:
        with Image.open(directory / name) as image:
            return np.asarray(image.convert("L"))
    except FileNotFoundError as error:
        raise DataError(f"{directory / name}: missing, the result names it; run the command again") from error
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{directory / name}: not a readable image: {error}") from error
