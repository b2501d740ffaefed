"""The pixel keys of a whole network: how they are drawn, and how the key agent sends them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from defenses.keynet.keys import LARGEST_GAIN
from defenses.keynet.pixel import LARGEST_CONDITION, PixelKey, key_fault
from defenses.keynet.pixel_form import PixelForm
from federation.errors import MalformedMessage, UsageError
from federation.messages import raw_tensors_from_bytes, tensors_to_bytes
from federation.secret_root import SecretRoot
from federation.toeplitz import PixelSpace

LARGEST_ALPHA = 64
PIXEL_KEY_PARTS = ("permutations", "shares", "gains")
_DRAWS = 32


@dataclass(frozen=True)
class PixelKeyPolicy:
    """What is drawn for which space.

    Attributes:
        gain_range: s; gains are log-uniform on [1/s, s]; 1 means permutations alone.
        alpha: permutations that are mixed in the keys of the image and of pooled maps, where no activation reads them;
            all other keys are monomial, since nothing else commutes with an activation.
        outputs: the key of the network's results: "identity", "permutation" or "monomial".
        largest_condition: cond(A) of a key at most.

    Raises:
        UsageError: for values out of range.
    """

    gain_range: float = 2.0
    alpha: int = 1
    outputs: Literal["identity", "permutation", "monomial"] = "permutation"
    largest_condition: float = 1e3

    def __post_init__(self) -> None:
        if not 1 <= self.gain_range <= LARGEST_GAIN:
            raise UsageError(f"a gain range is between 1 and {LARGEST_GAIN:g}, not {self.gain_range}")
        if not 1 <= self.alpha <= LARGEST_ALPHA:
            raise UsageError(f"alpha is between 1 and {LARGEST_ALPHA}, not {self.alpha}")
        if self.outputs not in ("identity", "permutation", "monomial"):
            raise UsageError(f"outputs are 'identity', 'permutation' or 'monomial', not {self.outputs!r}")
        if not 1 <= self.largest_condition <= LARGEST_CONDITION:
            raise UsageError(f"a condition bound is between 1 and {LARGEST_CONDITION:g}, not {self.largest_condition}")
        if self.gain_range**2 > self.largest_condition:
            raise UsageError(
                f"gains on [1/{self.gain_range:g}, {self.gain_range:g}] have a condition of up to "
                f"{self.gain_range**2:g}, over the bound of {self.largest_condition:g}; narrow them or raise the bound"
            )

    def permutes(self, space: PixelSpace) -> bool:
        """Whether the entries of `space` are permuted."""
        return space.role != "output" or self.outputs != "identity"

    def gains_of(self, space: PixelSpace) -> float:
        """The gain range of `space`."""
        return self.gain_range if space.role != "output" or self.outputs == "monomial" else 1.0

    def alpha_of(self, space: PixelSpace) -> int:
        """How many permutations the key of `space` mixes."""
        linear_only = space.origins <= {"image", "pooling"} and not space.activations and space.role != "output"
        return self.alpha if linear_only else 1


@dataclass(frozen=True)
class PixelKeys:
    """The keys of a network.

    Attributes:
        spaces: one a space, in the order of `ToeplitzNetwork.spaces`.
        vectors: one for everything that is carried beside the matrices, by its name; all monomial.
    """

    spaces: tuple[PixelKey, ...]
    vectors: Mapping[str, PixelKey]

    @property
    def condition_numbers(self) -> tuple[float, ...]:
        """cond(A) of every space's key."""
        return tuple(key.condition_number for key in self.spaces)

    def to_bytes(self) -> bytes:
        """The keys as a message (safetensors)."""
        named = {str(index): key for index, key in enumerate(self.spaces)} | dict(self.vectors)
        return tensors_to_bytes({
            f"{name}.{part}": torch.from_numpy(getattr(key, part)) for name, key in named.items() for part in PIXEL_KEY_PARTS
        })  # fmt: skip

    @classmethod
    def from_bytes(cls, payload: bytes, form: PixelForm) -> PixelKeys:
        """Read what `to_bytes` wrote.

        Raises:
            MalformedMessage: for anything but one valid key for each of the form's spaces and vectors, with conditions
                up to LARGEST_CONDITION.
        """
        tensors = raw_tensors_from_bytes(payload, "pixel keys")
        sizes = {str(space.index): space.size for space in form.network.spaces} | dict(form.vectors)
        names = {f"{name}.{part}" for name in sizes for part in PIXEL_KEY_PARTS}
        if tensors.keys() != names:
            raise MalformedMessage(f"pixel keys: missing or unknown tensors {sorted(tensors.keys() ^ names)[:3]}")
        keys = {
            name: read_pixel_key(
                {part: tensors[f"{name}.{part}"] for part in PIXEL_KEY_PARTS},
                size,
                1 if name in form.vectors else LARGEST_ALPHA,
                f"pixel keys: key {name!r}",
            )
            for name, size in sizes.items()
        }
        spaces = tuple(keys[str(space.index)] for space in form.network.spaces)
        return cls(spaces, {name: keys[name] for name in form.vectors})


