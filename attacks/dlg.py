"""Deep Leakage from Gradients (Zhu, Liu and Han 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from attacks.base import ATTACKS
from attacks.engine.lbfgs import LBFGS
from attacks.engine.objectives import Objective, squared_distance
from attacks.engine.optimisers import Optimiser
from attacks.matching import GradientMatching


@ATTACKS.register("dlg")
@dataclass(frozen=True)
class DLG(GradientMatching):
    """Squared distance of gradients, by L-BFGS from N(0, 1) images (Zhu 2019, eq. 4).

    The label of a single image is read from the update; otherwise label logits are optimised with the images, as in the
    paper. Strong on untrained smooth networks, it collapses on trained or ReLU ones.

    Attributes:
        memory: pairs that L-BFGS remembers (as the published code).
    """

    memory: int = 100

    name: ClassVar[str] = "dlg"
    reference: ClassVar[str] = "Zhu, Liu and Han, Deep Leakage from Gradients, NeurIPS 2019"

    def objective(self) -> Objective:
        """Eq. 4."""
        return squared_distance

    def optimiser(self) -> Optimiser:
        """L-BFGS with a line search; an evaluation of it is one of the budget."""
        return LBFGS(history=self.memory)
