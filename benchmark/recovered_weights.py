"""How much of the weights that an attack claims to have recovered is right, by the referee who knows them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmark.attack_runs import AttackRun
from benchmark.observations import ObservedRounds
from federation.threat import Victim
from federation.weights import Weights

RECOVERED_EXACTLY = "share of weights recovered exactly"
"""The finding's name: of all floating-point weights that the victim trained, those that the attack has to the last bit."""


def shares_recovered(run: AttackRun, history: ObservedRounds, victims: Sequence[Victim]) -> list[dict[str, float]]:
    """For every victim whose weights the attack claims to have recovered, the share that it has to the last bit."""
    return [
        {RECOVERED_EXACTLY: exact_share(item.recovered_weights, history.truth(victim.observation).trained)}
        for item, victim in zip(run.reconstructions, victims, strict=False)
        if item.recovered_weights
    ]


def exact_share(claimed: Weights, true: Weights) -> float:
    """Share in [0, 1] of the floating-point weights in `true` that `claimed` has exactly.

    A tensor that is missing, of another shape or of another type counts as not recovered.
    """
    trained = {name: tensor for name, tensor in true.items() if tensor.is_floating_point()}
    right = sum(_equal_values(claimed.get(name), tensor) for name, tensor in trained.items())
    return right / sum(tensor.numel() for tensor in trained.values())


def _equal_values(claimed: Tensor | None, true: Tensor) -> int:
    if claimed is None or claimed.shape != true.shape or claimed.dtype != true.dtype:
        return 0
    return int(torch.eq(claimed, true).sum())