def read_pixel_key(parts: Mapping[str, Tensor], size: int, most_terms: int, where: str) -> PixelKey:
    """The key with these parts.

    Args:
        parts: by `PIXEL_KEY_PARTS`.
        size: its entries.
        most_terms: the permutations that it may mix.
        where: what it is, for the error's text.

    Raises:
        MalformedMessage: for anything but a valid key of this size, with a condition up to LARGEST_CONDITION.
    """
    arrays = [parts[part].numpy() for part in PIXEL_KEY_PARTS]
    fault = key_fault(*arrays)
    if fault is None and len(arrays[2]) != size:
        fault = f"it has {len(arrays[2])} entries, not {size}"
    if fault is None and len(arrays[1]) > most_terms:
        fault = f"it mixes {len(arrays[1])} permutations"
    if fault:
        raise MalformedMessage(f"{where}: {fault}")
    key = PixelKey(*arrays)
    if not key.is_monomial and key.condition_number > LARGEST_CONDITION:
        raise MalformedMessage(f"{where} is conditioned worse than {LARGEST_CONDITION:g}")
    return key


def draw_pixel_keys(form: PixelForm, root: SecretRoot, policy: PixelKeyPolicy) -> PixelKeys:
    """One key a space and one a carried vector; the same root, form and policy give the same keys.

    Raises:
        UsageError: where 32 draws of a soft key are all conditioned worse than the policy allows.
    """
    spaces = tuple(draw_pixel_key(space, root, policy) for space in form.network.spaces)
    vectors = {
        name: PixelKey.draw(root.derive("vector key", name).reader(), size, gain_range=policy.gain_range, alpha=1)
        for name, size in form.vectors.items()
    }
    return PixelKeys(spaces, vectors)


def draw_pixel_key(space: PixelSpace, root: SecretRoot, policy: PixelKeyPolicy) -> PixelKey:
    """The key of one space; raises like `draw_pixel_keys`."""
    return _well_conditioned(_draws(root.derive("pixel key", space.index), space, policy), space, policy)


def identity_pixel_keys(form: PixelForm) -> PixelKeys:
    """Keys that change nothing: those of the leaky twin."""
    return PixelKeys(
        tuple(PixelKey.identity(space.size) for space in form.network.spaces),
        {name: PixelKey.identity(size) for name, size in form.vectors.items()},
    )


def _draws(root: SecretRoot, space: PixelSpace, policy: PixelKeyPolicy) -> Iterator[PixelKey]:
    stream = root.reader()
    for _ in range(_DRAWS):
        yield PixelKey.draw(
            stream,
            space.size,
            gain_range=policy.gains_of(space),
            alpha=policy.alpha_of(space),
            permute=policy.permutes(space),
        )


def _well_conditioned(draws: Iterator[PixelKey], space: PixelSpace, policy: PixelKeyPolicy) -> PixelKey:
    """The first key within the bound: flat shares can make a sum of permutations nearly singular."""
    for key in draws:
        if key.condition_number <= policy.largest_condition * (1 + 1e-9):
            return key
    raise UsageError(
        f"{_DRAWS} keys of alpha {policy.alpha} for {space.size} entries have conditions over "
        f"{policy.largest_condition:g}; take a smaller alpha or raise largest_condition"
    )
