"""Pictures from weights as files beside the result, and what they amount to among the adversaries' figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmark.metrics.image_files import write_image
from benchmark.reproduce.pride.adversaries import NO_KEY, WIRE
from benchmark.reproduce.pride.pictures import Picture
from benchmark.store.pride import AdversaryResult, PictureKind, PictureResult

_FOLDERS: dict[PictureKind, str] = {
    "one-image update, rows alone": "images/updates-rows",
    "one-image update, eq. 2.2": "images/updates-ratio",
    "weight image": "images/weights",
}


def stored(directory: Path, kind: PictureKind, party: str, picture: Picture) -> PictureResult:
    """Write both images of a picture as PNG."""
    stem = f"{_FOLDERS[kind]}/{party.replace(' ', '-')}-class-{picture.label}"
    original, shown = f"{stem}-original.png", f"{stem}.png"
    _save(directory / original, picture.original)
    _save(directory / shown, picture.shown)
    return PictureResult(kind, party, picture.label, original, shown, picture.psnr, picture.reference_psnr)


def measured(shown: Sequence[PictureResult]) -> list[AdversaryResult]:
    """What can be seen in an update of one image, and in trained weights."""
    holds = "the weights before; no key"
    rows = []
    kinds: tuple[tuple[PictureKind, str, str], ...] = (
        ("one-image update, rows alone", "the two rows", "the brightest pixel is set to white"),
        ("one-image update, eq. 2.2", "rows and intercepts", "dL/dW[i, :] / dL/db[i]; the paper sends no intercepts"),
    )
    for kind, sent, note in kinds:
        values = [one.psnr for one in shown if one.kind == kind]
        target = f"the image, from {sent} after one gradient step on it"
        rows.append(AdversaryResult(WIRE, holds, target, "least PSNR", min(values), "dB", len(values), note))
    return [*rows, _blends([one for one in shown if one.kind == "weight image"])]


def _blends(pictures: Sequence[PictureResult]) -> AdversaryResult:
    """The control: trained weights look like digits and yet show no training image."""
    references = [one.psnr if one.reference_psnr is None else one.reference_psnr for one in pictures]
    closer = [one.psnr > reference for one, reference in zip(pictures, references, strict=True)]
    note = (
        f"nearest training image: {np.mean([one.psnr for one in pictures]):.1f} dB on average for the best rescaled row,"
        f" {np.mean(references):.1f} dB for the mean image"
    )
    target = "training images, from trained weights (rows of coef_ as pictures)"
    measure = "rows closer to a training image than the mean image is"
    return AdversaryResult(WIRE, NO_KEY, target, measure, float(np.mean(closer)), "share", len(pictures), note)


def _save(path: Path, pixels: NDArray[np.uint8]) -> None:
    write_image(path, torch.from_numpy(pixels)[None])
