"""Inverting quantised updates by whoever knows how they were quantised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from attacks.base import ATTACKS, History, Need
from attacks.cosine_update import CosineUpdate
from attacks.engine.objectives import Objective
from attacks.engine.quantiser import SPACING, RoundedCosine
from attacks.engine.rounded_labels import labels_of_rounded
from attacks.known_labels import KnownLabels, granted_labels, labels_in_updates, made_from
from attacks.level_spacing import is_quantised, level_spacing
from attacks.matching import Gradients
from federation.errors import UsageError
from federation.threat import Observation, Victim


@ATTACKS.register("cosine-quantized")
@dataclass(frozen=True)
class CosineQuantized(CosineUpdate):
    """`cosine-update` with the dequantiser modelled inside: what levels tell of a value, given the candidate.

    Levels are as far apart as the norms in the upload say, which QSGD sends as they are. Values weigh by what rounding the
    candidate would blur, and the label of a single image is read from all of the last layer, since its bias alone is often
    rounded to zeros. Where nothing is known to be quantised, or channel keys lie over the levels, it is `cosine-update`.

    Attributes:
        tolerance: blur that counts beside the rounding, as a share of the update's root mean square; tune it, as the total
            variation, for the network at hand.
    """

    tolerance: float = 0.3

    name: ClassVar[str] = "cosine-quantized"
    reference: ClassVar[str] = "Geiping et al., Inverting Gradients, NeurIPS 2020; weights by the rounding of QSGD"
    needs: ClassVar[frozenset[Need]] = CosineUpdate.needs | {Need.SCHEME, Need.TRANSCRIPT}

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < math.inf:
            raise UsageError(f"attack {self.name!r}: tolerance is {self.tolerance}; it must be above 0")

    def objective(self) -> Objective:
        """The weighed cosine."""
        return RoundedCosine(self.tolerance)

    def target(self, observation: Observation, victim: Victim) -> Gradients:
        """The mean gradient, and beside it the spacings in its units; without them where nothing is known of any."""
        gradients = super().target(observation, victim)
        known = level_spacing(observation, victim.sender)
        if known is None:
            return gradients
        scale = observation.facts.learning_rate * observation.facts.steps
        # an update that was rounded to nothing has no signal, whatever its norms say
        some = any(bool(tensor.any()) for tensor in gradients.values())
        return gradients | {
            SPACING + name: (known[name] * some / scale).to(tensor.dtype) for name, tensor in gradients.items()
        }

    def known_labels(
        self, history: History, victims: Sequence[Victim], updates: Gradients, images: int
    ) -> KnownLabels | None:
        """Of single images whose updates are quantised, from all of the last layer; else as ever."""
        granted = granted_labels(history, victims, images)
        single = all(made_from(history[victim.observation], victim) == images == 1 for victim in victims)
        if granted is None and single and is_quantised(history[victims[0].observation]):
            classes = history[victims[0].observation].network.class_count
            labels = labels_of_rounded(updates, classes)
            if labels is not None:
                return KnownLabels(F.one_hot(labels[:, None], classes).float(), ({},) * len(labels))
        return granted or labels_in_updates(history, victims, updates, images)
