"""Key-Net's pixel keys on logistic regression: leaks, one image and one step each, matched with public images."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import torch
from torch import Tensor

from attacks.adaptive.statistics.matching import match_pixels
from benchmark.metrics.pixel import psnr, to_eight_bit
from benchmark.speed.attacks.figures import Figure
from defenses.keynet.pixel_defense import KeyNetToeplitz
from defenses.keynet.pixel_form import PixelForm
from defenses.keynet.pixel_keys import draw_pixel_keys
from defenses.keynet.pixel_transform import PixelTransform
from federation.datasets import Dataset
from federation.models import build_model
from federation.network import Network
from federation.normalisation import Normalisation
from federation.secret_root import SecretRoot
from federation.seeds import torch_generator
from federation.threat import Auxiliary
from federation.training import cross_entropy_gradients
from federation.weights import weights_of

LEAST_PSNR = {1.0: 38.0, 2.0: 26.0}
"""Decibels to reach from 100 leaks, by the range of the gains."""

_RATE = 0.1


def leak_figures(digits: Dataset, leaks: int) -> list[Figure]:
    """PSNR of all leaked images, without gains and with gains on [1/2, 2]."""
    normalisation = Normalisation(digits.mean, digits.deviation)
    images = digits.victims.images[:leaks]
    public = Auxiliary(digits.auxiliary.pixels(), digits.auxiliary.labels)
    figures = []
    for gain_range, least in LEAST_PSNR.items():
        keyed, labels = keyed_images(digits, leaks, KeyNetToeplitz(gain_range=gain_range))
        begun = time.perf_counter()
        found = match_pixels(
            keyed, labels, public, normalisation=normalisation, gain_range=gain_range,
            generator=torch_generator("keynet-statistics"),
        )  # fmt: skip
        seconds = time.perf_counter() - begun
        reached = psnr(images, to_eight_bit(found.images(keyed, normalisation, digits.image_shape)))
        gains = f"gains up to {gain_range:g}x" if gain_range > 1 else "no gains"
        figures.append(
            Figure(
                f"keynet-statistics, logistic regression, {leaks} leaks, {gains}: PSNR",
                float(reached.mean()),
                "dB",
                required=least,
                detail=f"all {leaks} digits, {len(public.labels)} public ones, {seconds:.1f} s",
            )
        )
    return figures


def keyed_images(digits: Dataset, count: int, defense: KeyNetToeplitz) -> tuple[Tensor, Tensor]:
    """What one-image updates of a logistic regression give away: keyed images, and numbers of their classes.

    A row of the keyed update over its entry in the bias column is the keyed image (Gusain 2021, eq. 2.2), the same in
    every row; the class is that of the row whose bias grows. Returns [N, pixels], [N].
    """
    shape, classes = digits.image_shape, digits.class_count
    network = Network(partial(build_model, "logistic", shape, classes, seed=0), shape, classes)
    form = PixelForm.of(network)
    transform = PixelTransform(form, draw_pixel_keys(form, SecretRoot.fresh(), defense.policy))
    model = network.build()
    before = weights_of(model)
    pixels = Normalisation(digits.mean, digits.deviation).apply(digits.victims.pixels()[:count])
    (layer,) = form.layers

    def sent(weights: dict[str, Tensor]) -> np.ndarray:
        return transform.protect(weights).matrices[layer].toarray()[:-1]

    start = sent(before)
    images, labels = [], []
    for index in range(count):
        gradients = cross_entropy_gradients(model, pixels[index : index + 1], digits.victims.labels[index : index + 1])
        moved = sent({name: tensor - _RATE * gradients[name] for name, tensor in before.items()}) - start
        row = int(np.abs(moved[:, -1]).argmax())
        images.append(moved[row, :-1] / moved[row, -1])
        labels.append(int(moved[:, -1].argmax()))
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)
