"""Inverting the update of several local steps (Geiping, Bauermeister, Droege and Moeller 2020, on federated averaging)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from attacks.base import ATTACKS
from attacks.cosine import Cosine
from attacks.engine.gradients import SingleGradient
from attacks.engine.local_steps import LaterEpochs, LocalSteps, simulated_batches
from attacks.known_labels import made_from
from federation.threat import Observation, Victim

MOST_IMAGES = 64
"""Images of an update, and local steps, up to which it simulates them; each costs time and memory of its own."""


@ATTACKS.register("cosine-update")
@dataclass(frozen=True)
class CosineUpdate(Cosine):
    """`cosine` with the client's local steps simulated inside: rate, batch size and number of steps are public.

    All images that the client trained on are candidates, also where fewer are to be reconstructed; then the first are
    returned. Of an update of one step it is `cosine`. An evaluation is one of the objective: it costs as many gradients as
    there are steps.

    Attributes:
        later_epochs: what the steps after the first epoch are taken to read, since how a client shuffles anew is not
            known: "same order" as in the first, or "all images", what such a step takes on average.
    """

    later_epochs: LaterEpochs = "all images"

    name: ClassVar[str] = "cosine-update"

    def lacks(self, observation: Observation) -> str | None:
        """Updates of too many images or steps are beyond it."""
        facts = observation.facts
        images = min(facts.steps * facts.batch_size, max(facts.sample_counts.values()))
        if max(images, facts.steps) <= MOST_IMAGES:
            return None
        return f"updates of at most {MOST_IMAGES} images and steps (here {images} and {facts.steps})"

    def candidate_images(self, observation: Observation, victim: Victim) -> int:
        """All that the client trained on."""
        return max(victim.image_count, made_from(observation, victim))

    def simulated(self, step: SingleGradient, observation: Observation, victim: Victim) -> SingleGradient | LocalSteps:
        """The client's local steps."""
        facts = observation.facts
        batches = simulated_batches(
            self.candidate_images(observation, victim), facts.batch_size, facts.steps, self.later_epochs
        )
        return step if len(batches) == 1 else LocalSteps(step, batches, facts.learning_rate)
