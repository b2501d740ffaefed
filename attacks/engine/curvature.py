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
        self._pairs = like.new_zeros(trials, 2 * history, length)  # steps, then changes
        self._across = like.new_zeros(trials, history, history)  # [i, j] = s_i . y_j
        self._among = like.new_zeros(trials, history, history)  # [i, j] = y_i . y_j
        self._scale = like.new_ones(trials)
        self._oldest = torch.zeros(trials, dtype=torch.long, device=like.device)

    def store(self, chosen: Tensor, step: Tensor, change: Tensor, product: Tensor) -> None:
        """Remember the pairs [T, D] of the trials in `chosen` (bool [T]), whose inner products [T] are positive."""
        (trials,) = chosen.nonzero(as_tuple=True)
        if not len(trials):
            return
        slot, history = self._oldest[trials], self._history
        root = torch.where(chosen, product, torch.ones_like(product)).sqrt()[:, None]
        pair = torch.stack([step / root, change / root], dim=1)
        self._pairs[trials, slot], self._pairs[trials, history + slot] = pair[trials].unbind(1)
        with_step, with_change = self._products(pair)[trials].unbind(1)
        self._across[trials, slot] = with_step[:, history:]
        self._across[trials, :, slot] = with_change[:, :history]
        self._among[trials, slot] = with_change[:, history:]
        self._among[trials, :, slot] = with_change[:, history:]
        self._scale[trials] = 1 / self._among[trials, slot, slot]
        self._oldest[trials] = (slot + 1) % history

    def forget(self, chosen: Tensor) -> None:
        """Empty the memory of the trials in `chosen`, bool [T]."""
        if chosen.any():
            self._pairs[chosen], self._across[chosen], self._among[chosen], self._scale[chosen] = 0, 0, 0, 1

    def keep(self, trials: Tensor) -> None:
        """Go on with the trials of the given indices alone."""
        keep_trials(self, trials)

    def inverse_hessian_times(self, gradient: Tensor) -> Tensor:
        """The inverse Hessian estimate times `gradient`, [T, D]; the gradient itself where nothing is remembered."""
        history, scale = self._history, self._scale[:, None]
        along_steps, along_changes = self._products(gradient[:, None])[:, 0].split(history, dim=1)
        by_age = (self._oldest[:, None] + torch.arange(history, device=gradient.device)) % history
        rows, columns = by_age[:, :, None].expand(-1, -1, history), by_age[:, None, :].expand(-1, history, -1)
        across = self._across.gather(1, rows).gather(2, columns).triu()
        among = self._among.gather(1, rows).gather(2, columns)
        # s.y = 1 on the diagonal; writing it also makes an empty slot's equation trivial
        across.diagonal(dim1=1, dim2=2).fill_(1)
        right = along_steps.gather(1, by_age)[:, :, None]
        first = torch.linalg.solve_triangular(across, right, upper=True)
        right = first + scale[:, :, None] * (among @ first - along_changes.gather(1, by_age)[:, :, None])
        second = torch.linalg.solve_triangular(across.transpose(1, 2), right, upper=False)
        of_steps = torch.empty_like(along_steps).scatter_(1, by_age, second[:, :, 0])
        of_changes = torch.empty_like(along_steps).scatter_(1, by_age, -scale * first[:, :, 0])
        combined = torch.bmm(torch.cat([of_steps, of_changes], dim=1)[:, None, :], self._pairs)[:, 0]
        return scale * gradient + combined

    def _products(self, vectors: Tensor) -> Tensor:
        """Inner products [T, n, 2h] of vectors [T, n, D] with what is stored.

        (Few rows by many columns: the transposed product takes MKL four times as long.)
        """
        return torch.bmm(vectors, self._pairs.transpose(1, 2))
