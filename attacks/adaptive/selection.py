"""Which party's model was released: from the model before, the models sent and the model after (Pavlak 2018, threats)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

from torch import Tensor

from attacks.adaptive.encrypted_round import released_model
from attacks.adaptive.paillier_quotient import PaillierQuotient
from attacks.adaptive.recovery import Recovery
from attacks.base import ATTACKS
from federation.protocol import Phase
from federation.threat import Observation, Victim
from federation.weights import Weights

Combine = Callable[[Weights, Weights], Weights]
"""What is released where this candidate is selected: from the model before and the candidate."""

EXPLAINED = 0.01
"""Largest residual at which a single party explains the released model; rounding to float32 stays far under it."""


class Selection(NamedTuple):
    """The party that explains a released model best.

    Attributes:
        name: which.
        margin: 1 - its distance over that of the runner-up, among which the model before stands as well: 0 where it is
            no better, 1 where it fits exactly.
        residual: its distance over the distance that the released model moved: 0 where it fits exactly.
    """

    name: str
    margin: float
    residual: float


def selected_party(
    before: Weights, candidates: Mapping[str, Weights], after: Weights, *, combine: Combine
) -> Selection:
    """The candidate whose selection would have released what is nearest to `after`, by the L2 distance of all weights.

    Args:
        before: the model before the round.
        candidates: the model that each party sent, by name.
        after: the released model.
        combine: what would have been released for a candidate.

    Raises:
        ValueError: without candidates.
    """
    if not candidates:
        raise ValueError("nobody can have been selected among no candidates")
    moved = _distance(before, after)
    distances = {name: _distance(combine(before, candidate), after) for name, candidate in candidates.items()}
    best = min(distances, key=distances.__getitem__)
    runner_up = min([moved, *(distance for name, distance in distances.items() if name != best)])
    return Selection(best, 1 - _ratio(distances[best], runner_up), _ratio(distances[best], moved))


def replaced(before: Weights, candidate: Weights) -> Weights:
    """The selected model takes the place of the one before."""
    return candidate


def averaged(before: Weights, candidate: Weights) -> Weights:
    """The selected model is averaged with the one before, half and half."""
    return {name: (before[name].double() + tensor.double()) / 2 for name, tensor in candidate.items()}


@ATTACKS.register("paillier-selection")
@dataclass(frozen=True)
class PaillierSelection(PaillierQuotient):
    """Recover every party's model, say which of them was released, and invert the victim's update.

    Where the released model is an average of all, no single party explains it, and the attack says that.
    """

    name: ClassVar[str] = "paillier-selection"

    def recover(self, observation: Observation, victim: Victim) -> Recovery:
        """The victim's weights, and who was selected in the same round."""
        uploads = observation.transcript.phase(Phase.UPLOAD)
        parties = dict.fromkeys([victim.sender, *(envelope.sender for envelope in uploads)])
        recoveries = {
            name: PaillierQuotient.recover(self, observation, replace(victim, sender=name)) for name in parties
        }
        candidates = {name: model for name, found in recoveries.items() if (model := found.model_after()) is not None}
        before, after = recoveries[victim.sender].before, released_model(observation)
        figures = {"candidates": float(len(candidates))}
        if before is None or after is None:
            missing = "the victim's model" if before is None else "the released model"
            return recoveries[victim.sender].adding(figures, f"{missing} is not read, hence nobody found")
        found = min(
            (selected_party(before, candidates, after, combine=combine) for combine in (replaced, averaged)),
            key=lambda selection: selection.residual,
        )
        figures |= {"selection margin": found.margin, "selection residual": found.residual}
        if found.residual > EXPLAINED:
            return recoveries[victim.sender].adding(figures, "no single party's model explains the released one")
        return recoveries[victim.sender].adding(figures, f"the released model is that of {found.name}")


def _distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    squares = (
        float((one[name].double() - tensor.double()).square().sum())
        for name, tensor in other.items()
        if tensor.is_floating_point()
    )
    return math.sqrt(sum(squares))


def _ratio(distance: float, reference: float) -> float:
    """distance / reference; 0 / 0 is 1: nothing is no better than nothing."""
    return distance / reference if reference > 0 else 1.0
