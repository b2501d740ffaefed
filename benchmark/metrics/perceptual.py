"""Perceptual distances by a deep network's features: LPIPS and ST-LPIPS, both in their AlexNet variant.

LPIPS: Zhang, Isola, Efros, Shechtman and Wang, CVPR 2018, eq. 1 (version 0.1 of the linear heads). ST-LPIPS: Ghildyal
and Liu, ECCV 2022, which tolerates small shifts. 0 is identical; larger is less alike.

Stored 8-bit images are scaled to [-1, 1]; grey ones are repeated to three channels; where the shorter side has fewer
than 64 pixels, the image is enlarged bilinearly until it has 64, the size on which LPIPS's heads were fitted.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.metrics.pixel import FULL_SCALE, require_pairs
from benchmark.metrics.trunk import TrunkUnavailableError, digest, load_trunk
from federation.errors import DataError

SMALLEST_SIDE = 64
BATCH_PIXELS = 32 * SMALLEST_SIDE**2
"""Pixels evaluated at a time: 32 small images; more is slower on a processor's cache and heavy for photographs."""


@dataclass(frozen=True)
class Unavailable:
    """A metric that cannot be had here; its column stays empty with `reason` beside it."""

    reason: str

    def distances(self, first: Tensor, second: Tensor) -> list[None]:
        """One None for each pair."""
        require_pairs(first, second)
        return [None] * len(first)


@dataclass(frozen=True)
class Perceptual:
    """A perceptual distance ready for use.

    Attributes:
        name: what the column is called.
        network: maps two batches [N, 3, H, W] in [-1, 1] to distances [N, 1, 1, 1].
        source: where the trunk's weights came from.
        sha256: digest of the trunk's weights.
    """

    name: str
    network: nn.Module
    source: str
    sha256: str

    def distances(self, first: Tensor, second: Tensor) -> list[float]:
        """The distance of each pair of 8-bit images, uint8 [N, C, H, W] with 1 or 3 channels.

        Raises:
            DataError: where the images are not 8-bit, differ in shape or have another number of channels.
        """
        require_pairs(first, second)
        if first.shape[1] not in (1, 3):
            raise DataError(f"{self.name} compares grey or colour images; these have {first.shape[1]} channels")
        height, width = enlarged_size(*first.shape[2:])
        batch = max(1, BATCH_PIXELS // (height * width))
        values: list[float] = []
        with torch.inference_mode():
            for a, b in zip(first.split(batch), second.split(batch), strict=True):
                values.extend(self.network(prepare(a), prepare(b)).flatten().tolist())
        return values


PerceptualMetric = Perceptual | Unavailable


def enlarged_size(height: int, width: int) -> tuple[int, int]:
    """Height and width after the shorter side was brought up to 64 pixels, if it had fewer; the aspect is kept."""
    factor = max(1.0, SMALLEST_SIDE / min(height, width))
    return round(height * factor), round(width * factor)


def prepare(images: Tensor) -> Tensor:
    """8-bit images [N, 1 or 3, H, W] as the networks take them: float32 [N, 3, H', W'] in [-1, 1]."""
    scaled = images.to(torch.float32) * (2 / FULL_SCALE) - 1
    size = enlarged_size(*images.shape[2:])
    if size != tuple(images.shape[2:]):
        scaled = F.interpolate(scaled, size=size, mode="bilinear", align_corners=False)
    return scaled.expand(-1, 3, -1, -1)


def load_lpips(trunk: Path | None = None, *, download: bool = True) -> PerceptualMetric:
    """LPIPS with AlexNet's ImageNet trunk, or the reason why there is none.

    Args:
        trunk: the trunk's file; None looks for one as `benchmark.metrics.trunk.load_trunk` says.
        download: whether the trunk may be downloaded where it is found nowhere else.

    Raises:
        DataError: where a file was named (here or by KEYHOLE_LPIPS_TRUNK) and it is missing or malformed.
    """
    try:
        found = load_trunk(trunk, download=download)
    except TrunkUnavailableError as unavailable:
        return Unavailable(str(unavailable))
    import federation.vision  # noqa: F401, I001  first: lpips imports torchvision, which this module makes loadable
    import lpips

    with _quiet_construction():
        network = lpips.LPIPS(net="alex", version="0.1", pnet_rand=True, verbose=False)
    # lpips cuts AlexNet's features into slices but keeps each layer's number: slice2.3.weight is features.3.weight.
    network.net.load_state_dict(
        {name: found.weights["features." + name.partition(".")[2]] for name in network.net.state_dict()}
    )
    return Perceptual("LPIPS (AlexNet)", _frozen(network), str(found.source), found.sha256)


def load_st_lpips() -> Perceptual:
    """ST-LPIPS with the shift-tolerant AlexNet, whose trunk and heads lie in the package; nothing is downloaded."""
    import federation.vision  # noqa: F401, I001  first, as in load_lpips
    from stlpips_pytorch import stlpips

    with _quiet_construction():
        network = stlpips.LPIPS(net="alex", variant="shift_tolerant", verbose=False)
    trunk = dict(sorted(network.net.state_dict().items()))
    return Perceptual("ST-LPIPS (AlexNet)", _frozen(network), "the stlpips-pytorch package", digest(trunk))


@contextlib.contextmanager
def _quiet_construction() -> Iterator[None]:
    """Leave the global random state as it was (layers are initialised before they are filled); hush old call styles."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torchvision\.models\._utils")
        yield


def _frozen(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)
