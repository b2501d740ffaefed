"""What each adversary of the paper's protocol recovers of the weights, measured on the messages that were sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from phe.paillier import PaillierPrivateKey

from attacks.adaptive.difference import other_contribution
from attacks.adaptive.exponent_leak import ZERO_EXPONENT, entropy
from attacks.adaptive.paillier_quotient import quotient_weights
from attacks.adaptive.selection import averaged, selected_party
from benchmark.reproduce.pride import wire
from benchmark.reproduce.pride.exchange import ROWS, Exchange
from benchmark.reproduce.pride.models import LinearModel
from benchmark.store.pride import AdversaryResult
from defenses.paillier.pride import arithmetic

WIRE, CLOUD, FELLOW = "anyone on the wire", "the cloud", "a fellow party"
NO_KEY = "nothing: public messages alone"
BIT_EXACT = "weights recovered bit-exactly"
LARGEST_ERROR = "largest error of a weight"

COUNT = 6
"""How many adversaries `measured` yields."""


def measured(
    exchange: Exchange, models: Sequence[LinearModel], private_key: PaillierPrivateKey
) -> Iterator[tuple[str, list[AdversaryResult]]]:
    """Every adversary in turn, with a word for the progress bar.

    Args:
        exchange: what was sent, and the averages that the cloud decrypted.
        models: of party 0 (the cloud) to 5; the truth.
        private_key: the cloud's. Beyond the cloud's own attack it serves to re-randomise one message for the control,
            which takes the public half alone.
    """
    rows = [model.rows(ROWS) for model in models]
    yield "quotients", _by_quotient(exchange, rows)
    yield "quotients of re-randomised messages", [_re_randomised(exchange, rows, private_key)]
    yield "exponents", _by_exponents(exchange, rows)
    yield "the cloud", _by_the_cloud(exchange, rows, private_key)
    yield "fellow parties", _by_fellows(exchange, rows)
    yield "selection", [_by_selection(exchange, rows)]


def _by_quotient(exchange: Exchange, rows: Sequence[NDArray[np.float64]]) -> list[AdversaryResult]:
    broadcast = wire.read(exchange.broadcast)
    halves = [quotient_weights(broadcast, wire.read(upload.half), divided_by=2) for upload in exchange.uploads]
    totals = [quotient_weights(broadcast, wire.read(upload.total)) for upload in exchange.uploads]
    return [
        _share(WIRE, NO_KEY, f"parties 1 to 5, from {what} and the broadcast", BIT_EXACT, found, rows[1:], note)
        for what, found, note in (
            ("(E(w_0) + w_k) / 2", halves, "two-party messages"),
            ("E(w_0) + w_k", totals, "six-party messages"),
        )
    ]


def _re_randomised(
    exchange: Exchange, rows: Sequence[NDArray[np.float64]], private_key: PaillierPrivateKey
) -> AdversaryResult:
    """The control: the same message of party 1, multiplied by fresh n-th residues before it is sent."""
    sums = wire.opened(exchange.uploads[0].total, private_key.public_key)
    upload = wire.read(wire.written(sums, randomised=True))
    found = quotient_weights(wire.read(exchange.broadcast), upload)
    target = "party 1, from E(w_0) + w_1 re-randomised before sending"
    return _share(WIRE, NO_KEY, target, BIT_EXACT, [found], rows[1:2], "phe's ciphertext() or obfuscate(); control")


def _by_exponents(exchange: Exchange, rows: Sequence[NDArray[np.float64]]) -> list[AdversaryResult]:
    exponents = [wire.read(upload.total).exponents for upload in exchange.uploads]
    marked = np.concatenate(exponents) == ZERO_EXPONENT
    zeros = np.concatenate(rows[1:]) == 0
    target = "parties 1 to 5, from the exponents beside the ciphertexts"
    note = "re-randomising does not hide exponents"

    def row(measure: str, value: float, unit: str, cases: int, note: str) -> AdversaryResult:
        return AdversaryResult(WIRE, NO_KEY, target, measure, value, "bits" if unit == "bits" else "share", cases, note)

    found = int((marked & zeros).sum())
    return [
        row("leaked a weight", float(np.mean([entropy(each) for each in exponents])), "bits", marked.size, note),
        row("zero weights that are marked", _ratio(found, int(zeros.sum())), "share", int(zeros.sum()), note),
        row(
            "marked weights that are zero",
            _ratio(found, int(marked.sum())),
            "share",
            int(marked.sum()),
            "zero shares its exponent with weights of 1/16 to 1",
        ),
    ]


def _by_the_cloud(
    exchange: Exchange, rows: Sequence[NDArray[np.float64]], private_key: PaillierPrivateKey
) -> list[AdversaryResult]:
    own = arithmetic.as_encoded(rows[0], exchange.precision)
    holds = "the private key and its own weights"
    sums = wire.opened(exchange.uploads[0].total, private_key.public_key)
    # Subtracted before decryption, while numbers are exact: a float rounds once, at the end.
    exact = arithmetic.decrypt(private_key, arithmetic.add_plain(sums, -own))
    rounded = [other_contribution(average.values, own, 0.5) for average in exchange.pairs]
    return [
        _share(CLOUD, holds, "party 1, as D(c_1) - w_0", BIT_EXACT, [exact], rows[1:2], ""),
        _error(CLOUD, holds, "parties 1 to 5, as 2 * average - w_0", rounded, rows[1:], "averaging protects nothing"),
    ]


def _by_fellows(exchange: Exchange, rows: Sequence[NDArray[np.float64]]) -> list[AdversaryResult]:
    cloud = [
        other_contribution(average.values, own, 0.5) for average, own in zip(exchange.pairs, rows[1:], strict=True)
    ]
    remaining, left = exchange.six.values, 1.0
    own = arithmetic.as_encoded(rows[0], exchange.precision)
    for values, share in [(own, 0.5), *((party, 0.1) for party in rows[1:5])]:
        remaining, left = other_contribution(remaining, values, share / left), left - share
    note = f"the cloud's weights were rounded to multiples of {arithmetic.encoding_step(exchange.precision):.1e}"
    holds = "its own weights and the released average"
    return [
        _error(FELLOW, holds, "the cloud, as 2 * average - w_k", cloud, [rows[0]] * len(cloud), note),
        _error(
            "the cloud and parties 1 to 4",
            "their weights and the six-party average",
            "party 5, as what is left of the average",
            [remaining],
            rows[5:6],
            "any K - 1 of K parties",
        ),
    ]


def _by_selection(exchange: Exchange, rows: Sequence[NDArray[np.float64]]) -> AdversaryResult:
    """Each party's model was taken once: is it the one that is named?"""
    before = _tensors(rows[0])
    candidates = {f"party {number}": _tensors(values) for number, values in enumerate(rows[1:], start=1)}
    picked = [
        selected_party(before, candidates, _tensors(average.values), combine=averaged) for average in exchange.pairs
    ]
    right = sum(found.name == name for found, name in zip(picked, candidates, strict=True))
    return AdversaryResult(
        FELLOW,
        "the model before, the models sent (by the quotient) and the model after",
        "which party's model was averaged in",
        "rounds in which the right party is named",
        right / len(picked),
        "share",
        len(picked),
        f"least margin to the runner-up {min(found.margin for found in picked):.6f} of 1",
    )


def _share(
    adversary: str,
    holds: str,
    target: str,
    measure: str,
    found: Sequence[NDArray[np.float64]],
    truth: Sequence[NDArray[np.float64]],
    note: str,
) -> AdversaryResult:
    equal = np.concatenate(found) == np.concatenate(truth)
    return AdversaryResult(adversary, holds, target, measure, float(equal.mean()), "share", equal.size, note)


def _error(
    adversary: str,
    holds: str,
    target: str,
    found: Sequence[NDArray[np.float64]],
    truth: Sequence[NDArray[np.float64]],
    note: str,
) -> AdversaryResult:
    errors = np.abs(np.concatenate(found) - np.concatenate(truth))
    return AdversaryResult(adversary, holds, target, LARGEST_ERROR, float(errors.max()), "error", errors.size, note)


def _tensors(values: NDArray[np.float64]) -> dict[str, torch.Tensor]:
    return {"rows": torch.from_numpy(np.ascontiguousarray(values))}


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
