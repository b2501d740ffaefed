"""What everybody knows of the PriDe protocol as written (Pavlak 2018), read from the public description of a defense.

Written w_0 for the cloud's weights, w_k for those of party k of K, s_k for its share of the images: a party returns
c_k = (w_0 + a_k w_k) / d under encryption, d = 2 in the two-party form and 1 in the six-party one. With the cloud's
half, a_k = 1 and (w_0 + mean(w_k)) / 2 is released; without it a_k = s_k and the release is FedAvg's sum(s_k w_k).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from phe.encoding import EncodedNumber
from phe.paillier import PaillierPublicKey
from torch import Tensor

from federation.errors import MalformedMessage
from federation.threat import Observation
from federation.weights import Layout, Weights, flatten, floating, unflatten

STAGE = "paillier-pride"
"""The protocol's name in the description of a defense."""

CLOUD_SUM = "cloud-sum"
"""What views call it where a party's weights were read with the cloud's weights in them."""

_ROWS = 2


@dataclass(frozen=True)
class PrideRules:
    """The public options of the protocol that decide what is sent.

    Attributes:
        divisor: d, by which a party divides its sum.
        cloud_half: whether the cloud's weights count one half.
        absolute_precision: what `phe` rounds to before it encrypts; None for nothing.
        first_rows_only: whether only the rows of classes 0 and 1 of the first weight matrix are sent.
    """

    divisor: float = 1.0
    cloud_half: bool = True
    absolute_precision: float | None = None
    first_rows_only: bool = False

    @classmethod
    def known_to(cls, observation: Observation) -> PrideRules | None:
        """The rules as the observation describes them; None where it describes another defense or none."""
        options = observation.scheme.get(STAGE)
        if options is None:
            return None
        precision = options["absolute_precision"]
        return cls(
            divisor=2.0 if options["form"] == "two-party" else 1.0,
            cloud_half=bool(options["cloud_half"]),
            absolute_precision=None if precision is None else float(str(precision)),
            first_rows_only=bool(options["first_rows_only"]),
        )

    def factor(self, counts: Mapping[str, int], sender: str) -> float:
        """a_k of this sender, by the parties' numbers of images."""
        return 1.0 if self.cloud_half else counts[sender] / sum(counts.values())

    def sent(self, layout: Layout) -> slice:
        """Which of the averaged values are sent, in the order of `flatten`; raises MalformedMessage for none."""
        specs = floating(layout)
        if not self.first_rows_only:
            return slice(0, sum(spec.size for spec in specs))
        start = 0
        for spec in specs:
            if len(spec.shape) > 1:
                return slice(start, start + min(_ROWS * spec.size // spec.shape[0], spec.size))
            start += spec.size
        raise MalformedMessage("only rows of a weight matrix are sent, and the network has no weight matrix")

    def sent_values(self, weights: Weights, layout: Layout) -> Tensor:
        """Those of the weights' values that are sent, float64 [count]."""
        return flatten(weights, floating(layout))[self.sent(layout)]

    def cloud_values(self, before: Weights, layout: Layout) -> Tensor:
        """w_0 as it went into the sums, float64 [count]."""
        values = self.sent_values(before, layout)
        if self.absolute_precision is None:
            return values
        one = EncodedNumber.encode(PaillierPublicKey(2**1024), 1.0, precision=self.absolute_precision)
        step = float(EncodedNumber.BASE) ** one.exponent
        return (values / step).round() * step

    def weights_from(self, values: Tensor, layout: Layout) -> Weights:
        """The averaged tensors with these values where values are sent, NaN elsewhere."""
        specs = floating(layout)
        whole = torch.full((sum(spec.size for spec in specs),), torch.nan, dtype=torch.float64)
        whole[self.sent(layout)] = values
        return unflatten(whole, specs)
