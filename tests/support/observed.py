"""What an adversary observes of a training, by names."""

from __future__ import annotations

from benchmark.observations import ObservedRounds
from benchmark.training_plan import TrainingPlan
from federation.threat import ADVERSARIES, Oracle


def observed(
    plan: TrainingPlan, adversary: str, kind: str, snapshot: int = 0, oracles: tuple[Oracle, ...] = ()
) -> ObservedRounds:
    """The rounds of a training's first victims of a kind."""
    victims = next(regime for regime in plan.victims.regimes if regime.kind == kind)
    return ObservedRounds(plan, ADVERSARIES.get(adversary), victims, snapshot, oracles)
