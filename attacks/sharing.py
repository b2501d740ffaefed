"""Which victims can be attacked in one call: those whose updates start from the same weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch

from attacks.base import History
from federation.threat import Observation, PlainModel, Victim
from federation.weights import Weights

Alike = Callable[[Observation, Victim], Hashable]
"""What else victims of one call must have in common."""


def sharing_weights(
    history: History, victims: Sequence[Victim], alike: Alike = lambda _, __: None
) -> list[list[Victim]]:
    """The victims, grouped by equal weights at the start of the round and by what `alike` says of them."""
    groups: list[tuple[Weights, Hashable, list[Victim]]] = []
    for victim in victims:
        observation = history[victim.observation]
        before, trait = plain_model(observation).before, alike(observation, victim)
        for known, known_trait, group in groups:
            if trait == known_trait and all(torch.equal(before[name], tensor) for name, tensor in known.items()):
                group.append(victim)
                break
        else:
            groups.append((before, trait, [victim]))
    return [group for _, _, group in groups]


def plain_model(observation: Observation) -> PlainModel:
    """The view of an observation of which the harness checked that it is one."""
    view = observation.view
    assert isinstance(view, PlainModel), "the harness checked what this attack needs"
    return view
