"""Inference by somebody else: what the owner of images sends to be classified, and what is read of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import scipy.sparse
from torch import Tensor

from federation.network import Network
from federation.secret_root import SecretRoot
from federation.weights import Weights

NETWORK_PHASE, IMAGE_PHASE = "served network", "served image"
"""Phases of the envelopes that carry the network, once, and each image."""


class ImageOwner(ABC):
    """Who has images and a network, and wants the one run on the other by somebody else; owns the keys."""

    @abstractmethod
    def network(self) -> bytes:
        """The network, as a message to whoever runs it."""

    @abstractmethod
    def image(self, pixels: Tensor, *, eight_bit: bool) -> bytes:
        """An image, as a message to the same.

        Args:
            pixels: [C, H, W], as the network reads images.
            eight_bit: whether it is stored as an 8-bit picture on its way, where it is sent in keyed form.
        """


class Inference(ABC):
    """How a defense has images classified by somebody else: public configuration."""

    @property
    def hidden_by(self) -> frozenset[str]:
        """The secret-keyed schemes between what is sent and what it means."""
        return frozenset()

    @abstractmethod
    def owner(self, network: Network, weights: Weights, root: SecretRoot) -> ImageOwner:
        """The owner of images, whose keys derive from `root` and only from it.

        Raises:
            UsageError: where the network cannot be run so; says why.
        """

    @abstractmethod
    def read_network(self, payload: bytes, network: Network) -> Mapping[str, scipy.sparse.csr_array]:
        """The layers of `KeyedImage` from the network's message, without any key; raises MalformedMessage."""

    @abstractmethod
    def read_image(self, payload: bytes, network: Network) -> Tensor:
        """The image of `KeyedImage` from an image's message, without any key; raises MalformedMessage."""

    def score_key_claims(self, claims: Mapping[str, Tensor], network: Network, root: SecretRoot) -> Mapping[str, float]:
        """How right claims about the keys that derive from `root` are; see `Defense.score_key_claims`."""
        return {}
