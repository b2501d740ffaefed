"""No defense: float32 weights as they are. The base line, and the codec under every stack that names none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import scipy.sparse
import torch
from torch import Tensor

from defenses.base import Claim, Magnitudes, uniform_claim
from defenses.inference import ImageOwner, Inference
from defenses.registry import DEFENSES
from defenses.stages import Admit, ClientCodec, Codec, KeyMaterial, ServerCodec
from federation.messages import tensors_from_bytes, tensors_to_bytes
from federation.network import Network
from federation.protocol import RoundContext
from federation.secret_root import SecretRoot
from federation.weights import Kind, Layout, TensorSpec, Weights, weighted_mean


@DEFENSES.register("plain")
@dataclass(frozen=True)
class Plain(Codec):
    """FedAvg without protection: the full weights in float32 (safetensors) up and down."""

    name: ClassVar[str] = "plain"

    @property
    def inference(self) -> Inference:
        """On images as they are."""
        return OpenInference()

    def claims(self, network: Network) -> Mapping[str, Claim]:
        """Everything is in plain."""
        return uniform_claim(network.layout, Claim.PLAIN)

    def stated_error(self, magnitudes: Magnitudes) -> float:
        """One rounding of the float64 mean to float32: half a unit in the last place."""
        return magnitudes.weights * 2.0**-24

    def leaky_twin(self) -> Plain:
        """Itself: there is nothing to give away."""
        return self

    def client(self, name: str, material: KeyMaterial, network: Network) -> ClientCodec:
        """A client's part; no key is needed."""
        return PlainClient(network.layout)

    def server(self, material: KeyMaterial, network: Network) -> ServerCodec:
        """The server's part; no key is needed."""
        return PlainServer(network.layout)


class OpenServer(ServerCodec):
    """The server's part of any codec whose global message is plain float32 tensors."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def remap(self, payload: bytes, change: Callable[[Weights], Weights]) -> bytes:
        """See `ServerCodec.remap`."""
        return tensors_to_bytes(change(tensors_from_bytes(payload, self._layout, "global message")))

    def mean(self, contributions: Mapping[str, Weights], context: RoundContext, admit: Admit) -> bytes:
        """The weighted mean of decoded contributions, as a global message."""
        admitted = [admit(sender, weights) for sender, weights in contributions.items()]
        shares = [context.share(sender) for sender in contributions]
        return tensors_to_bytes(weighted_mean(self._layout, admitted, shares))


class PlainClient(ClientCodec):
    """The client's part of `Plain`."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def encode_initial(self, weights: Weights, context: RoundContext) -> bytes:
        """The weights as they are."""
        return tensors_to_bytes(weights)

    def encode(self, weights: Weights, base: Weights, context: RoundContext) -> bytes:
        """The weights as they are."""
        return tensors_to_bytes(weights)

    def decode(self, payload: bytes) -> Weights:
        """See `ClientCodec.decode`."""
        return tensors_from_bytes(payload, self._layout, "global message")

    def decode_upload(self, payload: bytes, base: Weights, share: float) -> Weights:
        """See `ClientCodec.decode_upload`."""
        return tensors_from_bytes(payload, self._layout, "contribution")


class PlainServer(OpenServer):
    """The server's part of `Plain`."""

    def combine(self, uploads: Mapping[str, bytes], base: bytes, context: RoundContext, admit: Admit) -> bytes:
        """FedAvg's weighted mean."""
        contributions = {
            sender: tensors_from_bytes(payload, self._layout, f"contribution of {sender}")
            for sender, payload in uploads.items()
        }
        return self.mean(contributions, context, admit)


class OpenInference(Inference):
    """Inference in the clear: whoever runs the network gets it, and the images, as they are."""

    def owner(self, network: Network, weights: Weights, root: SecretRoot) -> ImageOwner:
        """An owner without keys."""
        return OpenImageOwner(weights)

    def read_network(self, payload: bytes, network: Network) -> Mapping[str, scipy.sparse.csr_array]:
        """No layers: the network is a message that can be read, and is its weights."""
        tensors_from_bytes(payload, network.layout, "served network")
        return {}

    def read_image(self, payload: bytes, network: Network) -> Tensor:
        """The image, flat."""
        spec = TensorSpec("image", network.image_shape, torch.float32, Kind.PARAMETER)
        return tensors_from_bytes(payload, [spec], "served image")["image"].flatten()


class OpenImageOwner(ImageOwner):
    """The owner of images that are sent as they are, in float32."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def network(self) -> bytes:
        """The weights."""
        return tensors_to_bytes(self._weights)

    def image(self, pixels: Tensor, *, eight_bit: bool) -> bytes:
        """The image; nothing stretches it."""
        return tensors_to_bytes({"image": pixels.float()})
