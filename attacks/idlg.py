"""Improved Deep Leakage from Gradients (Zhao, Mopuri and Bilen 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from attacks.base import ATTACKS, History, Need
from attacks.dlg import DLG
from attacks.known_labels import KnownLabels, granted_labels, labels_in_updates
from federation.threat import Victim


@ATTACKS.register("idlg")
@dataclass(frozen=True)
class IDLG(DLG):
    """DLG with the label of a single image read from the last layer's gradient (Zhao 2020, eq. 3), which is exact.

    With cross-entropy the bias gradient is softmax - onehot, negative at the label alone; without a bias the rows of the
    weight gradient tell it. Updates of more than one image are not its business: the rule is one image's.
    """

    name: ClassVar[str] = "idlg"
    reference: ClassVar[str] = "Zhao, Mopuri and Bilen, iDLG: Improved Deep Leakage from Gradients, 2020"
    needs: ClassVar[frozenset[Need]] = DLG.needs | {Need.SINGLE_IMAGE}

    def known_labels(
        self, history: History, victims: Sequence[Victim], updates: dict[str, Tensor], images: int
    ) -> KnownLabels | None:
        """That which an oracle grants, or the update states."""
        return granted_labels(history, victims, images) or labels_in_updates(history, victims, updates, images)
