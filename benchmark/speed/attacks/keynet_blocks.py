"""Key-Net's blockwise keys, which mix pixels: keyed images as 8-bit pictures, opened with the first layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.sparse
from torch import Tensor

from attacks.adaptive.grid.mixed import block_entries
from attacks.adaptive.grid.template import ConvolutionTemplate, Integers
from attacks.adaptive.keynet_image import RecoveredImages, recover_images
from benchmark.speed.attacks.figures import Figure
from benchmark.speed.attacks.keynet_pixels import as_pictures, lenet5, opening_figures
from defenses.keynet.inference_keys import draw_inference_keys
from defenses.keynet.pixel_form import PixelForm
from federation.secret_root import SecretRoot, SecretStream
from federation.weights import weights_of

SIDE, SHAPE = 4, (1, 28, 28)
LARGEST_GAIN, LARGEST_OFFSET = 2.0, 255.0
"""Gains are uniform between 1 and the one, offsets between 0 and the other, in grey levels."""
BLOCK_PSNR, BLOCK_PSNR_AIM = 30.0, 35.0
_LARGEST_SHARE = 0.25

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BlockKey:
    """An image key that repeats v = diag(g) Q x + t on every block, as the authors' package draws it.

    Attributes:
        inside: diag(g) Q, [m, m]; Q is doubly stochastic, between two permutations.
        offsets: t, [m].
        blocks: [blocks, m], the entries of each.
    """

    inside: Floats
    offsets: Floats
    blocks: Integers

    @classmethod
    def draw(cls, blocks: Integers, stream: SecretStream) -> BlockKey:
        """Gains and offsets as above; Q mixes each pixel with up to two others, which do not outweigh it together."""
        size = blocks.shape[1]
        before, after = np.eye(size)[stream.permutation(size)], np.eye(size)[stream.permutation(size)]
        given = _LARGEST_SHARE * stream.uniform(size - 1)  # between neighbours, as much as is taken
        kept = 1 - np.append(given, 0) - np.append(0, given)
        shares = np.diag(kept) + np.diag(given, 1) + np.diag(given, -1)
        gains = 1 + (LARGEST_GAIN - 1) * stream.uniform(size)
        return cls(gains[:, None] * (before @ shares @ after), LARGEST_OFFSET * stream.uniform(size), blocks)

    def encrypted(self, images: npt.NDArray[np.uint8]) -> Floats:
        """Images [N, entries] under the key."""
        keyed = np.empty(images.shape)
        keyed[:, self.blocks] = images[:, self.blocks] @ self.inside.T + self.offsets
        return keyed

    @property
    def inverse(self) -> scipy.sparse.csr_array:
        """The homogeneous matrix that undoes it, [entries + 1, entries + 1]."""
        inverse, size = np.linalg.inv(self.inside), self.blocks.size
        rows, columns = np.broadcast_arrays(self.blocks[:, :, None], self.blocks[:, None, :])
        values = np.broadcast_to(inverse, rows.shape)
        linear = scipy.sparse.csr_array((values.ravel(), (rows.ravel(), columns.ravel())), shape=(size, size))
        shift = np.empty((size, 1))
        shift[self.blocks, 0] = -inverse @ self.offsets
        return scipy.sparse.csr_array(scipy.sparse.block_array([[linear, shift], [None, np.ones((1, 1))]]))


def block_figures(images: Tensor, repeats: int) -> list[Figure]:
    """Images (uint8 [N, 1, 28, 28]) whose pixels are mixed within tiles, opened with LeNet-5's first layer."""
    network, root = lenet5(), SecretRoot.fresh()
    form = PixelForm.of(network)
    step = form.layers["conv1"]
    rows = draw_inference_keys(form.network, root.derive("maps")).spaces[step.space]
    key = BlockKey.draw(block_entries(SHAPE, (SIDE, SIDE), "tiles"), root.derive("image").reader())
    plain = step.layout.matrix(step.fill(weights_of(network.build())))
    layer = scipy.sparse.csr_array(rows.matrix @ plain @ key.inverse)
    pictures = as_pictures(key.encrypted(images.flatten(1).numpy()))
    template = ConvolutionTemplate.of(SHAPE, 6, (5, 5), padding=(2, 2))

    def attack() -> RecoveredImages:
        return recover_images(layer, pictures, replace(template), grey_levels=True, blocks=key.blocks)

    return opening_figures(
        f"keynet-image, pixels mixed in {SIDE}x{SIDE} blocks",
        attack,
        images,
        repeats,
        (BLOCK_PSNR, BLOCK_PSNR_AIM),
        f"gains up to {LARGEST_GAIN:g}x, offsets of a grey scale",
    )
