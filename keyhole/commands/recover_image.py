"""`keyhole recover-image`: keyed images of encrypted inference, opened with nothing but the keyed first layer."""

from __future__ import annotations

import json
import time
import zipfile
import zlib
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
import typer

from attacks.adaptive.grid.mixed import BlockOrder, block_entries
from attacks.adaptive.grid.template import ConvolutionTemplate, Integers
from attacks.adaptive.keynet_image import RecoveredImages, recover_images
from benchmark.metrics.image_files import read_image, write_image
from benchmark.metrics.pixel import to_eight_bit
from federation.errors import DataError, UsageError
from keyhole.output import shown

NOISE = 1e-12
"""Share of a dense layer's largest entry up to which an entry passes for a rounded zero."""

_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    NotImplementedError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


class Keyed(NamedTuple):
    """Keyed images [N, values] under their names; whether they are 8-bit pictures."""

    names: list[str]
    values: npt.NDArray[np.float64]
    grey_levels: bool


def recover_image(
    layer: Annotated[
        Path,
        typer.Argument(
            help="The keyed first layer, [outputs * height * width + 1, image values + 1]: CSR as scipy.sparse.save_npz "
            "writes it (.npz), or dense (.npy)."
        ),
    ],
    images: Annotated[
        Path,
        typer.Argument(
            help="The keyed images: an array (.npy), [N, image values] with or without the homogeneous 1, or "
            "[N, channels, height, width]; or a PNG, or a folder of them. 8-bit numbers are taken for pictures, of "
            "unknown contrast and brightness."
        ),
    ],
    shape: Annotated[str, typer.Option(metavar="CxHxW", help="Channels, height and width of an image: 1x28x28.")],
    outputs: Annotated[int, typer.Option(min=1, help="Output channels of the first convolution.")],
    kernel: Annotated[str, typer.Option(metavar="K|HxW", help="Its kernel: 5 or 5x5.")],
    stride: Annotated[str, typer.Option(metavar="S|HxW", help="Its stride.")] = "1",
    padding: Annotated[str, typer.Option(metavar="P|HxW", help="Its padding by zeros, on both sides.")] = "0",
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the PNGs are written.")] = Path("recovered"),
    pose: Annotated[
        int,
        typer.Option(
            min=0,
            max=7,
            help="Turn all images by so many quarters, transposed before for 4 and more: one of the poses that the layer "
            "leaves open.",
        ),
    ] = 0,
    block: Annotated[
        str | None,
        typer.Option(
            metavar="B|HxW", help="The key mixes pixels within blocks of this size, alike in all blocks: 4 or 4x4."
        ),
    ] = None,
    block_order: Annotated[
        BlockOrder | None,
        typer.Option(
            help="Blocks are tiles of the image, or runs of as many pixels along its lines.  [default: tiles]"
        ),
    ] = None,
    negative: Annotated[bool, typer.Option("--negative", help="Write the images' negatives.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines, for other programs.")] = False,
) -> None:
    """Open keyed images (Key-Net's encrypted inference) without any key.

    The layer's key, a permutation of pixels with gains and offsets, is read off the layer itself. Brightness and
    contrast of each image stay open, and poses (reflections and turns) that the layer cannot tell apart. With --block
    the key may mix pixels too; then an image and its negative may be exchanged. Nothing that is read is unpickled. See
    docs/keynet-image.md.

    Example: keyhole recover-image layer.npz keyed/ --shape 1x28x28 --outputs 6 --kernel 5 --padding 2
    """
    begun = time.perf_counter()
    template, matrix = _opened(layer, shape, outputs, kernel, stride, padding)
    keyed = _read_images(images)
    blocks = _blocks(template, block, block_order)
    found = recover_images(matrix, keyed.values, template, grey_levels=keyed.grey_levels, blocks=blocks)
    if pose not in found.poses:
        raise UsageError(f"--pose {pose}: this layer leaves open poses {', '.join(map(str, found.poses))}")
    files = [out / f"{name}.png" for name in keyed.names]
    opened = torch.from_numpy(template.moved(found.images, pose))
    for file, picture in zip(files, to_eight_bit(1 - opened if negative else opened), strict=True):
        write_image(file, picture)
    findings = _findings(found) | {"seconds": round(time.perf_counter() - begun, 3)}
    if as_json:
        typer.echo(json.dumps({"images": list(map(str, files)), **findings}, indent=2))
        return
    for name, value in findings.items():
        typer.echo(f"{name.replace('_', ' ')}: {_words(value)}")
    typer.echo(f"{len(files)} image{'s' * (len(files) != 1)} in {shown(out)}")


def _blocks(template: ConvolutionTemplate, block: str | None, order: BlockOrder | None) -> Integers | None:
    """The entries of each block, or None where the key mixes none."""
    if block is not None:
        return block_entries(template.image_shape, _pair("--block", block), order or "tiles")
    if order is not None:
        raise UsageError(f"--block-order {order} needs --block")
    return None


