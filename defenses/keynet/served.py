"""Key-Net's encrypted inference between parties: the keyed network and keyed images as messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from defenses.inference import ImageOwner, Inference
from defenses.keynet.image_key import ImageKey, ImageKeyPolicy
from defenses.keynet.inference import KeyedNetwork, encrypt_images
from defenses.keynet.inference_keys import InferenceKeys, draw_inference_keys
from defenses.keynet.pixel import PixelKey
from defenses.keynet.pixel_claims import score_pixel_claims
from defenses.keynet.pixel_keys import PixelKeyPolicy
from defenses.keynet.pixel_message import MATRIX_PARTS, matrix_tensors, read_matrix
from defenses.keynet.space_key import Floats
from federation.channel_map import POSITIVELY_HOMOGENEOUS
from federation.errors import MalformedMessage
from federation.messages import raw_tensors_from_bytes, tensors_to_bytes
from federation.network import Network
from federation.secret_root import SecretRoot
from federation.toeplitz import Concatenation, ToeplitzNetwork, toeplitz_of
from federation.weights import Weights


@dataclass(frozen=True)
class KeyedInference(Inference):
    """Inference on keyed images, by whoever holds the keyed network; the owner of the images draws the keys.

    Attributes:
        scheme: the stage's name.
        policy: what is drawn; gains of maps only where every activation of the network lets gains pass.
        published: use identity keys and say so to everyone.
    """

    scheme: str
    policy: PixelKeyPolicy
    published: bool = False

    @property
    def hidden_by(self) -> frozenset[str]:
        """See `Inference.hidden_by`."""
        return frozenset() if self.published else frozenset({self.scheme})

    def owner(self, network: Network, weights: Weights, root: SecretRoot) -> ImageOwner:
        """See `Inference.owner`; raises UsageError where a step does not commute with the keys, naming its node."""
        traced = toeplitz_of(network)
        keys = self._keys(traced, root)
        return KeyedImageOwner(KeyedNetwork.of(traced, weights, keys.spaces), keys)

    def read_network(self, payload: bytes, network: Network) -> Mapping[str, scipy.sparse.csr_array]:
        """The keyed matrices, by node."""
        tensors, shapes = raw_tensors_from_bytes(payload, "served network"), _shapes(toeplitz_of(network))
        due = {f"{node}.{part}" for node in shapes for part in MATRIX_PARTS}
        if tensors.keys() != due:
            raise MalformedMessage(f"served network: missing or unknown tensors {sorted(tensors.keys() ^ due)[:3]}")
        return {node: read_matrix(tensors, node, shape, "served network") for node, shape in shapes.items()}

    def read_image(self, payload: bytes, network: Network) -> Tensor:
        """The keyed image: uint8 [values], or float32 [values + 1] with the homogeneous coordinate."""
        tensors = raw_tensors_from_bytes(payload, "served image")
        values = toeplitz_of(network).spaces[0].size
        image = tensors.get("image")
        due = {(torch.uint8, (values,)), (torch.float32, (values + 1,))}
        if len(tensors) != 1 or image is None or (image.dtype, tuple(image.shape)) not in due:
            raise MalformedMessage(f"served image: {values} values in uint8, or in float32 and a 1 behind, are due")
        if not bool(image.isfinite().all()):
            raise MalformedMessage("served image: it holds values that are not finite")
        return image

    def score_key_claims(self, claims: Mapping[str, Tensor], network: Network, root: SecretRoot) -> Mapping[str, float]:
        """See `score_pixel_claims`; of the image's key alone, since it is images that are attacked."""
        if self.published:
            return {}
        traced = toeplitz_of(network)
        key = self._keys(traced, root).image.linear
        assert isinstance(key, PixelKey), "orthogonal keys are not drawn here"
        scaled = [0] if self._image_policy.gain_range > 1 else []
        return score_pixel_claims(claims, [key], replace(traced, spaces=traced.spaces[:1]), scaled)

    def _keys(self, traced: ToeplitzNetwork, root: SecretRoot) -> InferenceKeys:
        if self.published:
            first, *others = (PixelKey.identity(space.size) for space in traced.spaces)
            return InferenceKeys(ImageKey(first, np.zeros(first.size)), tuple(others))
        lets_gains_pass = all(space.activations <= POSITIVELY_HOMOGENEOUS for space in traced.spaces)
        maps = self.policy if lets_gains_pass else replace(self.policy, gain_range=1.0)
        return draw_inference_keys(traced, root, self._image_policy, maps)

    @property
    def _image_policy(self) -> ImageKeyPolicy:
        policy = self.policy
        return ImageKeyPolicy(
            gain_range=policy.gain_range,
            alpha=policy.alpha,
            offset_range=0.0,
            largest_condition=policy.largest_condition,
        )


@dataclass(frozen=True, eq=False)
class KeyedImageOwner(ImageOwner):
    """The owner of images under `KeyedInference`.

    Attributes:
        keyed: the network as it is sent.
        keys: the secret ones.
    """

    keyed: KeyedNetwork
    keys: InferenceKeys

    def network(self) -> bytes:
        """Every matrix that stands between spaces, float32."""
        parts: dict[str, Tensor] = {}
        for node, matrix in self.keyed.matrices.items():
            parts |= matrix_tensors(node, matrix.sorted_indices())
        return tensors_to_bytes(parts)

    def image(self, pixels: Tensor, *, eight_bit: bool) -> bytes:
        """The keyed image in float32 with the homogeneous 1, or as a picture."""
        keyed = encrypt_images(pixels[None], self.keys.image)[0]
        sent = _as_picture(keyed[:-1]) if eight_bit else keyed.astype(np.float32)
        return tensors_to_bytes({"image": torch.from_numpy(sent)})


def _as_picture(values: Floats) -> np.ndarray:
    """Stretched to the grey levels 0 to 255, and rounded."""
    low, high = values.min(), values.max()
    return np.round((values - low) / max(high - low, np.finfo(np.float64).tiny) * 255).astype(np.uint8)


def _shapes(traced: ToeplitzNetwork) -> dict[str, tuple[int, int]]:
    """The shapes of the homogeneous matrices of a network, by node."""
    sizes = [space.size for space in traced.spaces]
    return {step.node: step.layout.shape for step in traced.linear} | {
        step.node: (sizes[step.space] + 1, sum(sizes[space] for space in step.source_spaces) + 1)
        for step in traced.steps
        if isinstance(step, Concatenation)
    }
