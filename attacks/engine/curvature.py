"""The curvature that L-BFGS remembers of each trial, and the Newton-like step it implies."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.engine.optimisers import keep_trials


class CurvatureMemory:
    """For T trials, the last h pairs (step s, gradient change y) of each, and their inner products.

    The compact form of the inverse Hessian (Byrd, Nocedal and Schnabel 1994, "Representations of quasi-Newton matrices",
    eq. 3.1) turns the two-loop recursion, 4h dependent vector operations, into two batched products with what is remembered
    and a few with h x h matrices. Pairs are stored divided by sqrt(s.y), so that s.y = 1; an empty slot holds zeros. With R
    the inner products s_i.y_j of steps with changes that are not older, triangular in the order of age, a new pair appends
    one column to inverse(R), and forgetting the oldest takes its row and column away: slots need no order, and no system is
    solved.

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
        self._inverse = like.new_zeros(trials, history, history)  # of R
        self._among = like.new_zeros(trials, history, history)  # [i, j] = y_i . y_j
        self._scale = like.new_ones(trials)
        self._oldest = torch.zeros(trials, dtype=torch.long, device=like.device)
        self._gradient = like.new_zeros(trials, length)  # of the last call
        self._along = like.new_zeros(trials, history, 2)  # its inner products with steps and changes

    def follow(self, stepped: Tensor, step: Tensor, gradient: Tensor) -> Tensor:
        """Remember new pairs, and return the inverse Hessian estimate times `gradient` then, [T, D].

        It is the gradient itself where nothing is remembered. A pair whose curvature s.y is not clearly positive is left out.
        Reading what is remembered takes most of the time: it is read once for the inner products with the gradient, which
        less those of the call before are the inner products with its change, and once to combine it.

        Args:
            stepped: the trials that took a step since the last call, bool [T].
            step: s of these, [T, D]; y is the change of `gradient` since the last call.
            gradient: where the trials stand now, [T, D].
        """
        change = gradient - self._gradient
        self._gradient = gradient
        product = (step * change).sum(1)
        least = torch.finfo(step.dtype).eps * step.norm(dim=1) * change.norm(dim=1)
        (trials,) = (stepped & (product > least)).nonzero(as_tuple=True)
        slot = self._oldest[trials]
        root = product[trials].sqrt()[:, None]
        new_step, new_change = step[trials] / root, change[trials] / root
        self._pairs[trials, slot, 0], self._pairs[trials, slot, 1] = new_step, new_change
        if len(trials):
            self._used = max(self._used, int(slot.max()) + 1)
        used = self._used
        if not used:
            return gradient
        along = gradient[:, None].bmm(self._pairs[:, :used].flatten(1, 2).transpose(1, 2)).view(-1, used, 2)
        # inner products of the new changes with every step and change; of a change with itself, the difference says nothing
        with_step, with_change = ((along - self._along[:, :used])[trials] / root[:, :, None]).unbind(2)
        with_change = with_change.scatter(1, slot[:, None], new_change.square().sum(1, keepdim=True))
        self._along[:, :used] = along
        self._among[trials, slot, :used] = self._among[trials, :used, slot] = with_change
        self._scale[trials] = 1 / self._among[trials, slot, slot]
        self._append(trials, slot, with_step)
        self._oldest[trials] = (slot + 1) % self._history
        return self._inverse_hessian_times(gradient, along)

    def forget(self, chosen: Tensor) -> None:
        """Empty the memory of the trials in `chosen`, bool [T]."""
        if chosen.any():
            self._pairs[chosen, : self._used] = 0
            self._inverse[chosen], self._among[chosen], self._along[chosen], self._scale[chosen] = 0, 0, 0, 1

    def keep(self, trials: Tensor) -> None:
        """Go on with the trials of the given indices alone."""
        keep_trials(self, trials)

    def _append(self, trials: Tensor, slot: Tensor, column: Tensor) -> None:
        """Put a new pair in the slots [n], with its column [n, slots] of R; its own entry there is 1, whatever is given."""
        used = column.shape[1]
        self._inverse[trials, slot], self._inverse[trials, :, slot] = 0, 0  # the pair that was there goes
        above = self._inverse[trials, :used, :used].bmm(column[:, :, None])[..., 0]
        self._inverse[trials, :used, slot] = -above
        self._inverse[trials, slot, slot] = 1

    def _inverse_hessian_times(self, gradient: Tensor, along: Tensor) -> Tensor:
        """From the gradient's inner products [T, slots, 2] with steps and changes."""
        used, scale = along.shape[1], self._scale[:, None, None]
        inverse, among = self._inverse[:, :used, :used], self._among[:, :used, :used]
        along_steps, along_changes = along.split(1, dim=2)
        first = inverse @ along_steps
        second = inverse.transpose(1, 2) @ (first + scale * (among @ first - along_changes))
        weights = torch.cat([second, -scale * first], dim=2).flatten(1)
        combined = weights[:, None].bmm(self._pairs[:, :used].flatten(1, 2))[:, 0]
        return torch.addcmul(combined, scale[:, 0], gradient)
