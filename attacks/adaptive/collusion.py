"""The server and one client together: what the client's key opens, and of a sum that no key opens what is left of it.

Clients share keys, or the server holds what leads from one client's keys to another's (so that it can add their updates at
all). Whoever is both reads every single update in clear. Where only sums are read, the client takes its own share out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from attacks.adaptive.aggregate import Aggregate
from attacks.base import ATTACKS, Budget, History, Need, Reconstruction
from federation.protocol import Phase
from federation.threat import Observation, PlainModel, Victim


@ATTACKS.register("collusion")
@dataclass(frozen=True)
class Collusion(Aggregate):
    """Invert the victim's update, which a fellow client's key opened; else what the released mean holds of it.

    It counts the other parties of the cohort and those whose updates are read, which is what one key is worth.
    """

    inner: str = "cosine-update"

    name: ClassVar[str] = "collusion"
    reference: ClassVar[str] = "Pavlak 2018, threats"
    needs: ClassVar[frozenset[Need]] = Aggregate.needs | {Need.OWN_UPDATE, Need.TRANSCRIPT}

    def lacks(self, observation: Observation) -> str | None:
        """A client by itself receives nobody's upload."""
        uploads = {envelope.sender for envelope in observation.transcript.phase(Phase.UPLOAD)}
        return None if uploads - observation.own_updates.keys() else "the uploads of others beside an own update"

    def reconstruct(
        self, history: History, victims: Sequence[Victim], *, generator: torch.Generator, budget: Budget
    ) -> list[Reconstruction]:
        """See `Attack.reconstruct`."""
        seen = [_with_own(observation) for observation in history]
        found = super().reconstruct(seen, victims, generator=generator, budget=budget)
        return [
            replace(item, findings={**item.findings, **_opened(seen[victim.observation])})
            for victim, item in zip(victims, found, strict=True)
        ]


def _with_own(observation: Observation) -> Observation:
    """The observation whose view has the client's own update too, also where only sums are read."""
    view = observation.view
    if not isinstance(view, PlainModel) or view.hidden_by:
        return observation
    return replace(observation, view=replace(view, after={**observation.own_updates, **view.after}))


def _opened(observation: Observation) -> dict[str, float]:
    """How many others there are, and of how many the update is read."""
    others = observation.facts.sample_counts.keys() - observation.own_updates.keys()
    view = observation.view
    read = others & view.after.keys() if isinstance(view, PlainModel) and not view.hidden_by else set()
    return {"other parties": float(len(others)), "other parties read": float(len(read))}
