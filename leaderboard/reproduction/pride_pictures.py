"""What was seen in weights, as figures of the PriDe reproduction."""

from __future__ import annotations

from pathlib import Path

from benchmark.store.pride import PrideResult
from leaderboard.figures.style import Picture
from leaderboard.reproduction.gallery import Row, Tile, draw_gallery


def recovered_digits(result: PrideResult, directory: Path) -> Picture:
    """Originals over what the wire shows of updates on one image."""
    by_rows = [one for one in result.pictures if one.kind == "one-image update, rows alone"]
    by_ratio = [one for one in result.pictures if one.kind == "one-image update, eq. 2.2"]
    rows = [
        Row("original", [Tile(one.original, "") for one in by_rows]),
        Row("read from the two rows\nthat the paper sends", [Tile(one.shown, f"{one.psnr:.1f} dB") for one in by_rows]),
        Row("with the intercepts:\neq. 2.2", [Tile(one.shown, f"{one.psnr:.1f} dB") for one in by_ratio]),
    ]
    return Picture(
        kind="reconstructions",
        name="one-image-updates",
        title="What the wire shows of a gradient step on one image, without any key",
        caption=(
            "Weights read bit by bit from the quotient of upload and broadcast; their change is the image. PSNR capped at"
            f" 60 dB. The party trains from the cloud's model. {result.setting.source}"
        ),
        png=draw_gallery(rows, directory),
    )


def weight_pictures(result: PrideResult, directory: Path) -> Picture:
    """Rows of weights as pictures, with what they are: blends."""
    blends = [one for one in result.pictures if one.kind == "weight image"]
    parties = list(dict.fromkeys(one.party for one in blends))
    classes = [f"class {name}" for name in result.setting.classes]
    rows = [
        Row(
            f"{party}\n{size:,} images",
            [Tile(one.shown, f"{one.psnr:.1f} / {one.reference_psnr:.1f}") for one in blends if one.party == party],
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
        png=draw_gallery(rows, directory, classes),
    )
