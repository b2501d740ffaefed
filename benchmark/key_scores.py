"""How right an attack's claims about keys are, by the defense and the keys of the round that was observed."""

from __future__ import annotations

from collections.abc import Sequence

from benchmark.attack_runs import AttackRun
from benchmark.observations import ObservedRounds
from federation.threat import Victim


def key_scores(run: AttackRun, history: ObservedRounds, victims: Sequence[Victim]) -> list[dict[str, float]]:
    """For every victim about whose keys the attack claims something, what the defense makes of it.

    Raises:
        MalformedKeyClaim: for claims that cannot be about this defense's keys.
    """
    return [
        dict(history.score_key_claims(item.key_claims, victim))
        for item, victim in zip(run.reconstructions, victims, strict=False)
        if item.key_claims
    ]
