"""The defense `paillier-pride`: PriDe as its paper wrote it, each of its flaws an option of its own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import ClassVar, get_args

from phe.paillier import PaillierPrivateKey

from defenses.base import Claim, Defense, Magnitudes
from defenses.paillier import keys
from defenses.paillier.pride.arithmetic import encoding_step
from defenses.paillier.pride.messages import NAME
from defenses.paillier.pride.parties import PrideClient, PrideCloud
from defenses.paillier.pride.reading import read_round
from defenses.paillier.pride.rules import Form, Rules
from defenses.registry import DEFENSES
from federation.errors import UsageError
from federation.messages import Transcript
from federation.network import Network
from federation.protocol import Parties
from federation.secret_root import SecretRoot
from federation.threat import Position, View
from federation.weights import Kind, TensorSpec

PUBLISHED_BITS = 512
"""Length of a key that everyone is given: it hides nothing at any length, and this one is quick."""

_PRECISIONS = (2.0**-126, 2.0**128)
"""The range of float32: a finer unit would not fit the modulus, a coarser one says nothing."""


@DEFENSES.register(NAME)
@dataclasses.dataclass(frozen=True)
class PaillierPride(Defense):
    """PriDe (Pavlak 2018): parties add their weights to the cloud's ciphertexts, and the cloud holds the private key.

    The cloud's weights are the global model. By default the released model is FedAvg's; see `rules` for what each
    form computes. Every option after `form` is a flaw that the paper or its code has, and can be switched on alone.

    Attributes:
        form: "two-party" (a party divides the sum by 2 itself, the cloud decrypts what each returns) or "six-party"
            (parties return sums; the cloud adds them, divides by their number and by 2, decrypts the average).
        randomised: whether a party re-randomises what it sends; without it, the quotient of what it sends and what it
            received shows its weights to anyone.
        absolute_precision: what the paper passes as `precision=7`, taken for digits: weights are rounded to multiples
            of 16^floor(log16(it)), for 7 to integers. None encodes them exactly.
        first_rows_only: only the first two rows of the first weight matrix are averaged, the paper's coef_[0] and
            coef_[1]; all else stays the cloud's and is never sent by parties, but for counters.
        cloud_half: the cloud's weights count one half of every average, as in the paper's formulas, and parties count
            alike, whatever data they have.
        key_bits: length of the modulus; 2048 at least unless the key is published.
        publish_key: hand the private key to everyone (the leaky twin).
    """

    form: Form = "six-party"
    randomised: bool = True
    absolute_precision: float | None = None
    first_rows_only: bool = False
    cloud_half: bool = False
    key_bits: int = 2048
    publish_key: bool = False

    name = NAME
    key_holders = "the server"
    collusion_bound = "none needed"
    smallest_bits: ClassVar[int] = keys.SECURE_BITS

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise UsageError(f"{NAME}: form is {self.form!r}; it must be {' or '.join(get_args(Form))}")
        smallest = PUBLISHED_BITS if self.publish_key else self.smallest_bits
        if self.key_bits < smallest or self.key_bits % 16:
            raise UsageError(f"{NAME}: key_bits is {self.key_bits}; it must be {smallest} or more, a multiple of 16")
        precision = self.absolute_precision
        if precision is not None and not (math.isfinite(precision) and _PRECISIONS[0] <= precision <= _PRECISIONS[1]):
            raise UsageError(
                f"{NAME}: absolute_precision is {precision}; it must be within 2^-126 to 2^128, such as 1e-7"
            )

    def parties(self, network: Network, clients: Sequence[str], root: SecretRoot) -> Parties:
        """See `Defense.parties`; raises UsageError where `first_rows_only` finds no rows."""
        rules = self.rules(network)
        assert rules.sent.stop > rules.sent.start, "a network has weights"
        cloud = PrideCloud(rules, _keypair(self.key_bits, root.derive("cloud").stream(32)), publish=self.publish_key)
        members = {name: PrideClient(name, rules, self.key_bits, randomised=self.randomised) for name in clients}
        return Parties(cloud, members, agent=cloud)

    def view(
        self,
        transcript: Transcript,
        position: Position,
        held: Mapping[str, bytes],
        *,
        network: Network,
        sample_counts: Mapping[str, int],
    ) -> View:
        """See `Defense.view` and `reading.read_round`."""
        return read_round(
            self.rules(network),
            self.key_bits,
            transcript,
            position,
            held,
            published=self.publish_key,
            sample_counts=sample_counts,
        )

    def claims(self, network: Network) -> Mapping[str, Claim]:
        """What is sent is transformed, since the cloud decrypts it, added to weights that all know; counters are plain.

        Nothing of a tensor that is not sent crosses the wire: it is hidden.
        """
        partial = self.rules(network).partial

        def claim(spec: TensorSpec) -> Claim:
            if spec.kind is Kind.COUNTER:
                return Claim.PLAIN
            if partial is not None and spec.name != partial.name:
                return Claim.HIDDEN
            return Claim.PLAIN if self.publish_key else Claim.TRANSFORMED

        return {spec.name: claim(spec) for spec in network.layout}

    def stated_error(self, magnitudes: Magnitudes) -> float:
        """The largest distance of a released model from FedAvg's weighted mean.

        - Rounding: float64 all along, where K (2 A - w_0) cancels K times the cloud's weights, then float32, in which
          two values next to a tie end up one unit apart.
        - `absolute_precision`: half a unit for each rounded summand.
        - `cloud_half`: with w_k = w_0 + u_k, |A - sum(s_k w_k)| = |sum((1 / 2K - s_k) u_k)|, at most 3/2 - 1/K times the
          largest update, reached where one party has all the images.
        - `first_rows_only`: what is not sent stays w_0, off by one update at most.
        """
        weights, update, parties = magnitudes.weights, magnitudes.update, magnitudes.clients
        bound = weights * 2.0**-23 + (parties + 1) * (weights + update) * 2.0**-50
        if self.absolute_precision is not None:
            bound += encoding_step(self.absolute_precision) / 2 * (1 if self.cloud_half else parties)
        if self.cloud_half:
            bound += (1.5 - 1 / parties) * update
        return max(bound, update) if self.first_rows_only else bound

    def leaky_twin(self) -> PaillierPride:
        """The same protocol with a published private key, which may then be short, and nothing re-randomised."""
        return dataclasses.replace(self, randomised=False, publish_key=True, key_bits=PUBLISHED_BITS)

    def scheme(self) -> Mapping[str, Mapping[str, object]]:
        """Every option. With `form` and `cloud_half` goes what the cloud decrypts of a party; see `rules`."""
        return {NAME: {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}}

    def rules(self, network: Network) -> Rules:
        """What is computed on this network."""
        return Rules(network.layout, self.form, self.cloud_half, self.absolute_precision, self.first_rows_only)


@lru_cache(maxsize=4)
def _keypair(bits: int, seed: bytes) -> PaillierPrivateKey:
    """The key pair of a root, searched for once."""
    return keys.generate_keypair(bits, SecretRoot(seed).reader(), allow_small=True)
