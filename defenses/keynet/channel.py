"""Protecting weights with channel keys: What = A_out W A_in^-1 on kernels, A_out v on vectors.

Byrne et al. (2020) key a network by What_i = A_i W_i A_{i-1}^-1 on Toeplitz matrices; with one key a channel the same
holds on the kernels themselves, (A_out x I) W (A_in^-1 x I), so that nothing grows. Where feature maps are concatenated
A has the keys of the parts as blocks on its diagonal. The map is linear: sums, averages and differences of protected
weights recover to those of the weights.

Whether a network with protected weights still computes its function, its outputs permuted by the output key, is told by
`equivalence.obstacles`. Weights that are averaged and not run need no such thing: any invertible key will do. So gains
scale batch norm's running variance like every other vector, A v, where an equivalent network needs A^2 v. That is
simple and keeps it positive under monomial keys; but whoever has images of the same kind can read the gains of an
otherwise equivalent network off it: the keyed layer's outputs have A^2 v as their true variance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TypeAlias

import torch
from torch import Tensor

from defenses.keynet import runs
from defenses.keynet.blending import MixingTransform
from defenses.keynet.keys import ChannelKeys, fit_fault
from defenses.keynet.monomial import ChannelKey
from defenses.keynet.moving import GAIN_ERROR, MonomialTransform, Movement
from federation.channels import ChannelMap, TensorAxes
from federation.errors import MalformedMessage, UsageError
from federation.weights import Weights

__all__ = ["GAIN_ERROR", "ChannelTransform", "Treatment"]

TensorTransform: TypeAlias = MonomialTransform | MixingTransform
_Sort: TypeAlias = tuple[str, torch.Size, torch.dtype]


class Treatment(StrEnum):
    """What a channel transform does to the values of a tensor."""

    PLAIN = "plain"
    PERMUTED = "permuted"
    SCALED = "scaled"
    PERMUTED_AND_SCALED = "permuted and scaled"
    MIXED = "mixed"


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
        self._transforms = {name: _transform(keys, axes) for name, axes in channel_map.axes.items()}
        self._plans: dict[tuple[_Sort, ...], _Plan] = {}  # by the tensors that came together

    def protect(self, weights: Mapping[str, Tensor]) -> Weights:
        """The keyed tensors (float32, new memory) of any of the network's tensors; counters stay as they are.

        Raises:
            MalformedMessage: for a tensor that the network does not have, or that does not fit its channel spaces.
        """
        plan = self._plan(weights)
        return plan.apply(weights, plan.to, MixingTransform.protect)

    def recover(self, weights: Mapping[str, Tensor]) -> Weights:
        """The inverse of `protect`, exact for permutations and else within `recovery_error`; raises like it."""
        plan = self._plan(weights)
        return plan.apply(weights, plan.back, MixingTransform.recover)

    def treatment(self, name: str) -> Treatment:
        """What happens to the tensor of this name: what a defense declares and an audit of the wire verifies."""
        transform = self._of(name)
        if isinstance(transform, MixingTransform):
            return Treatment.MIXED
        if transform is None or not transform.permutes:
            return Treatment.SCALED if transform and transform.scales else Treatment.PLAIN
        return Treatment.PERMUTED_AND_SCALED if transform.scales else Treatment.PERMUTED

    def recovery_error(self, name: str) -> float:
        """Largest error of a value of this tensor after protect and recover, barring float32 underflow.

        Relative to the value itself under monomial keys, to the tensor's largest value where channels are mixed.
        """
        transform = self._of(name)
        return transform.recovery_error if transform else 0.0

    def _of(self, name: str) -> TensorTransform | None:
        """The transform of a tensor, None for one without channels."""
        if name not in self._transforms:
            raise MalformedMessage(f"the network has no tensor {name!r}")
        return self._transforms[name]

    def _plan(self, weights: Mapping[str, Tensor]) -> _Plan:
        """What is to be done for tensors of these names, shapes and types, which are checked the first time they come."""
        sorts = tuple([(name, tensor.shape, tensor.dtype) for name, tensor in weights.items()])
        if sorts not in self._plans:
            self._plans[sorts] = _Plan({name: self._of(name) for name in weights}, weights)
        return self._plans[sorts]


class _Plan:
    """Every transform of certain tensors.

    Args:
        transforms: by name; None for what stays as it is.
        tensors: of the shapes and types for which the plan is made; raises MalformedMessage where they do not fit.
    """

    def __init__(self, transforms: Mapping[str, TensorTransform | None], tensors: Mapping[str, Tensor]) -> None:
        for name, transform in transforms.items():
            if transform is not None:
                _check(name, tensors[name], transform.shape)
        monomial = {name: found for name, found in transforms.items() if isinstance(found, MonomialTransform)}
        shapes = {name: tensors[name].shape for name in monomial}
        self.to = Movement(runs.multiply, {name: found.to for name, found in monomial.items()}, shapes)
        self.back = Movement(runs.divide, {name: found.back for name, found in monomial.items()}, shapes)
        self._mixing = {name: found for name, found in transforms.items() if isinstance(found, MixingTransform)}
        self._plain = [name for name, transform in transforms.items() if transform is None]

    @torch.no_grad()
    def apply(
        self, weights: Mapping[str, Tensor], move: Movement, mix: Callable[[MixingTransform, Tensor], Tensor]
    ) -> Weights:
        """The tensors, in new memory and in their order, moved in one direction or mixed in the same."""
        found = {name: weights[name].clone() for name in self._plain} | move.apply(weights)
        found |= {name: mix(each, weights[name].detach().cpu().contiguous()) for name, each in self._mixing.items()}
        return {name: found[name] for name in weights}


def _transform(keys: ChannelKeys, axes: TensorAxes) -> TensorTransform | None:
    if not axes.out_spaces:
        return None
    out_keys, in_keys = ([keys.keys[space] for space in spaces] for spaces in (axes.out_spaces, axes.in_spaces))
    monomial = [key for key in (*out_keys, *in_keys) if isinstance(key, ChannelKey)]
    if len(monomial) < len(axes.spaces):
        return MixingTransform(out_keys, in_keys, axes)
    out_key = ChannelKey.side_by_side(monomial[: len(out_keys)])
    in_key = ChannelKey.side_by_side(monomial[len(out_keys) :]) if in_keys else None
    return MonomialTransform(out_key, in_key, axes)


def _check(name: str, tensor: Tensor, due: tuple[int, int]) -> None:
    """Raise MalformedMessage unless the tensor is float32 and has these first two axes (a vector's second is 1)."""
    shape = tensor.shape
    fits = len(shape) > 0 and shape[0] == due[0] and (shape[1] if len(shape) > 1 else 1) == due[1]
    if tensor.dtype != torch.float32 or not fits:
        raise MalformedMessage(
            f"tensor {name!r} is {tensor.dtype} {tuple(shape)}; its channels need float32 ({due[0]}, {due[1]}, ...)"
        )
