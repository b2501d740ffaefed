"""The keys of encrypted inference: an image key that may be affine, and a pixel key for every other space."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from defenses.keynet.image_key import ImageKey, ImageKeyPolicy, draw_image_key
from defenses.keynet.pixel import PixelKey
from defenses.keynet.pixel_keys import (
    LARGEST_ALPHA,
    PIXEL_KEY_PARTS,
    PixelKeyPolicy,
    draw_pixel_key,
    read_pixel_key,
)
from defenses.keynet.space_key import SpaceKey
from federation.errors import MalformedMessage
from federation.messages import raw_tensors_from_bytes, tensors_to_bytes
from federation.secret_root import SecretRoot
from federation.toeplitz import ToeplitzNetwork

_DEFAULT_IMAGE, _DEFAULT_MAPS = ImageKeyPolicy(), PixelKeyPolicy()


@dataclass(frozen=True)
class InferenceKeys:
    """The keys of a network that is run on keyed images.

    Attributes:
        image: of the image, the first of the network's spaces.
        maps: of the other spaces, in the order of `ToeplitzNetwork.spaces`.
    """

    image: ImageKey
    maps: tuple[PixelKey, ...]

    @property
    def spaces(self) -> tuple[SpaceKey, ...]:
        """One key a space, as `KeyedNetwork.of` takes them."""
        return (self.image, *self.maps)

    def outputs(self, network: ToeplitzNetwork) -> SpaceKey:
        """The key that opens the network's results."""
        return self.spaces[network.result_space]

    @property
    def condition_numbers(self) -> tuple[float, ...]:
        """Of every space's key; see `ImageKey.condition_number` and `PixelKey.condition_number`."""
        return tuple(key.condition_number for key in self.spaces)

    def to_bytes(self) -> bytes:
        """The keys as a message (safetensors)."""
        maps = {
            f"{index}.{part}": torch.from_numpy(getattr(key, part))
            for index, key in enumerate(self.maps, start=1)
            for part in PIXEL_KEY_PARTS
        }
        return tensors_to_bytes(maps | {f"image.{part}": tensor for part, tensor in self.image.tensors().items()})

    @classmethod
    def from_bytes(cls, payload: bytes, network: ToeplitzNetwork) -> InferenceKeys:
        """Read what `to_bytes` wrote.

        Raises:
            MalformedMessage: for anything but one valid key for each of the network's spaces, with conditions up to
                `pixel.LARGEST_CONDITION`.
        """
        unread = raw_tensors_from_bytes(payload, "inference keys")
        image = {name.removeprefix("image."): unread.pop(name) for name in list(unread) if name.startswith("image.")}
        due = {f"{space.index}.{part}" for space in network.spaces[1:] for part in PIXEL_KEY_PARTS}
        if unread.keys() != due:
            raise MalformedMessage(f"inference keys: missing or unknown tensors {sorted(unread.keys() ^ due)[:3]}")
        return cls(
            ImageKey.from_tensors(image, network.spaces[0].size, "inference keys: key of the image"),
            tuple(
                read_pixel_key(
                    {part: unread[f"{space.index}.{part}"] for part in PIXEL_KEY_PARTS},
                    space.size,
                    LARGEST_ALPHA,
                    f"inference keys: key {space.index}",
                )
                for space in network.spaces[1:]
            ),
        )


def draw_inference_keys(
    network: ToeplitzNetwork,
    root: SecretRoot,
    image: ImageKeyPolicy = _DEFAULT_IMAGE,
    maps: PixelKeyPolicy = _DEFAULT_MAPS,
) -> InferenceKeys:
    """One key a space; the same root, network and policies give the same keys.

    Whether the network's operations let such keys pass is told by `inference.check_keys`.

    Args:
        network: the network's steps.
        root: the secret that they derive from.
        image: what is drawn for the image.
        maps: what is drawn for every other space.

    Raises:
        UsageError: where no key within the bounds of its condition is found.
    """
    return InferenceKeys(
        draw_image_key(network.spaces[0].size, root, image),
        tuple(draw_pixel_key(space, root, maps) for space in network.spaces[1:]),
    )
