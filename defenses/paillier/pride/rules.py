"""What PriDe computes: which values are encrypted, in which shares they are added, and what the cloud makes of the sum.

Written w_0 for the cloud's weights, w_k for those of party k of K, s_k = n_k / n for its share of the images:

    form         a party returns             the cloud's average A
    two-party    c_k = (w_0 + a_k w_k) / 2   mean of the decrypted c_k
    six-party    c_k = w_0 + a_k w_k         decryption of (sum of c_k) / K / 2

so that A = (w_0 + mean(a_k w_k)) / 2 either way. With `cloud_half`, as in the paper, a_k = 1 and A is released: the
cloud's weights count one half, and parties count alike however many images they have. Without it a_k = s_k, and the
cloud takes its own share out again: K (2 A - w_0) = sum(s_k w_k), which is FedAvg (McMahan 2016, Algorithm 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from defenses.paillier.pride.arithmetic import Values, as_encoded
from federation.errors import UsageError
from federation.weights import Layout, TensorSpec, Weights, flatten, floating, unflatten

Form: TypeAlias = Literal["two-party", "six-party"]

FIRST_ROWS = 2
"""The paper's coef_[0] and coef_[1]: the rows of classes 0 and 1, which it took for weights and bias."""


@dataclass(frozen=True)
class Rules:
    """The public rules of one federation.

    Attributes:
        layout: the agreed tensors.
        form: who divides and who adds.
        cloud_half: whether the cloud's weights count one half.
        absolute_precision: to what `phe` rounds before it encrypts; None for nothing.
        first_rows_only: whether only the first rows of the first weight matrix are averaged.
    """

    layout: Layout
    form: Form
    cloud_half: bool
    absolute_precision: float | None
    first_rows_only: bool

    @property
    def partial(self) -> TensorSpec | None:
        """The one tensor that is sent in part, where all else stays the cloud's; None where every value is sent."""
        return self._first_matrix()[0] if self.first_rows_only else None

    @property
    def sent(self) -> slice:
        """Which of the averaged values are encrypted, in the order of `flatten`; raises UsageError for no matrix."""
        if not self.first_rows_only:
            return slice(0, sum(spec.size for spec in floating(self.layout)))
        spec, start = self._first_matrix()
        return slice(start, start + FIRST_ROWS * (spec.size // spec.shape[0]))

    @property
    def divisor(self) -> float:
        """What a party divides its sum by before it returns it."""
        return 2.0 if self.form == "two-party" else 1.0

    def factor(self, share: float) -> float:
        """a_k, by which a party with this share of the images scales its weights before it adds them."""
        return 1.0 if self.cloud_half else share

    def values(self, weights: Weights) -> Values:
        """The values that are encrypted, [count]."""
        values: Values = flatten(weights, floating(self.layout)).numpy()[self.sent]
        return values

    def replaced(self, weights: Weights, values: Values, counters: Weights) -> Weights:
        """`weights` with other values where values are sent, and other counters."""
        specs = floating(self.layout)
        flat = flatten(weights, specs)
        flat[self.sent] = torch.from_numpy(values)
        changed = unflatten(flat, specs) | counters
        return {spec.name: changed[spec.name] for spec in self.layout}

    def released(self, average: Values, cloud: Weights, parties: int) -> Values:
        """What becomes the global model, from the average A of so many parties and the cloud's own weights."""
        if self.cloud_half:
            return average
        return parties * (2 * average - self._as_added(cloud))

    def party_weights(self, decrypted: Values, cloud: Weights, share: float) -> Values:
        """w_k, from the decryption of what one party returned and the cloud's weights: what nothing hides."""
        return (self.divisor * decrypted - self._as_added(cloud)) / self.factor(share)

    def _as_added(self, cloud: Weights) -> Values:
        """The cloud's weights as they went into the sum."""
        return as_encoded(self.values(cloud), self.absolute_precision)

    def _first_matrix(self) -> tuple[TensorSpec, int]:
        """The first tensor with rows, and where it begins among the averaged values."""
        start = 0
        for spec in floating(self.layout):
            if len(spec.shape) > 1:
                if spec.shape[0] < FIRST_ROWS:
                    break
                return spec, start
            start += spec.size
        raise UsageError(
            f"paillier-pride: first_rows_only needs a first weight matrix of {FIRST_ROWS} rows or more; "
            "this network has none"
        )
