"""Protecting weights with channel keys: What = A_out W A_in^-1 on kernels, A_out v on vectors.

Byrne et al. (2020) key a network by What_i = A_i W_i A_{i-1}^-1 on Toeplitz matrices; with one key a channel the same
holds on the kernels themselves, (A_out x I) W (A_in^-1 x I), so that nothing grows. The map is linear: sums, averages
and differences of protected weights recover to those of the weights.

A network of ReLU, max or average pooling, flatten and residual sums computes the same function with protected weights
as without, its outputs permuted by the output key. With batch norm this holds for permutations; gains scale its running
variance like every other vector, which keeps it positive and the map simple, for weights that are averaged and not run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from defenses.keynet.keys import ChannelKey, ChannelKeys, Integers, fit_fault
from federation.channels import ChannelMap, TensorAxes
from federation.errors import MalformedMessage, UsageError
from federation.weights import Weights

GAIN_ERROR = 2.0**-23
"""Relative error of a recovered value at most, where gains were used: one float32 rounding each way (3e-8 RMS)."""

Values: TypeAlias = npt.NDArray[np.float32]

_SAME_GAIN = 1e-6
_UNKEYED = ChannelKey(np.zeros(1, dtype=np.int64), np.ones(1))


class Treatment(StrEnum):
    """What a channel transform does to the values of a tensor."""

    PLAIN = "plain"
    PERMUTED = "permuted"
    SCALED = "scaled"
    PERMUTED_AND_SCALED = "permuted and scaled"


class ChannelTransform:
    """The transform of a network's tensors under one set of keys; built once, used for every message.

    Args:
        keys: one key a channel space.
        channel_map: the network's channel spaces.

    Raises:
        UsageError: where the keys do not fit the map.
    """

    def __init__(self, keys: ChannelKeys, channel_map: ChannelMap) -> None:
        fault = fit_fault(keys, channel_map)
        if fault:
            raise UsageError(f"channel keys: {fault}")
        self._transforms = {
            name: None if axes.out_space is None else _TensorTransform.of(keys, axes)
            for name, axes in channel_map.axes.items()
        }

    def protect(self, weights: Mapping[str, Tensor]) -> Weights:
        """The keyed tensors (float32, new memory) of any of the network's tensors; counters stay as they are.

        Raises:
            MalformedMessage: for a tensor that the network does not have, or that does not fit its channel spaces.
        """
        return self._apply(weights, _TensorTransform.protect)

    def recover(self, weights: Mapping[str, Tensor]) -> Weights:
        """The inverse of `protect`, exact for permutations and within `recovery_error` for gains; raises like it."""
        return self._apply(weights, _TensorTransform.recover)

    def treatment(self, name: str) -> Treatment:
        """What happens to the tensor of this name: what a defense declares and an audit of the wire verifies."""
        transform = self._of(name)
        return transform.treatment if transform else Treatment.PLAIN

    def recovery_error(self, name: str) -> float:
        """Largest relative error of a value of this tensor after protect and recover, barring float32 underflow."""
        transform = self._of(name)
        return GAIN_ERROR if transform and transform.scales else 0.0

    def _of(self, name: str) -> _TensorTransform | None:
        """The transform of a tensor, None for one without channels."""
        if name not in self._transforms:
            raise MalformedMessage(f"the network has no tensor {name!r}")
        return self._transforms[name]

    def _apply(self, weights: Mapping[str, Tensor], step: Callable[[_TensorTransform, Values], Values]) -> Weights:
        results = {}
        for name, tensor in weights.items():
            transform = self._of(name)
            if transform is None:
                results[name] = tensor.detach().clone()
                continue
            transform.check(name, tensor)
            results[name] = torch.from_numpy(step(transform, tensor.detach().cpu().contiguous().numpy()))
        return results


@dataclass(frozen=True)
class _Gather:
    """Where each run of a tensor comes from: run `rows[g, o] + columns[g, i]` goes to place (g, o, i).

    A run is what one output channel has of one input channel: the taps of a kernel, or the weights of a channel's
    pixels. Shapes: rows [groups, outputs a group, 1], columns [groups, 1, inputs a group].
    """

    rows: Integers
    columns: Integers

    @classmethod
    def along(cls, out_permutation: Integers, in_permutation: Integers, groups: int) -> _Gather:
        """The gather that permutes both axes; groups move as a whole, so a column's place in its group is enough."""
        width = len(in_permutation) // groups
        return cls(out_permutation.reshape(groups, -1, 1) * width, in_permutation.reshape(groups, 1, -1) % width)

    def index(self) -> Integers:
        """[runs], the source of every run."""
        return (self.rows + self.columns).ravel()

    def take(self, values: Values) -> Values:
        """Gather whole runs of a contiguous tensor; the result has its shape."""
        index = self.index()
        # The keys are known to be permutations, so nothing is ever clipped: it only spares the check.
        return np.take(values.reshape(len(index), -1), index, axis=0, mode="clip").reshape(values.shape)


