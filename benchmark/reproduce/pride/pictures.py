"""Pictures from weights: an update of one image shows the image, trained weights show a blend of all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from phe.paillier import PaillierPublicKey
from scipy.special import expit

from attacks.adaptive.paillier_quotient import quotient_weights
from benchmark.metrics.pixel import PSNR_CAP, psnr, to_eight_bit
from benchmark.reproduce.pride import wire
from benchmark.reproduce.pride.exchange import ROWS
from benchmark.reproduce.pride.models import LinearModel
from benchmark.reproduce.pride.parties import Party, Points
from defenses.paillier.pride import arithmetic

RATE = 0.1
"""Learning rate of the one step; what is recovered does not depend on it."""

_TINY = float(np.finfo(float).tiny)


@dataclass(frozen=True, eq=False)
class Picture:
    """Something seen in weights.

    Attributes:
        label: class of the image, or the class whose row is shown.
        original, shown: uint8 [28, 28].
        psnr: dB, of `shown` as stored for an update, of the best rescaling for a weight image.
        reference_psnr: dB, the same of the party's mean image; for weight images.
    """

    label: int
    original: NDArray[np.uint8]
    shown: NDArray[np.uint8]
    psnr: float
    reference_psnr: float | None = None


class OneImageUpdates:
    """A party that starts from the cloud's model takes one gradient step on one image and sends as the paper does.

    The reader holds no key, only the broadcast, the upload and the weights before. It reads the weights after by the
    quotient. The gradient of row i is (sigma(z_i) - y_i) * x, that of the intercept is its first factor.
    """

    def __init__(self, model: LinearModel, broadcast: bytes, precision: float, public_key: PaillierPublicKey) -> None:
        """Encrypt the cloud's intercepts of the same rows beside its broadcast, for the comparison with eq. 2.2."""
        self._model = model
        self._public_key = public_key
        self._rows = broadcast
        intercepts = arithmetic.encrypt(model.intercepts[list(ROWS)], self._public_key, absolute_precision=precision)
        self._intercepts = wire.written(intercepts, randomised=False)

    def seen(self, image: NDArray[np.uint8], label: int) -> tuple[Picture, Picture]:
        """The image as read from the two rows alone, its brightest pixel set to 1, and by eq. 2.2 from row and intercept.

        Eq. 2.2 (Gusain 2021) is dL/dW[i, :] / dL/db[i] = x. The paper sends no intercepts, so that its readers miss
        the scale; digits of MNIST reach white.
        """
        after = self._stepped(image / 255, label)
        rows = self._read(self._rows, after.rows(ROWS)).reshape(len(ROWS), -1) - self._model.weights[list(ROWS)]
        intercepts = self._read(self._intercepts, after.intercepts[list(ROWS)]) - self._model.intercepts[list(ROWS)]
        strongest = int(np.abs(intercepts).argmax())
        row = rows[strongest]
        by_rows = row / row[np.abs(row).argmax()]
        return _picture(image, label, by_rows), _picture(image, label, row / intercepts[strongest])

    def _stepped(self, pixels: NDArray[np.float64], label: int) -> LinearModel:
        """One step of gradient descent on the one-vs-rest logistic loss of one image."""
        model = self._model
        factors = expit(model.weights @ pixels + model.intercepts)
        factors[label] -= 1
        return LinearModel(model.weights - RATE * np.outer(factors, pixels), model.intercepts - RATE * factors)

    def _read(self, broadcast: bytes, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """What a reader of the wire gets when the party adds `values` to `broadcast` and sends half of the sum."""
        sums = arithmetic.add_plain(wire.opened(broadcast, self._public_key), values)
        upload = wire.written(arithmetic.divide(sums, 2), randomised=False)
        return quotient_weights(wire.read(broadcast), wire.read(upload), divided_by=2)


def first_of_each_class(points: Points) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """One image a class, the first in the points' order, and its label."""
    for label in np.unique(points.labels):
        yield points.images[np.argmax(points.labels == label)], int(label)


def weight_images(model: LinearModel, party: Party) -> list[Picture]:
    """Each row of weights as a picture, beside the training image that its best rescaling comes nearest to."""
    images = party.training.images
    nearest, closeness = nearest_images(np.vstack([model.weights, images.mean(axis=0)]), party.training)
    pictures = []
    for label, row in enumerate(model.weights):
        # Grey is 0, so that the background of weights that never moved looks the same in every picture.
        shown = _stored(0.5 + 0.5 * row / max(np.abs(row).max(), _TINY))
        original = _square(images[nearest[label]])
        pictures.append(Picture(label, original, shown, float(closeness[label]), float(closeness[-1])))
    return pictures


def nearest_images(templates: NDArray[np.float64], points: Points) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each template t the point that a * t + b comes nearest to, a and b fitted to each point, and its PSNR in dB.

    The residual of that least-squares fit is the centred image without its component along the centred template.

    Args:
        templates: [count, pixels].

    Returns:
        [count] indices of points, and [count] PSNR at data range 1, capped at `PSNR_CAP`.
    """
    directions = templates - templates.mean(axis=1, keepdims=True)
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), _TINY)
    images = points.pixels
    images -= images.mean(axis=1, keepdims=True)
    residuals = np.square(images).sum(axis=1, keepdims=True) - np.square(images @ directions.T)
    errors = np.maximum(residuals / images.shape[1], 10 ** (-PSNR_CAP / 10))
    return errors.argmin(axis=0), -10 * np.log10(errors.min(axis=0))


def _picture(image: NDArray[np.uint8], label: int, recovered: NDArray[np.float64]) -> Picture:
    original, shown = _square(image), _stored(recovered)
    pair = [torch.from_numpy(one)[None, None] for one in (original, shown)]
    return Picture(label, original, shown, float(psnr(*pair)))


def _stored(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    return to_eight_bit(torch.from_numpy(_square(values))[None, None])[0, 0].numpy()


def _square(row: NDArray) -> NDArray:
    side = round(np.sqrt(row.size))
    return row.reshape(side, side)
