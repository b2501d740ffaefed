"""Digits as keyed images see them: as 8-bit pictures of ciphertexts, and compared up to what a layer leaves open."""

from __future__ import annotations

import numpy as np

SIDE, PIXELS, CAP = 28, 784, 60.0


def as_pictures(values: np.ndarray) -> np.ndarray:
    """Each stretched to the grey levels 0 to 255, and rounded."""
    low, high = values.min(1, keepdims=True), values.max(1, keepdims=True)
    return np.round((values - low) / (high - low) * 255)


def psnr(guesses: np.ndarray, truths: np.ndarray) -> float:
    """Mean in dB, in the best of the eight poses and with contrast and brightness fitted: what the layer leaves open."""
    found = []
    for guess, truth in zip(guesses.reshape(-1, SIDE, SIDE), truths, strict=True):
        errors = []
        for turned in (np.rot90(side, turns) for side in (guess, guess.T) for turns in range(4)):
            design = np.stack([turned.ravel(), np.ones(PIXELS)], axis=1)
            fitted = design @ np.linalg.lstsq(design, truth, rcond=None)[0]
            errors.append(np.mean((np.clip(np.round(fitted), 0, 255) - truth) ** 2))
        found.append(min(CAP, 10 * np.log10(255**2 / max(min(errors), 1e-9))))
    return float(np.mean(found))
