"""What `phe` leaves in clear beside every ciphertext: an exponent that follows the magnitude of the number.

`phe` writes a float as an integer times 16^e, with e as large as the float's 53 bits allow: numbers within one power of
16 share an exponent, and the exponent of a sum is the smaller of the two. Zero is encoded at 16^-14, like magnitudes in
[1/16, 1); where the model before says that the weight was small, that exponent stands for a weight of exactly zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from phe.encoding import EncodedNumber
from phe.paillier import PaillierPublicKey

from attacks.adaptive.encrypted_round import EncryptedRound
from attacks.adaptive.pride import STAGE
from attacks.adaptive.recovery import Recovery, WeightRecovery
from attacks.base import ATTACKS, Need
from federation.errors import MalformedMessage
from federation.threat import Observation, Victim

_KEY = PaillierPublicKey(2**1024)
"""Any modulus will do to ask `phe` for an exponent."""

ZERO_EXPONENT: int = EncodedNumber.encode(_KEY, 0.0).exponent
"""The exponent of an encoded 0.0: -14, which numbers of magnitude in [1/16, 1) share."""

_NEARER_TO_ZERO = 1 / 32
"""A weight under this is nearer to 0 than to 1/16."""


@ATTACKS.register("paillier-exponents")
@dataclass(frozen=True)
class PaillierExponents(WeightRecovery):
    """Measure what the exponents of an upload tell of the weights under encryption; it recovers none but zeros."""

    name: ClassVar[str] = "paillier-exponents"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TRANSCRIPT, Need.SCHEME})
    made_for: ClassVar[frozenset[str]] = frozenset({STAGE})
    figures_only: ClassVar[bool] = True

    def recover_hidden(self, observation: Observation, victim: Victim) -> Recovery:
        """No weights, but the exponents' entropy and the share of weights that they give away as zero."""
        try:
            read = EncryptedRound.of(observation, victim.sender)
        except MalformedMessage as error:
            return Recovery.nothing(str(error))
        before = read.rules.sent_values(read.before, observation.network.layout).numpy()
        zeros = given_away_as_zero(read.received.exponents, read.sent.exponents - _shift(read.rules.divisor), before)
        findings = {"bits leaked a weight": entropy(read.sent.exponents), "share of zeros found": float(zeros.mean())}
        return Recovery.nothing("exponents tell magnitudes, not images", findings)


def entropy(exponents: NDArray[np.int32]) -> float:
    """The empirical entropy of one or more exponents, in bits a number; 0 where all are equal."""
    shares = np.unique(exponents, return_counts=True)[1] / len(exponents)
    return float(np.abs((shares * np.log2(shares)).sum()))


def given_away_as_zero(
    received: NDArray[np.int32], summed: NDArray[np.int32], before: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which of the added numbers are exactly zero, going by exponents and by the weights that are known from before.

    Args:
        received, summed: [count] exponents before and after the addition; the second is the smaller of the first and
            the added number's own, so that one below that of zero in `received` covers it.
        before: [count] the released weights; those under 1/32 are taken not to have passed 1/16 in one round.
    """
    return (received >= ZERO_EXPONENT) & (summed == ZERO_EXPONENT) & (np.abs(before) < _NEARER_TO_ZERO)


def _shift(divisor: float) -> int:
    """What `phe` adds to an exponent when it divides."""
    return 0 if divisor == 1 else int(EncodedNumber.encode(_KEY, 1 / divisor).exponent)
