"""A fellow party's weights from the released average and one's own: what no encryption of uploads can hide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from attacks.adaptive.pride import PrideRules
from attacks.adaptive.recovery import Recovery, WeightRecovery
from attacks.base import ATTACKS, Need
from federation.threat import AGGREGATE, Observation, PlainModel, Victim


@ATTACKS.register("difference")
@dataclass(frozen=True)
class Difference(WeightRecovery):
    """Subtract the own contributions from the released average; with one other party in it, that party's weights remain.

    It works on every defense that releases the average to those who trained it. With more than one other party what
    remains is their mean, which is no single party's update, and the attack says so.
    """

    name: ClassVar[str] = "difference"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PLAIN_MODEL, Need.OWN_UPDATE, Need.SCHEME})
    reads_aggregate: ClassVar[bool] = True

    def recover_hidden(self, observation: Observation, victim: Victim) -> Recovery:
        """The one other party's weights, up to the rounding of the released model."""
        view, counts = observation.view, observation.facts.sample_counts
        own = {name: weights for name, weights in observation.own_updates.items() if name in counts}
        assert isinstance(view, PlainModel), "the harness checked what this attack needs"
        if AGGREGATE not in view.after:
            return Recovery.nothing("the position reads no released model")
        others = counts.keys() - own.keys()
        if others != {victim.sender}:
            return Recovery.nothing(
                f"{victim.sender} is one of {len(others)} parties in the average that the position does not hold"
            )
        layout, rules = observation.network.layout, PrideRules.known_to(observation) or PrideRules(cloud_half=False)
        remaining = rules.sent_values(view.after[AGGREGATE], layout)
        if rules.cloud_half:
            remaining = other_contribution(remaining, rules.cloud_values(view.before, layout), 1 / 2)
        shares = {name: 1 / len(counts) if rules.cloud_half else counts[name] / sum(counts.values()) for name in counts}
        left = 1.0
        for name, weights in own.items():
            remaining = other_contribution(remaining, rules.sent_values(weights, layout), shares[name] / left)
            left -= shares[name]
        return Recovery(view.before, rules.weights_from(remaining, layout))


Values = TypeVar("Values", Tensor, NDArray[np.float64])


def other_contribution(average: Values, own: Values, own_share: float) -> Values:
    """What is left of a weighted average without one of its contributions: (average - s * own) / (1 - s).

    Args:
        average, own: float64 values, of equal shapes, of the average and of the own contribution.
        own_share: s in [0, 1), the weight of the own contribution; 1/2 gives 2 * average - own.

    Raises:
        ValueError: for a share outside [0, 1).
    """
    if not 0 <= own_share < 1:
        raise ValueError(f"the own share is {own_share}; it must be in [0, 1), or nothing is left of anyone else")
    return (average - own_share * own) / (1 - own_share)
