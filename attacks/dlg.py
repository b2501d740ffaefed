"""Deep Leakage from Gradients (Zhu, Liu and Han 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from attacks.base import ATTACKS, History
from attacks.engine.lbfgs import LBFGS
from attacks.engine.objectives import Objective, squared_distance
from attacks.engine.optimisers import Optimiser
from attacks.known_labels import KnownLabels, granted_labels
from attacks.matching import GradientMatching
from federation.threat import Victim


@ATTACKS.register("dlg")
@dataclass(frozen=True)
class DLG(GradientMatching):
    """Squared distance of gradients, by L-BFGS from N(0, 1) images and label logits (Zhu 2019, eq. 4).

    Labels that no oracle grants are optimised with the images, as in the paper, also where the update states them: that
    is `idlg`. Strong on untrained smooth networks, it collapses on trained or ReLU ones.

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

    def known_labels(
        self, history: History, victims: Sequence[Victim], updates: dict[str, Tensor], images: int
    ) -> KnownLabels | None:
        """Those that an oracle grants."""
        return granted_labels(history, victims, images)