def _opened(
    layer: Path, shape: str, outputs: int, kernel: str, stride: str, padding: str
) -> tuple[ConvolutionTemplate, scipy.sparse.csr_array]:
    """The template, and the layer that is of its size. What would make an endless template is refused beforehand."""
    channels, height, width = _numbers("--shape", shape)
    if channels not in (1, 3):
        raise UsageError(f"--shape {shape}: images of {channels} channels; PNG takes 1 (grey) or 3 (colour)")
    (down, right), around = _pair("--kernel", kernel), _pair("--padding", padding)
    if around[0] >= down or around[1] >= right:
        raise UsageError(f"--padding {padding}: windows of zeros alone; it must be smaller than the kernel, {kernel}")
    matrix = _read_layer(layer)
    due = channels * height * width + 1
    if matrix.shape[1] != due or matrix.shape[0] < outputs:
        raise DataError(f"{layer} has the shape {matrix.shape}; for images of {shape} a layer has {due} columns")
    template = ConvolutionTemplate.of(
        (channels, height, width), outputs, (down, right), stride=_pair("--stride", stride), padding=around
    )
    if matrix.shape != template.layout.shape:
        raise DataError(f"{layer} has the shape {matrix.shape}; a convolution as described has {template.layout.shape}")
    return template, matrix


def _read_layer(path: Path) -> scipy.sparse.csr_array:
    _check_there(path)
    if path.suffix == ".npy":
        dense = np.asarray(_array(path), np.float64)
        if dense.ndim != 2:
            raise DataError(f"{path} has the shape {dense.shape}; a layer is a matrix")
        return scipy.sparse.csr_array(np.where(np.abs(dense) > NOISE * np.abs(dense).max(initial=0), dense, 0))
    if path.suffix != ".npz":
        raise DataError(f"{path}: a layer is .npz (scipy.sparse.save_npz of CSR) or .npy (dense)")
    try:
        matrix = scipy.sparse.load_npz(path)  # SciPy reads it with allow_pickle=False
        if matrix.format != "csr":
            raise ValueError(f"a {matrix.format} matrix; save matrix.tocsr()")
        matrix.check_format(full_check=True)  # indices that point outside would be written to
    except _UNREADABLE as error:
        raise DataError(f"{path} is no CSR matrix as scipy.sparse.save_npz writes it: {error}") from error
    _check_numbers(path, matrix.data)
    matrix = scipy.sparse.csr_array(matrix, dtype=np.float64)
    matrix.sum_duplicates()
    return matrix


def _read_images(path: Path) -> Keyed:
    _check_there(path)
    if path.suffix == ".npy":
        values = _array(path)
        if values.ndim < 2 or not len(values):
            raise DataError(f"{path} has the shape {values.shape}; keyed images are [N, values], N at least 1")
        flat = np.asarray(values, np.float64).reshape(len(values), -1)
        return Keyed([f"{index:04d}" for index in range(len(flat))], flat, values.dtype == np.uint8)
    files = sorted(path.glob("*.png")) if path.is_dir() else [path] if path.suffix == ".png" else []
    if not files:
        raise DataError(f"{path}: keyed images are .npy, a .png, or a folder that holds .png files")
    pictures = [read_image(file).flatten() for file in files]
    sizes = {len(picture) for picture in pictures}
    if len(sizes) > 1:
        raise DataError(f"{path} holds images of several sizes, {', '.join(map(str, sorted(sizes)))} values")
    return Keyed([file.stem for file in files], torch.stack(pictures).double().numpy(), True)


def _array(path: Path) -> npt.NDArray[np.float64]:
    try:
        # a header that promises more than the file holds is noticed when it is mapped, before memory is taken for it
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except _UNREADABLE as error:
        raise DataError(f"{path} is no array as numpy.save writes it: {error}") from error
    _check_numbers(path, values)
    return np.asarray(values)


def _check_there(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path} does not exist")


def _check_numbers(path: Path, values: npt.NDArray[np.float64]) -> None:
    if values.dtype.kind not in "iuf" or not np.all(np.isfinite(values)):
        raise DataError(f"{path} holds {values.dtype} values; finite real numbers are due")


def _numbers(option: str, text: str, counts: tuple[int, ...] = (3,), example: str = "1x28x28") -> list[int]:
    """Whole numbers with an x between them, one of `counts` of them."""
    parts = text.lower().split("x")
    if len(parts) not in counts or not all(part.isascii() and part.isdigit() and len(part) < 7 for part in parts):
        raise UsageError(f"{option} {text}: it is written like {example}")
    return list(map(int, parts))


def _pair(option: str, text: str) -> tuple[int, int]:
    """Along height and width; one number stands for both."""
    numbers = _numbers(option, text, (1, 2), "5x5 or 5")
    return numbers[0], numbers[-1]


def _findings(found: RecoveredImages) -> dict[str, float | bool | list[int]]:
    places, gains = found.key.places.columns, found.key.columns
    known = gains[np.isfinite(gains)]
    return {
        "pixels_placed": int((places >= 0).sum()),
        "pixels": int(places.size),
        "key_residual": found.key.residual,
        "largest_ratio_of_gains": float(known.max() / known.min()),
        "offsets": found.key.offsets,
        "poses_left_open": list(found.poses),
    }


def _words(value: float | bool | list[int]) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return ("yes" if value else "no") if isinstance(value, bool) else f"{value:.6g}"
