"""Where the ImageNet trunk of LPIPS comes from.

LPIPS needs the convolutions of torchvision's AlexNet, which no Python package carries. They are looked for at a path
that the user names, then in torch hub's cache, then at torchvision's address. A named file must be good; finding none
where nobody named one is no mistake of the user's, so it is told apart as `TrunkUnavailableError`.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from federation.errors import DataError

TRUNK_VARIABLE = "KEYHOLE_LPIPS_TRUNK"
HUB_ADDRESS = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
STALL_SECONDS = 10.0
"""A download that stays silent for so long is given up."""

ALEXNET_CONVOLUTIONS = {
    "features.0": (64, 3, 11, 11),
    "features.3": (192, 64, 5, 5),
    "features.6": (384, 192, 3, 3),
    "features.8": (256, 384, 3, 3),
    "features.10": (256, 256, 3, 3),
}
"""Kernel shapes [output channels, input channels, height, width] by torchvision's layer names (Krizhevsky 2014)."""


class TrunkUnavailableError(DataError):
    """No file was named, none is cached and none can be downloaded; the message is the reason."""


@dataclass(frozen=True)
class Trunk:
    """AlexNet's convolutions.

    Attributes:
        weights: ten float32 tensors, `features.N.weight` and `features.N.bias`.
        source: the file they were read from.
        sha256: hex digest over the tensors' bytes in the order of `ALEXNET_CONVOLUTIONS`, so the same trunk has the
            same digest in whichever file it lies (torchvision's, one without the classifier, safetensors).
    """

    weights: dict[str, Tensor]
    source: Path
    sha256: str


def load_trunk(path: Path | None = None, *, download: bool = True) -> Trunk:
    """Find and read the trunk: `path`, else what KEYHOLE_LPIPS_TRUNK names, else torch hub's cache, else a download.

    Args:
        path: a state dict in a `.safetensors` file or one that torch can load with `weights_only=True`.
        download: whether the network may be tried (233 MB, once; kept in torch hub's cache).

    Raises:
        DataError: where the named file is missing or malformed.
        TrunkUnavailableError: where no file was named and none can be had.
    """
    named = path or os.environ.get(TRUNK_VARIABLE)
    if named:
        return read_trunk(Path(named))
    cached = Path(torch.hub.get_dir()) / "checkpoints" / HUB_ADDRESS.rpartition("/")[2]
    if not cached.is_file():
        if not download:
            raise TrunkUnavailableError(
                "no AlexNet trunk was named (--lpips-trunk or KEYHOLE_LPIPS_TRUNK) and torch hub's cache has none"
            )
        _download(cached)
    try:
        return read_trunk(cached)
    except DataError as error:
        raise TrunkUnavailableError(
            f"torch hub's cached file is unusable, delete it to fetch it again: {error}"
        ) from error


def read_trunk(path: Path) -> Trunk:
    """Read and check AlexNet's convolutions; the classifier's tensors, where the file has them, are left out.

    Raises:
        DataError: where the file is missing, is no state dict, or lacks a convolution of the right shape.
    """
    if not path.is_file():
        raise DataError(f"the LPIPS trunk {path} does not exist or is not a file")
    state = _read_state(path)
    weights = {}
    for layer, kernel in ALEXNET_CONVOLUTIONS.items():
        for key, shape in ((f"{layer}.weight", kernel), (f"{layer}.bias", kernel[:1])):
            tensor = state.get(key)
            if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape or not tensor.is_floating_point():
                found = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, Tensor) else "no such tensor"
                raise DataError(f"the LPIPS trunk {path} needs {key} as floats {list(shape)}; it has {found}")
            if not tensor.isfinite().all():
                raise DataError(f"the LPIPS trunk {path} has values in {key} that are not finite")
            weights[key] = tensor.to(torch.float32).contiguous()
    return Trunk(weights, path, digest(weights))


def digest(weights: dict[str, Tensor]) -> str:
    """SHA-256 over the bytes of the tensors, one after the other in the dictionary's order, as hex."""
    hasher = hashlib.sha256()
    for tensor in weights.values():
        hasher.update(tensor.numpy().tobytes())
    return hasher.hexdigest()


def _read_state(path: Path) -> dict[str, object]:
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a parser of foreign bytes fails in many ways, and each means the same
        raise DataError(
            f"the LPIPS trunk {path} cannot be read as a PyTorch state dict: {type(error).__name__}: "
            f"{_first_line(error)}"
        ) from error
    if not isinstance(state, dict):
        raise DataError(f"the LPIPS trunk {path} must be a state dict; it holds a {type(state).__name__}")
    return state


def _download(target: Path) -> None:
    expected = re.search(r"-([0-9a-f]{8,})\.", target.name)
    assert expected is not None, "torchvision's file names end in the start of their SHA-256"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _silence_limit(STALL_SECONDS):
            torch.hub.download_url_to_file(HUB_ADDRESS, str(target), hash_prefix=expected.group(1))
    except (OSError, http.client.HTTPException, RuntimeError) as error:  # RuntimeError: the digest does not fit
        raise TrunkUnavailableError(
            f"AlexNet's trunk could not be downloaded from {HUB_ADDRESS}: {_first_line(error)}"
        ) from error


@contextlib.contextmanager
def _silence_limit(seconds: float) -> Iterator[None]:
    """Let every new socket give up after `seconds` of silence: torch hub's download takes no time limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no further detail")
