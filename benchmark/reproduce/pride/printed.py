"""The figures that the paper prints (Pavlak 2018), and what follows from them by arithmetic alone."""

from __future__ import annotations

from benchmark.store.pride import ModelResult, Times

SIZES = (1_200, 30_000, 3_000, 1_200, 12_000, 300)
"""Training points of party 0 (the cloud) to 5."""

CENTRALISED = 60_000

TEST = 10_000

SLICES = tuple(size * TEST // CENTRALISED for size in SIZES)
"""Test points of each party's own slice: 200, 5,000, 500, 200, 2,000, 50. Inferred: the printed accuracies of parties 0,
1, 3 and 4 are whole counts out of 200, 5,000, 200 and 2,000, MNIST's own ratio of training to test points."""

WEIGHTS_SENT = 2 * 28 * 28
"""coef_[0] and coef_[1] of a classifier of 28 x 28 pixels."""

BASELINE_ACCURACY, BASELINE_SECONDS = 0.9175, 54.8
PARTY_ACCURACY = (0.8950, 0.9362, 0.9178, 0.8050, 0.8465, 0.9180)
PARTY_SECONDS = (1.06, 28.90, 54.20, 1.08, 9.63, 53.3)
PAIR_CHANGE = (0.04, 0.04, -0.05, -0.015, 0.05)
"""Change of accuracy by averaging the cloud with party 1 to 5."""
PAIR_SECONDS = (30.95, 56.29, 3.22, 11.66, 55.40)
"""Both trainings, encryption and decryption."""
SIX_ACCURACY, SIX_SECONDS_SEQUENCE, SIX_SECONDS_PARALLEL = 0.930, 149.97, 56.45

_BASELINES_FIGURES = "time and accuracy are those of the 60,000-point baseline"
_CHANGES = (
    f"printed as {', '.join(f'{100 * change:+g}%' for change in PAIR_CHANGE)}; taken as points on the cloud's 89.50%, which"
    " gives whole counts of 200"
)


def printed_results() -> list[ModelResult]:
    """The paper's figures as rows of the column "printed"; it prints confusion matrices too, not repeated here."""
    rows = [_row("centralised", BASELINE_ACCURACY, TEST, Times(train=BASELINE_SECONDS, sequence=BASELINE_SECONDS))]
    for party, (accuracy, seconds) in enumerate(zip(PARTY_ACCURACY, PARTY_SECONDS, strict=True)):
        suspect = party in (2, 5)
        times = Times(train=seconds, sequence=seconds)
        tested = None if suspect else SLICES[party]
        rows.append(_row(f"party {party}", accuracy, tested, times, _BASELINES_FIGURES if suspect else ""))
    for party, (change, seconds) in enumerate(zip(PAIR_CHANGE, PAIR_SECONDS, strict=True), start=1):
        accuracy = round(PARTY_ACCURACY[0] + change, 4)
        rows.append(_row(f"cloud + party {party}", accuracy, SLICES[0], Times(sequence=seconds), _CHANGES))
    six = Times(sequence=SIX_SECONDS_SEQUENCE, parallel=SIX_SECONDS_PARALLEL)
    return [*rows, _row("six parties", SIX_ACCURACY, SLICES[0], six)]


def cryptography_seconds_per_weight() -> list[float]:
    """Least and most that the printed times leave for one weight's encryption, addition and decryption.

    Of each two-party time, both trainings are taken off; the rest is shared by the 1,568 weights.
    """
    rests = [
        total - PARTY_SECONDS[0] - training for total, training in zip(PAIR_SECONDS, PARTY_SECONDS[1:], strict=True)
    ]
    return [min(rests) / WEIGHTS_SENT, max(rests) / WEIGHTS_SENT]


def _row(model: str, accuracy: float, tested_on: int | None, times: Times, note: str = "") -> ModelResult:
    return ModelResult(model, "printed", accuracy, tested_on, None, [], times, None, note)
