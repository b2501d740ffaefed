"""The curvature that L-BFGS remembers of each trial, and the Newton-like step it implies."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.engine.optimisers import keep_trials


class CurvatureMemory:
    """For T trials, the last h pairs (step s, gradient change y) of each, and their inner products.

    The compact form of the inverse Hessian (Byrd, Nocedal and Schnabel 1994, "Representations of quasi-Newton matrices",
    eq. 3.1) turns the two-loop recursion, 4h dependent vector operations, into two batched matrix products and two
    triangular solves. Pairs are stored divided by sqrt(s.y), so that s.y = 1; an empty slot holds zeros.

    Args:
        trials: T.
        length: D, the length of a step.
        history: h.
        like: a tensor of the device and dtype to use.
    """

    def __init__(self, trials: int, length: int, history: int, like: Tensor) -> None:
        self._history = history
        self._used = 0  # slots that any trial has ever used
        self._pairs = like.new_zeros(trials, history, 2, length)  # a step, then its change
        self._across = like.new_zeros(trials, history, history)  # [i, j] = s_i . y_j
        self._among = like.new_zeros(trials, history, history)  # [i, j] = y_i . y_j
        self._scale = like.new_ones(trials)
        self._oldest = torch.zeros(trials, dtype=torch.long, device=like.device)

    def follow(self, chosen: Tensor, step: Tensor, change: Tensor, gradient: Tensor) -> Tensor:
        """Remember new pairs, and return the inverse Hessian estimate times `gradient` then, [T, D].

        It is the gradient itself where nothing is remembered. Reading what is remembered takes most of the time: it is read
        once for the inner products with all three vectors, and once to combine it.

        Args:
            chosen: the trials that have a new pair, bool [T].
            step: s of the pairs, [T, D].
            change: y of the pairs, [T, D]; s.y is positive.
            gradient: [T, D].
        """
        (trials,) = chosen.nonzero(as_tuple=True)
        slot = self._oldest[trials]
        root = (step * change).sum(1).where(chosen, 1).sqrt()[:, None]
        pair = torch.stack([step / root, change / root], dim=1)
        self._pairs[trials, slot] = pair[trials]
        if len(trials):
            self._used = max(self._used, int(slot.max()) + 1)
        used = self._used
        along = self._along(torch.cat([pair, gradient[:, None]], dim=1))
        with_step, with_change = along[trials, :2].unbind(1)
        self._across[trials, slot, :used] = with_step[..., 1]
        self._across[trials, :used, slot] = with_change[..., 0]
        self._among[trials, slot, :used] = with_change[..., 1]
        self._among[trials, :used, slot] = with_change[..., 1]
        self._scale[trials] = 1 / self._among[trials, slot, slot]
        self._oldest[trials] = (slot + 1) % self._history
        return self._inverse_hessian_times(gradient, along[:, 2]) if used else gradient

    def forget(self, chosen: Tensor) -> None:
        """Empty the memory of the trials in `chosen`, bool [T]."""
        if chosen.any():
            used = self._used
            self._pairs[chosen, :used] = 0
            self._across[chosen], self._among[chosen], self._scale[chosen] = 0, 0, 1

    def keep(self, trials: Tensor) -> None:
        """Go on with the trials of the given indices alone."""
        keep_trials(self, trials)

    def _inverse_hessian_times(self, gradient: Tensor, along: Tensor) -> Tensor:
        """From the gradient's inner products [T, slots, 2] with steps and changes."""
        used, scale = along.shape[1], self._scale[:, None]
        by_age = (self._oldest[:, None] + torch.arange(used, device=gradient.device)) % used
        rows, columns = by_age[:, :, None].expand(-1, -1, used), by_age[:, None, :].expand(-1, used, -1)
        across = self._across[:, :used, :used].gather(1, rows).gather(2, columns).triu()
        among = self._among[:, :used, :used].gather(1, rows).gather(2, columns)
        # s.y = 1 on the diagonal; writing it also makes an empty slot's equation trivial
        across.diagonal(dim1=1, dim2=2).fill_(1)
        along_steps, along_changes = along.gather(1, by_age[:, :, None].expand(-1, -1, 2)).split(1, dim=2)
        first = torch.linalg.solve_triangular(across, along_steps, upper=True)
        right = first + scale[:, :, None] * (among @ first - along_changes)
        second = torch.linalg.solve_triangular(across.transpose(1, 2), right, upper=False)
        weights = torch.cat([second, -scale[:, :, None] * first], dim=2)
        weights = torch.empty_like(weights).scatter_(1, by_age[:, :, None].expand(-1, -1, 2), weights)
        combined = weights.flatten(1)[:, None].bmm(self._pairs[:, :used].flatten(1, 2))[:, 0]
        return torch.addcmul(combined, scale, gradient)

    def _along(self, vectors: Tensor) -> Tensor:
        """Inner products [T, n, slots, 2] of vectors [T, n, D] with what is stored."""
        products = vectors.bmm(self._pairs[:, : self._used].flatten(1, 2).transpose(1, 2))
        return products.unflatten(2, (self._used, 2))
