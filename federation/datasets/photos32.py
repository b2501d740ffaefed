"""`photos32`: 32x32 colour crops of the photographs inside the `scikit-image` wheel; needs no download.

Each photograph is cut into blocks of 64x64 pixels and each block belongs to one split, so that no two splits share a
pixel; crops overlap within a block only. Nearly uniform crops are left out, since a guess of their mean colour would
pass for a reconstruction. The label is the photograph.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from federation.datasets.base import SPLITS, DataRequest, Dataset, LabelledImages, assemble_dataset, dataset
from federation.datasets.decoding import decode_image
from federation.datasets.package_data import package_file
from federation.datasets.splits import share_out, stable_permutation

# The colour photographs in the wheel, each scene once (motorcycle_right shows that of motorcycle_left).
PHOTOGRAPHS = {
    "astronaut": "astronaut.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "hubble": "hubble_deep_field.jpg",
    "ihc": "ihc.png",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
}
SIZE = 32
BLOCK = 64
STRIDE = 16
# A crop is flat where its root mean square difference from its own mean colour is below this (scale 0 to 255), that is,
# where the mean colour alone would be a reconstruction of more than 28 dB.
FLAT = 10.0
# At most this many crops of one photograph, so that the large ones do not dominate.
MOST = 600
# Victims take more than elsewhere: identification ranks among 1,000 of them.
_SHARES = {"training": 0.46, "auxiliary": 0.10, "victims": 0.31, "test": 0.13}
_PROVENANCE = (
    f"{SIZE}x{SIZE} crops of {len(PHOTOGRAPHS)} photographs from the scikit-image package, labelled by photograph."
)


@dataset("photos32")
def load_photos32(request: DataRequest) -> Dataset:
    """Cut the crops out of the photographs: some 3,600, of them more than 1,000 victims."""
    images: dict[str, list[NDArray[np.uint8]]] = {split: [] for split in SPLITS}
    labels: dict[str, list[int]] = {split: [] for split in SPLITS}
    for label, file in enumerate(PHOTOGRAPHS.values()):
        path = package_file("skimage", f"data/{file}")
        photograph = np.asarray(decode_image(path, str(path)).convert("RGB"))
        for split, crops in divide_photograph(photograph, stream=label).items():
            images[split].append(crops)
            labels[split] += [label] * len(crops)
    splits = {}
    for split in SPLITS:
        crops = np.concatenate(images[split])
        order = stable_permutation(len(crops), stream=len(PHOTOGRAPHS))
        pixels = torch.from_numpy(crops[order]).permute(0, 3, 1, 2).contiguous()
        splits[split] = LabelledImages(pixels, torch.tensor(labels[split], dtype=torch.int64)[order])
    return assemble_dataset("photos32", tuple(PHOTOGRAPHS), splits, _PROVENANCE)


def divide_photograph(photograph: NDArray[np.uint8], stream: int) -> dict[str, NDArray[np.uint8]]:
    """The crops, uint8 [N, 32, 32, 3], of each split from a photograph, uint8 [H, W, 3]; splits share no block."""
    crops = [block[~is_flat(block)] for block in block_crops(photograph)]
    blocks = [block for block in crops if len(block)]
    shares = [_SHARES[split] for split in SPLITS]
    order = stable_permutation(len(blocks), stream)
    bounds = np.cumsum(share_out(len(blocks), shares))[:-1]
    divided = {}
    for split, share, members in zip(SPLITS, shares, np.split(order, bounds), strict=True):
        available = np.concatenate([blocks[member] for member in members])
        chosen = stable_permutation(len(available), stream)[: round(share * MOST)]
        divided[split] = available[chosen]
    return divided


def block_crops(photograph: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """All crops of all whole blocks: uint8 [blocks, crops, 32, 32, 3]."""
    rows, columns = photograph.shape[0] // BLOCK, photograph.shape[1] // BLOCK
    whole = photograph[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK, 3)
    blocks = whole.swapaxes(1, 2).reshape(rows * columns, BLOCK, BLOCK, 3)
    windows = sliding_window_view(blocks, (SIZE, SIZE), axis=(1, 2))[:, ::STRIDE, ::STRIDE]
    return np.moveaxis(windows, 3, 5).reshape(rows * columns, -1, SIZE, SIZE, 3)


def is_flat(crops: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of the crops, uint8 [N, 32, 32, 3], are nearly uniform: bool [N]."""
    variance = crops.var(axis=(1, 2)).mean(axis=-1)
    return variance < FLAT**2
