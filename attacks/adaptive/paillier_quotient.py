"""A party's weights from the quotient of two ciphertexts, without any key: sums of `phe` that were not re-randomised.

`phe` adds a plaintext m to a ciphertext c1 as c1 * (1 + n)^m mod n^2, and leaves c1's randomness as it is. Who reads c1
and the sum c2 divides one by the other: (1 + n)^m = 1 + n * m, hence m = (c2 / c1 - 1) / n exactly. Public exponents
say what else was done: c1 is raised to a power of 16 where the sum needs a finer unit, and both to that of the encoded
1/2 where the sum was halved.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import gmpy2
import numpy as np
import torch
from gmpy2 import mpz
from numpy.typing import NDArray
from phe.encoding import EncodedNumber
from phe.paillier import PaillierPublicKey

from attacks.adaptive.encrypted_round import EncryptedRound
from attacks.adaptive.pride import CLOUD_SUM, STAGE
from attacks.adaptive.recovery import Recovery, WeightRecovery
from attacks.base import ATTACKS, Need
from federation.encrypted_numbers import EncryptedNumbers
from federation.errors import MalformedMessage
from federation.threat import Observation, Victim

SHARE_RECOVERED = "share of sent values recovered"

_FINEST = 1200
"""No float64 takes more bits to its smallest one below the point; exponents beyond are not of an encoded float."""


@ATTACKS.register("paillier-quotient")
@dataclass(frozen=True)
class PaillierQuotient(WeightRecovery):
    """Divide what a party sent by what it received, read its weights off the quotient, and invert its update.

    Anyone who reads both messages can: the server, a fellow party that taps the wire, a stranger.
    """

    name: ClassVar[str] = "paillier-quotient"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TRANSCRIPT, Need.SCHEME})
    undoes: ClassVar[frozenset[str]] = frozenset({CLOUD_SUM})
    made_for: ClassVar[frozenset[str]] = frozenset({STAGE})

    def recover_hidden(self, observation: Observation, victim: Victim) -> Recovery:
        """The weights that the victim added to the ciphertexts that it had received."""
        return recovered_by_quotient(observation, victim.sender)


def recovered_by_quotient(observation: Observation, sender: str) -> Recovery:
    """The weights that `sender` added to the ciphertexts that it had received."""
    try:
        read = EncryptedRound.of(observation, sender)
    except MalformedMessage as error:
        return Recovery.nothing(str(error))
    values = quotient_weights(read.received, read.sent, divided_by=read.rules.divisor)
    findings = {SHARE_RECOVERED: float(np.isfinite(values).mean())}
    if not np.isfinite(values).any():
        return Recovery.nothing("no quotient of ciphertexts is a power of 1 + n: they were re-randomised", findings)
    weights = torch.from_numpy(values) / read.rules.factor(observation.facts.sample_counts, sender)
    return Recovery(read.before, read.rules.weights_from(weights, observation.network.layout), findings)


def quotient_weights(
    broadcast: EncryptedNumbers, upload: EncryptedNumbers, *, divided_by: float = 1.0
) -> NDArray[np.float64]:
    """The numbers that were added to `broadcast` to give `upload`, exactly, from public values alone.

    Args:
        broadcast, upload: the ciphertexts before and after, number by number, under one modulus.
        divided_by: what the sums were divided by afterwards, as `phe` does it: times the encoded reciprocal, in public.

    Returns:
        [count] the added numbers; NaN where the quotient is no power of 1 + n, so that nothing can be read from it.

    Raises:
        MalformedMessage: for another modulus or another number of ciphertexts.
    """
    if upload.modulus != broadcast.modulus or len(upload.ciphertexts) != len(broadcast.ciphertexts):
        raise MalformedMessage("a quotient needs as many ciphertexts after as before, under the same modulus")
    divide = _Quotient(broadcast.modulus, divided_by)
    columns = zip(
        broadcast.ciphertexts, broadcast.exponents.tolist(), upload.ciphertexts, upload.exponents.tolist(), strict=True
    )
    return np.array([divide(*column) for column in columns], np.float64)


class _Quotient:
    """Division of ciphertexts under one modulus, where the sum was divided by `divided_by`."""

    def __init__(self, modulus: int, divided_by: float) -> None:
        public_key = PaillierPublicKey(modulus)
        self._n, self._n_squared, self._largest = mpz(modulus), mpz(modulus) ** 2, mpz(public_key.max_int)
        self._scalar, self._shift = mpz(1), 0
        if divided_by != 1:
            reciprocal = EncodedNumber.encode(public_key, 1 / divided_by)
            self._scalar, self._shift = mpz(reciprocal.encoding), reciprocal.exponent

    def __call__(self, before: int, exponent_before: int, after: int, exponent_after: int) -> float:
        unit = exponent_after - self._shift  # the exponent of the sum, before it was divided
        finer = exponent_before - unit
        if not 0 <= 4 * finer <= self._n.bit_length() or abs(4 * unit) > _FINEST:
            return np.nan
        power = gmpy2.powmod(before, self._scalar << (4 * finer), self._n_squared)
        if gmpy2.gcd(power, self._n) != 1:
            return np.nan
        added, rest = gmpy2.f_divmod(after * gmpy2.invert(power, self._n_squared) % self._n_squared - 1, self._n)
        if rest:
            return np.nan
        plaintext, rest = gmpy2.f_divmod(added if added <= self._largest else added - self._n, self._scalar)
        if rest or plaintext < -self._largest:
            return np.nan
        return _as_float(plaintext, unit)


def _as_float(plaintext: mpz, exponent: int) -> float:
    """plaintext * 16^exponent, rounded once; NaN where that is beyond every float64."""
    if plaintext.bit_length() + 4 * exponent >= 1024:
        return np.nan
    return float(Fraction(int(plaintext)) * Fraction(EncodedNumber.BASE) ** exponent)
