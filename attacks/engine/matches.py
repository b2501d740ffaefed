"""What gradient matching returns, and the choice among restarts."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from federation.errors import UsageError


@dataclass(frozen=True)
class Matches:
    """What T trials came to; each holds the iterate with the lowest own objective (priors included) that it evaluated.

    Attributes:
        images: pixels in [0, 1], [T, m, C, H, W].
        labels: soft labels, [T, m, K]: as given, or as optimised.
        objective: the total at that iterate, [T]; infinite where nothing finite was met, or nothing tried.
        evaluations: gradient evaluations spent, [T].
        failed: met a value that was not finite and was frozen there, bool [T].
        signal: the target could be matched at all, bool [T]. Without a signal nothing is spent, the images are the
            normalisation's mean colour, and the labels uniform where they were not given.
    """

    images: Tensor
    labels: Tensor
    objective: Tensor
    evaluations: Tensor
    failed: Tensor
    signal: Tensor

    def to(self, device: torch.device | str) -> Matches:
        """The same on a device."""
        return Matches(**{field.name: getattr(self, field.name).to(device) for field in fields(Matches)})


def best_restart(matches: Matches, victims: int, restarts: int) -> Matches:
    """Of each victim's restarts, which follow each other, the one with the lowest own objective.

    The truth plays no part. A victim's evaluations are those of all its restarts; it failed if the chosen restart did.

    Raises:
        UsageError: where `matches` does not hold victims x restarts trials.
    """
    if len(matches.objective) != victims * restarts or restarts < 1:
        raise UsageError(f"{len(matches.objective)} trials are not {victims} victims with {restarts} restarts each")
    objective = matches.objective.nan_to_num(nan=math.inf).view(victims, restarts)
    chosen = torch.arange(victims, device=objective.device) * restarts + objective.argmin(1)
    picked = Matches(**{field.name: getattr(matches, field.name)[chosen] for field in fields(Matches)})
    return replace(picked, evaluations=matches.evaluations.view(victims, restarts).sum(1))
