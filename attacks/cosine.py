"""Inverting Gradients (Geiping, Bauermeister, Droege and Moeller 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from attacks.base import ATTACKS
from attacks.engine.objectives import Objective, cosine_distance
from attacks.engine.optimisers import Optimiser, SignedAdam
from attacks.engine.priors import BoxConstraint, Constraint, Prior, TotalVariation
from attacks.matching import GradientMatching
from federation.normalisation import Normalisation


@ATTACKS.register("cosine")
@dataclass(frozen=True)
class Cosine(GradientMatching):
    """1 - cosine of gradients plus total variation, by signed Adam within the box of valid pixels (Geiping 2020, eq. 4).

    Attributes:
        total_variation: weight of the total variation; it decides several dB, tune it for the data at hand.
        rate: Adam's rate, in units of normalised pixels.
        decay: factor on the rate at 3/8, 5/8 and 7/8 of the budget. Rate and decay are the paper's, for its 4,800
            steps; a fifth of that does better with 0.03 and 0.3.
    """

    total_variation: float = 1e-3
    rate: float = 0.1
    decay: float = 0.1

    name: ClassVar[str] = "cosine"
    reference: ClassVar[str] = "Geiping et al., Inverting Gradients, NeurIPS 2020"

    def objective(self) -> Objective:
        """Eq. 4."""
        return cosine_distance

    def optimiser(self) -> Optimiser:
        """Signed Adam with the paper's step decay."""
        return SignedAdam(rate=self.rate, decay=self.decay)

    def priors(self) -> Sequence[Prior]:
        """Total variation."""
        return (TotalVariation(self.total_variation),)

    def constraint(self, normalisation: Normalisation) -> Constraint | None:
        """Pixels in [0, 1]."""
        return BoxConstraint(normalisation)
