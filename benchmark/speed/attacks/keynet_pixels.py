"""Key-Net's pixel keys: layers of LeNet-5 opened from one message each, and keyed images opened with the first layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import scipy.sparse
from torch import Tensor

from attacks.adaptive.grid.gains import LayerKey
from attacks.adaptive.grid.layer import recover_layer
from attacks.adaptive.grid.template import ConvolutionTemplate, posed
from attacks.adaptive.keynet_image import RecoveredImages, recover_images
from benchmark.metrics.pixel import FULL_SCALE, PSNR_CAP
from benchmark.speed.attacks.figures import Figure
from benchmark.speed.measure import interleaved_medians
from defenses.keynet.image_key import ImageKey
from defenses.keynet.inference import KeyedNetwork, encrypt_images
from defenses.keynet.inference_keys import draw_inference_keys
from defenses.keynet.pixel import PixelKey
from defenses.keynet.pixel_defense import KeyNetToeplitz
from defenses.keynet.pixel_form import PixelForm
from defenses.keynet.pixel_keys import draw_pixel_keys
from defenses.keynet.pixel_transform import PixelTransform
from federation.models import build_model
from federation.network import Network
from federation.secret_root import SecretRoot
from federation.weights import weights_of

LAYERS = ("conv1", "conv2")
LAYER_SECONDS, LAYER_AIM = 10.0, 1.0
IMAGE_SECONDS, IMAGE_AIM = 5.0, 1.0
LARGEST_GAIN = 101.0
"""Gains of the authors' package are uniform between 1 and this."""
IMAGE_PSNR, IMAGE_PSNR_AIM = 38.0, 41.0


def lenet5() -> Network:
    """LeNet-5 on grey images of 28x28 pixels."""
    shape = (1, 28, 28)
    return Network(partial(build_model, "lenet5", shape, 10, seed=0), shape, 10)


@dataclass(frozen=True)
class KeyedLayer:
    """A layer as a client sends it under `keynet-toeplitz`, and the key of the space that it reads.

    Attributes:
        matrix: What.
        template: what everybody knows of the layer.
        source: the referee's.
    """

    matrix: scipy.sparse.csr_array
    template: ConvolutionTemplate
    source: PixelKey

    def recovered(self) -> LayerKey:
        """The attack, with a template of its own that nothing was worked out for."""
        return recover_layer(self.matrix, replace(self.template))

    def placed(self, found: LayerKey) -> float:
        """Share of the pixels in their place, in the best of the poses that the layer cannot tell apart."""
        true = self.source.permutation[found.places.columns] % self.template.pixels
        grid = np.arange(self.template.pixels).reshape(self.template.source)
        return max(
            float(np.mean(true == self.template.moved(grid, pose).reshape(-1, 1))) for pose in self.template.symmetries
        )

    def gain_error(self, found: LayerKey) -> float:
        """Largest error of log gains, less what the layer leaves open: a factor a channel."""
        errors = np.log(found.columns / self.source.gains[found.places.columns])
        return float(np.abs(errors - errors.mean(0)).max())


def keyed_layers(network: Network, defense: KeyNetToeplitz) -> dict[str, KeyedLayer]:
    """The convolutions of LeNet-5 under one fresh set of keys."""
    form = PixelForm.of(network)
    keys = draw_pixel_keys(form, SecretRoot.fresh(), defense.policy)
    sent = PixelTransform(form, keys).protect(weights_of(network.build()))
    found, spaces = {}, form.network.spaces
    for name in LAYERS:
        step = form.layers[name]
        source = step.source_spaces[0]
        template = ConvolutionTemplate.of_layer(network, step, spaces[source], spaces[step.space])
        assert template is not None, "an ungrouped convolution"
        found[name] = KeyedLayer(sent.matrices[name], template, keys.spaces[source])
    return found


def grid_figures(repeats: int) -> list[Figure]:
    """Places and seconds of each convolution, alpha 1, gains on [1/2, 2]."""
    layers = keyed_layers(lenet5(), KeyNetToeplitz(alpha=1))
    seconds = interleaved_medians({name: layer.recovered for name, layer in layers.items()}, repeats)
    figures = []
    for name, layer in layers.items():
        found = layer.recovered()
        entries = f"{layer.template.pixels} pixels in {layer.template.inputs} channels"
        figures += [
            Figure(
                f"keynet-grid, LeNet-5 {name}: pixels placed rightly",
                100 * layer.placed(found),
                "%",
                required=100.0,
                aim=100.0,
                detail=f"{entries}; largest error of log gains {layer.gain_error(found):.0e}",
            ),
            Figure(
                f"keynet-grid, LeNet-5 {name}: seconds a layer",
                seconds[name],
                "s",
                required=LAYER_SECONDS,
                aim=LAYER_AIM,
                lower_is_better=True,
                detail=f"median of {repeats}",
            ),
        ]
    return figures


