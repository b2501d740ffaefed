"""Keys of the image for encrypted inference: x -> L x + t, with an offset for every pixel.

Byrne, DeCann and Bloom (2020) encrypt an image by any affine map whose inverse the first layer can take in. With the
key [L t; 0 1] in homogeneous coordinates the first layer What = A_1 [W b; 0 1] [L t; 0 1]^-1 has -W L^-1 t in its bias
column, row by row: what a convolution's padding cuts off is cut off there as well, so that nothing is approximate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from defenses.keynet.keys import LARGEST_GAIN
from defenses.keynet.mixing import WIDEST, OrthogonalKey
from defenses.keynet.pixel import LARGEST_CONDITION, PixelKey
from defenses.keynet.pixel_keys import LARGEST_ALPHA, PIXEL_KEY_PARTS, read_pixel_key
from defenses.keynet.space_key import Floats, SpaceKey, homogeneous
from federation.errors import MalformedMessage, UsageError
from federation.secret_root import SecretRoot, SecretStream

ImageKeyKind: TypeAlias = Literal["pixel", "orthogonal"]

LARGEST_OFFSET = 2.0**10
"""Offsets lie between its negative and it; images that networks read stay within some units of 0."""

_DRAWS = 32


@dataclass(frozen=True, eq=False, repr=False)
class ImageKey(SpaceKey):
    """x -> L x + t on flattened images.

    Attributes:
        linear: L.
        offsets: t, float64 [pixels].

    Raises:
        UsageError: where the offsets are no such vector, or not between -`LARGEST_OFFSET` and `LARGEST_OFFSET`.
    """

    linear: PixelKey | OrthogonalKey
    offsets: Floats

    def __post_init__(self) -> None:
        if self.offsets.dtype != np.float64 or self.offsets.shape != (self.linear.size,):
            raise UsageError(
                f"not an image key: {self.linear.size} float64 offsets are due, not {self.offsets.dtype} "
                f"{self.offsets.shape}"
            )
        if not np.all(np.abs(self.offsets) <= LARGEST_OFFSET):
            raise UsageError(
                f"not an image key: its offsets are not all between {-LARGEST_OFFSET:g} and {LARGEST_OFFSET:g}"
            )

    @property
    def size(self) -> int:
        """See `SpaceKey.size`."""
        return self.linear.size

    @cached_property
    def matrix(self) -> scipy.sparse.csr_array:
        """See `SpaceKey.matrix`."""
        return homogeneous(_without_coordinate(self.linear.matrix), self.offsets)

    @cached_property
    def inverse(self) -> scipy.sparse.csr_array:
        """See `SpaceKey.inverse`."""
        linear = _without_coordinate(self.linear.inverse)
        return homogeneous(linear, -(linear @ self.offsets))

    @cached_property
    def condition_number(self) -> float:
        """cond([L t; 0 1]) in the maximum norm: rounding a keyed image to a share u of its largest value changes the
        image by at most u times this, relative to its own largest value or 1, whichever is larger.

        The 1-norm, which bounds what rounding costs averaged weights, plays no part: under these keys no weights return.
        """
        if not math.isfinite(self.linear.condition_number):
            return math.inf
        return math.prod(float(abs(each).sum(axis=1).max()) for each in (self.matrix, self.inverse))

    @property
    def is_monomial(self) -> bool:
        """See `SpaceKey.is_monomial`."""
        return isinstance(self.linear, PixelKey) and self.linear.is_monomial and not self.has_offsets

    @property
    def is_permutation(self) -> bool:
        """See `SpaceKey.is_permutation`."""
        return isinstance(self.linear, PixelKey) and self.linear.is_permutation and not self.has_offsets

    @property
    def has_offsets(self) -> bool:
        """See `SpaceKey.has_offsets`."""
        return bool(np.any(self.offsets != 0))

    def tensors(self) -> dict[str, Tensor]:
        """The key as named tensors: "orthogonal", or the parts of a pixel key; and "offsets"."""
        parts = PIXEL_KEY_PARTS if isinstance(self.linear, PixelKey) else self.linear.parts
        return {part: torch.from_numpy(np.ascontiguousarray(getattr(self.linear, part))) for part in parts} | {
            "offsets": torch.from_numpy(self.offsets)
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], size: int, where: str) -> ImageKey:
        """Read what `tensors` wrote.

        Raises:
            MalformedMessage: for anything but a valid key of this size whose condition number is at most
                `LARGEST_CONDITION`.
        """
        parts = OrthogonalKey.parts if "orthogonal" in tensors else PIXEL_KEY_PARTS
        if strange := tensors.keys() ^ {*parts, "offsets"}:
            raise MalformedMessage(f"{where}: missing or unknown tensors {sorted(strange)[:3]}")
        try:
            if "orthogonal" in tensors:
                linear: PixelKey | OrthogonalKey = OrthogonalKey(tensors["orthogonal"].numpy())
            else:
                linear = read_pixel_key(tensors, size, LARGEST_ALPHA, where)
            key = cls(linear, tensors["offsets"].numpy())
        except UsageError as error:
            raise MalformedMessage(f"{where}: {error}") from error
        if key.size != size:
            raise MalformedMessage(f"{where}: it has {key.size} entries, not {size}")
        if not key.condition_number <= LARGEST_CONDITION:
            raise MalformedMessage(f"{where}: it is conditioned worse than {LARGEST_CONDITION:g}")
        return key

    def __repr__(self) -> str:
        return f"ImageKey(<secret>, size={self.size})"


@dataclass(frozen=True)
class ImageKeyPolicy:
    """What is drawn for the image.

    Attributes:
        kind: L is a "pixel" key, D * sum_j theta_j Pi_j (eq. 2.7), or "orthogonal", uniform over the orthogonal group.
        gain_range: s of a pixel key; gains are log-uniform on [1/s, s].
        alpha: permutations that a pixel key mixes.
        offset_range: o; offsets are uniform on [-o, o]; 0 for none.
        largest_condition: `ImageKey.condition_number` at most; worse draws are thrown away.

    Raises:
        UsageError: for values out of range.
    """

    kind: ImageKeyKind = "pixel"
    gain_range: float = 2.0
    alpha: int = 1
    offset_range: float = 1.0
    largest_condition: float = 1e3

    def __post_init__(self) -> None:
        if self.kind not in ("pixel", "orthogonal"):
            raise UsageError(f"an image key is 'pixel' or 'orthogonal', not {self.kind!r}")
        if not 1 <= self.gain_range <= LARGEST_GAIN:
            raise UsageError(f"a gain range is between 1 and {LARGEST_GAIN:g}, not {self.gain_range}")
        if not 1 <= self.alpha <= LARGEST_ALPHA:
            raise UsageError(f"alpha is between 1 and {LARGEST_ALPHA}, not {self.alpha}")
        if not 0 <= self.offset_range <= LARGEST_OFFSET:
            raise UsageError(f"an offset range is between 0 and {LARGEST_OFFSET:g}, not {self.offset_range}")
        if not 1 <= self.largest_condition <= LARGEST_CONDITION:
            raise UsageError(f"a condition bound is between 1 and {LARGEST_CONDITION:g}, not {self.largest_condition}")

    @property
    def mixes(self) -> bool:
        """Whether pixels are mixed, so that L^-1 is dense."""
        return self.kind == "orthogonal" or self.alpha > 1


def draw_image_key(size: int, root: SecretRoot, policy: ImageKeyPolicy) -> ImageKey:
    """A key for images of `size` values; the same root, size and policy give the same key.

    Raises:
        UsageError: for images that are too large to be mixed, or where 32 draws are all conditioned worse than the
            policy allows.
    """
    if policy.mixes and size > WIDEST:
        raise UsageError(f"images of {size} values are too large to be mixed, at most {WIDEST} are; use alpha 1")
    stream = root.derive("image key").reader()
    for _ in range(_DRAWS):
        key = ImageKey(_draw_linear(size, stream, policy), policy.offset_range * (2 * stream.uniform(size) - 1))
        if key.condition_number <= policy.largest_condition:
            return key
    raise UsageError(
        f"{_DRAWS} image keys for {size} values have conditions over {policy.largest_condition:g}, the last of "
        f"{key.condition_number:.3g}; narrow gain_range, alpha or offset_range, or raise largest_condition"
    )


def _draw_linear(size: int, stream: SecretStream, policy: ImageKeyPolicy) -> PixelKey | OrthogonalKey:
    if policy.kind == "orthogonal":
        return OrthogonalKey.draw(size, stream)
    return PixelKey.draw(stream, size, gain_range=policy.gain_range, alpha=policy.alpha)


def _without_coordinate(matrix: scipy.sparse.csr_array | Floats) -> scipy.sparse.csr_array:
    """L, from the matrix of a pixel key (homogeneous) or of an orthogonal key (not)."""
    return scipy.sparse.csr_array(matrix if isinstance(matrix, np.ndarray) else matrix[:-1, :-1])