@dataclass(frozen=True)
class _TensorTransform:
    """The transform of one tensor.

    It keeps a vector an axis and multiplies them out whenever it is used: that costs a third of the time over tables of
    the tensor's size, and spares every client their memory.
    """

    gather: _Gather
    inverse: _Gather
    out_gains: Values  # [groups, outputs a group, 1]
    in_gains: Values  # [groups, 1, inputs a group], each the inverse of the key's gain
    in_expansion: int

    @classmethod
    def of(cls, keys: ChannelKeys, axes: TensorAxes) -> _TensorTransform:
        assert axes.out_space is not None, "a tensor without channels has no transform"
        out_key = keys.keys[axes.out_space]
        in_key = _UNKEYED if axes.in_space is None else keys.keys[axes.in_space]
        return cls(
            _Gather.along(out_key.permutation, in_key.permutation, axes.groups),
            _Gather.along(np.argsort(out_key.permutation), np.argsort(in_key.permutation), axes.groups),
            out_key.gains.astype(np.float32).reshape(axes.groups, -1, 1),
            (1 / in_key.gains).astype(np.float32).reshape(axes.groups, 1, -1),
            axes.in_expansion,
        )

    @cached_property
    def scales(self) -> bool:
        return bool(np.any(np.abs(self.out_gains * self.in_gains - 1) > _SAME_GAIN))

    @cached_property
    def permutes(self) -> bool:
        index = self.gather.index()
        return not np.array_equal(index, np.arange(len(index)))

    @property
    def treatment(self) -> Treatment:
        if self.permutes:
            return Treatment.PERMUTED_AND_SCALED if self.scales else Treatment.PERMUTED
        return Treatment.SCALED if self.scales else Treatment.PLAIN

    def protect(self, values: Values) -> Values:
        keyed = self.gather.take(values)
        if self.scales:
            by_axis, factors = self._factors(keyed)
            np.multiply(by_axis, factors, out=by_axis)
        return keyed

    def recover(self, keyed: Values) -> Values:
        if not self.scales:
            return self.inverse.take(keyed)
        by_axis, factors = self._factors(keyed)
        return self.inverse.take(np.divide(by_axis, factors, out=factors).reshape(keyed.shape))

    def check(self, name: str, tensor: Tensor) -> None:
        """Raise MalformedMessage unless the tensor has this transform's axes."""
        outputs, inputs = self.out_gains.size, self.in_gains.shape[2] * self.in_expansion
        shape = tuple(tensor.shape)
        if tensor.dtype != torch.float32 or shape[:1] != (outputs,) or (shape[1:2] or (1,)) != (inputs,):
            raise MalformedMessage(
                f"tensor {name!r} is {tensor.dtype} {shape}; its channels need float32 ({outputs}, {inputs}, ...)"
            )

    def _factors(self, values: Values) -> tuple[Values, Values]:
        """The values as [groups, outputs a group, values an output], and the factor of each."""
        by_axis = values.reshape(*self.out_gains.shape[:2], -1)
        repeats = by_axis.shape[2] // self.in_gains.shape[2]
        return by_axis, self.out_gains * np.repeat(self.in_gains, repeats, axis=2)