def image_figures(images: Tensor, repeats: int) -> list[Figure]:
    """Images (uint8 [N, 1, 28, 28]) keyed by a permutation and gains, as 8-bit pictures, opened with the first layer."""
    network = lenet5()
    form = PixelForm.of(network)
    root = SecretRoot.fresh()
    drawn = draw_inference_keys(form.network, root.derive("maps"))
    image_key = permutation_with_gains(drawn.image.size, LARGEST_GAIN, root.derive("image"))
    keyed = KeyedNetwork.of(form.network, weights_of(network.build()), (image_key, *drawn.maps))
    layer = keyed.matrices[form.layers[LAYERS[0]].node]
    pictures = as_pictures(encrypt_images(images.double() / FULL_SCALE, image_key)[:, :-1])
    template = ConvolutionTemplate.of((1, 28, 28), 6, (5, 5), padding=(2, 2))

    def attack() -> RecoveredImages:
        return recover_images(layer, pictures, replace(template), grey_levels=True)

    label = f"keynet-image, permutation and gains up to {LARGEST_GAIN:g}x"
    return opening_figures(label, attack, images, repeats, (IMAGE_PSNR, IMAGE_PSNR_AIM), "")


def opening_figures(
    label: str,
    attack: Callable[[], RecoveredImages],
    images: Tensor,
    repeats: int,
    decibels: tuple[float, float],
    key: str,
) -> list[Figure]:
    """How well and how fast 8-bit pictures of keyed images open.

    Args:
        label: of the case.
        attack: opens them.
        images: uint8 [N, 1, 28, 28], the truth.
        repeats: how often it is timed.
        decibels: required, and the aim.
        key: what else is to be said of it.
    """
    seconds = interleaved_medians({"images": attack}, repeats)["images"]
    found = attack()
    return [
        Figure(
            f"{label}, 8-bit: PSNR",
            float(np.mean(best_psnr(found.images[:, 0], images[:, 0].numpy(), found.poses))),
            "dB",
            required=decibels[0],
            aim=decibels[1],
            detail="; ".join(filter(None, [f"{len(images)} digits under one key", key])),
        ),
        Figure(
            f"{label}: seconds for {len(images)} images",
            seconds,
            "s",
            required=IMAGE_SECONDS,
            aim=IMAGE_AIM,
            lower_is_better=True,
            detail=f"median of {repeats}",
        ),
    ]


def permutation_with_gains(size: int, largest: float, root: SecretRoot) -> ImageKey:
    """An image key as the authors' package draws it: gains uniform on [1, largest], no offsets."""
    stream = root.reader()
    gains = 1 + (largest - 1) * stream.uniform(size)
    return ImageKey(PixelKey(stream.permutation(size)[None], np.ones(1), gains), np.zeros(size))


def as_pictures(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Values [N, n], each row stretched to its range and rounded to 8 bits, as images are stored."""
    low, high = values.min(1, keepdims=True), values.max(1, keepdims=True)
    return np.asarray(np.round((values - low) / (high - low) * FULL_SCALE))


def best_psnr(
    guesses: npt.NDArray[np.float64], truths: npt.NDArray[np.uint8], poses: Sequence[int]
) -> npt.NDArray[np.float64]:
    """PSNR [N] of guesses [N, H, W], each in the pose, contrast and brightness that fit best, at 8 bits, at most 60 dB."""
    reached = np.empty(len(guesses))
    for index, (guess, truth) in enumerate(zip(guesses, truths.astype(np.float64), strict=True)):
        errors = []
        for turned in (posed(guess, pose) for pose in poses):
            design = np.stack([turned.ravel(), np.ones(turned.size)], axis=1)
            fitted = design @ np.linalg.lstsq(design, truth.ravel(), rcond=None)[0]
            errors.append(np.mean((np.clip(np.round(fitted), 0, FULL_SCALE) - truth.ravel()) ** 2))
        reached[index] = min(PSNR_CAP, 10 * np.log10(FULL_SCALE**2 / max(min(errors), 1e-9)))
    return reached
