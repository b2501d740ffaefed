"""QSGD, an unbiased quantizer of vectors (Alistarh et al. 2017), with its codes really written in bits.

Q_s(v_i) = ||v|| sgn(v_i) xi_i, where with l = floor(s |v_i| / ||v||) xi_i is (l + 1) / s with probability
s |v_i| / ||v|| - l, else l / s (eq. 4 and section 3.1). With the 2-norm over d values the variance is at most
min(d / s^2, sqrt(d) / s) ||v||^2 (Lemma 3.1). Some code uses the largest magnitude instead; both are here, by bucket.

Levels are written packed, each in as many bits as the largest takes, or as the paper does, in Elias codes (`elias`),
which pay where most levels are zero: few levels, and the 2-norm over large buckets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from federation import elias, packed_levels
from federation.errors import MalformedMessage, TrainingError, UsageError

LARGEST_LEVELS = 2**24
"""Beyond it a level is finer than float32 itself."""

Coding = Literal["packed", "elias"]
_CODINGS = {"packed": packed_levels, "elias": elias}
"""How levels are written."""


@dataclass(frozen=True)
class QsgdConfig:
    """What both ends of a quantised message agree on.

    Attributes:
        levels: s, the positive levels; 127 makes codes of 8 bits.
        norm: "l2" (the paper's) or "max", over each bucket.
        bucket: values that share a norm.
        coding: how levels are written, "packed" or "elias".

    Raises:
        UsageError: for levels outside 1 .. 2^24, an empty bucket, another norm or another coding.
    """

    levels: int
    norm: Literal["l2", "max"] = "l2"
    bucket: int = 512
    coding: Coding = "packed"

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= LARGEST_LEVELS:
            raise UsageError(f"QSGD has between 1 and {LARGEST_LEVELS} levels, not {self.levels}")
        if self.norm not in ("l2", "max"):
            raise UsageError(f"QSGD's norm is 'l2' or 'max', not {self.norm!r}")
        if self.coding not in _CODINGS:
            raise UsageError(f"QSGD's coding is 'packed' or 'elias', not {self.coding!r}")
        if self.bucket < 1:
            raise UsageError(f"a bucket holds at least one value, not {self.bucket}")

    def bucket_count(self, size: int) -> int:
        """Buckets of a vector of `size` values, the last of which may be shorter."""
        return -(-size // self.bucket)


@dataclass(frozen=True)
class Quantised:
    """A quantised vector.

    Attributes:
        norms: [buckets], float32.
        codes: [values], int32, the signed level of each value, between -s and s.
    """

    norms: Tensor
    codes: Tensor


def quantise(vector: Tensor, config: QsgdConfig, generator: torch.Generator) -> Quantised:
    """Round `vector` ([values], any float type) to levels of its buckets' norms, at random and without bias.

    Norms are rounded up to float32 first, so that the stored norm is the one that the levels refer to and no value
    exceeds it.

    Raises:
        TrainingError: for a value that is not finite, or a norm beyond float32.
    """
    exact = vector.detach().flatten().double()
    if not bool(torch.isfinite(exact).all()):
        raise TrainingError("QSGD: the vector holds values that are not finite")
    buckets = config.bucket_count(len(exact))
    magnitudes = F.pad(exact.abs(), (0, buckets * config.bucket - len(exact))).view(buckets, config.bucket)
    norms = _float32_from_above(_norms(magnitudes, config))
    if not bool(torch.isfinite(norms).all()):
        raise TrainingError("QSGD: a norm is beyond the range of float32; the vector has diverged")
    divisor = torch.where(norms > 0, norms, 1).double()
    scaled = (magnitudes * config.levels / divisor[:, None]).flatten()[: len(exact)]
    lower = scaled.floor()
    raised = torch.rand(len(exact), generator=generator, dtype=torch.float64) < scaled - lower
    return Quantised(norms, ((lower + raised) * exact.sign()).to(torch.int32))


def dequantise(quantised: Quantised, config: QsgdConfig) -> Tensor:
    """The vector that was sent: [values], float32."""
    codes = quantised.codes
    norms = quantised.norms.double().repeat_interleave(config.bucket)[: len(codes)]
    return (norms * codes / config.levels).float()


def to_bytes(quantised: Quantised, config: QsgdConfig) -> bytes:
    """Norms as little-endian float32, then the levels in the agreed coding."""
    norms = quantised.norms.numpy().astype("<f4").tobytes()
    return norms + _CODINGS[config.coding].encode(quantised.codes.numpy(), config.levels)


def from_bytes(payload: bytes, size: int, config: QsgdConfig) -> Quantised:
    """Read a vector of `size` values.

    Raises:
        MalformedMessage: for a norm that is missing, negative or not finite, levels that are not in the agreed coding,
            or a level other than zero in a bucket of norm zero.
    """
    buckets = config.bucket_count(size)
    if len(payload) < 4 * buckets:
        raise MalformedMessage(f"QSGD: {len(payload)} bytes, but {size} values begin with {buckets} norms of 4")
    norms = np.frombuffer(payload, dtype="<f4", count=buckets).astype(np.float32)
    if not np.all(np.isfinite(norms) & ~np.signbit(norms)):
        raise MalformedMessage("QSGD: a norm is negative or not finite")
    signed = _CODINGS[config.coding].decode(payload[4 * buckets :], size, config.levels)
    if np.any(signed[np.repeat(norms == 0, config.bucket)[:size]]):
        raise MalformedMessage("QSGD: a bucket of norm zero has a code other than zero")
    return Quantised(torch.from_numpy(norms), torch.from_numpy(signed))


def _norms(magnitudes: Tensor, config: QsgdConfig) -> Tensor:
    return magnitudes.amax(dim=1) if config.norm == "max" else torch.linalg.vector_norm(magnitudes, dim=1)


def _float32_from_above(values: Tensor) -> Tensor:
    nearest = values.float()
    above = torch.nextafter(nearest, torch.full_like(nearest, torch.inf))
    return torch.where(nearest.double() < values, above, nearest)
