"""Where the paper's procedure changes a figure, each with the figure that shows it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmark.reproduce.pride import printed
from benchmark.reproduce.pride.exchange import PRECISION_AS_CODED, ROWS
from benchmark.reproduce.pride.models import LinearModel
from benchmark.store.documents import Deviation
from benchmark.store.pride import Column, KeyLength, ModelResult, SliceResult
from defenses.paillier.pride import arithmetic


def deviations(
    models: Sequence[ModelResult], slices: Sequence[SliceResult], cloud: LinearModel, key_lengths: Sequence[KeyLength]
) -> list[Deviation]:
    """The paper's deviations in the order in which a reader of its tables meets them."""
    on_all = {(row.model, row.column): row.accuracy_on_all for row in models}

    def percent(model: str, column: Column = "sound") -> str:
        """Accuracy on all test images, on which alone models can be compared."""
        value = on_all[model, column]
        assert value is not None, "every computed model is scored on all test images"
        return f"{100 * value:.2f}%"

    found = [one.accuracy for one in slices]
    sent, everything = len(ROWS) * cloud.weights.shape[1], cloud.weights.size + len(cloud.intercepts)
    rounded = arithmetic.as_encoded(cloud.rows(ROWS), PRECISION_AS_CODED)
    least, most = (1000 * seconds for seconds in printed.cryptography_seconds_per_weight())
    lengths = ", ".join(f"{1000 * one.seconds_per_weight:.2f} ms at {one.bits} bits" for one in key_lengths)
    share = printed.SIZES[0] / sum(printed.SIZES)
    return [
        Deviation(
            "Each accuracy is on that party's own test slice: 200 images for the cloud and for every average, 10,000 for"
            " the baseline that they are compared with (printed: the six-party average is 1.25 points better).",
            f"One and the same model (the cloud's) scores {100 * min(found):.1f} to {100 * max(found):.1f}% on"
            f" {len(found)} slices of {slices[0].count} images, {percent('party 0')} on all.",
        ),
        Deviation(
            "Parties 2 (3,000 points) and 5 (300 points) are printed with the time and accuracy of the 60,000-point"
            " baseline: 91.78% and 91.80%, 54.20 s and 53.3 s.",
            f"Trained on their own points they score {percent('party 2')} and {percent('party 5')} on all test images; the"
            f" baseline {percent('centralised')}.",
        ),
        Deviation(
            "coef_[0] and coef_[1] are averaged as if they were weights and bias; they are the rows of the classes 0 and 1.",
            f"{sent:,} of {everything:,} parameters are averaged, {100 * sent / everything:.0f}%; eight rows and all"
            f" intercepts stay the cloud's. On all test images the cloud alone scores {percent('party 0')}, six parties as"
            f" coded (1e-7) {percent('six parties', 'coded-1e-7')}, FedAvg of all coefficients {percent('six parties')}.",
        ),
        Deviation(
            "The six-party formula sums what the parties return, each with the cloud's weights in it, and divides by their"
            " number and by 2.",
            f"The cloud, which has {100 * share:.1f}% of the points, has weight 1/2; each party 1/10, whatever its size.",
        ),
        Deviation(
            "encrypt(value, precision=7) asks phe for a step of 1, not for seven digits.",
            f"{100 * np.mean(rounded == 0):.1f}% of the cloud's {sent:,} weights encrypt to 0 (largest"
            f" {np.abs(cloud.rows(ROWS)).max():.2f}). Six parties: {percent('six parties', 'coded')} with precision=7,"
            f" {percent('six parties', 'coded-1e-7')} with 1e-7, on all test images.",
        ),
        Deviation(
            "The printed two-party times, less both trainings, leave"
            f" {least:.2f} to {most:.2f} ms for one weight's encryption, addition and decryption.",
            f"phe takes {lengths} on this machine.",
        ),
    ]
