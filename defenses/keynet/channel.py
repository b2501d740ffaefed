"""Protecting weights with channel keys: What = A_out W A_in^-1 on kernels, A_out v on vectors.

Byrne et al. (2020) key a network by What_i = A_i W_i A_{i-1}^-1 on Toeplitz matrices; with one key a channel the same
holds on the kernels themselves, (A_out x I) W (A_in^-1 x I), so that nothing grows. The map is linear: sums, averages
and differences of protected weights recover to those of the weights.

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

from defenses.keynet.blending import MixingTransform
from defenses.keynet.keys import ChannelKeys, fit_fault
from defenses.keynet.monomial import ChannelKey
from defenses.keynet.moving import GAIN_ERROR, MonomialTransform, Vectors
from federation.channels import ChannelMap, TensorAxes
from federation.errors import MalformedMessage, UsageError
from federation.weights import Weights

__all__ = ["GAIN_ERROR", "ChannelTransform", "Treatment"]

TensorTransform: TypeAlias = MonomialTransform | MixingTransform


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
        self._vectors: dict[tuple[str, ...], Vectors] = {}  # by the names that came together

    def protect(self, weights: Mapping[str, Tensor]) -> Weights:
        """The keyed tensors (float32, new memory) of any of the network's tensors; counters stay as they are.

        Raises:
            MalformedMessage: for a tensor that the network does not have, or that does not fit its channel spaces.
        """
        return self._apply(weights, Vectors.protect, lambda transform, values: transform.protect(values))

    def recover(self, weights: Mapping[str, Tensor]) -> Weights:
        """The inverse of `protect`, exact for permutations and else within `recovery_error`; raises like it."""
        return self._apply(weights, Vectors.recover, lambda transform, values: transform.recover(values))

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

    @torch.no_grad()
    def _apply(
        self,
        weights: Mapping[str, Tensor],
        all_vectors: Callable[[Vectors, Mapping[str, Tensor]], Weights],
        one: Callable[[TensorTransform, Tensor], Tensor],
    ) -> Weights:
        vectors, results = {}, {}
        for name, tensor in weights.items():
            transform = self._of(name)
            if transform is None:
                results[name] = tensor.clone()
                continue
            _check(name, tensor, transform.shape)
            values = tensor.detach().cpu().contiguous()
            if values.dim() == 1 and isinstance(transform, MonomialTransform):
                vectors[name] = results[name] = values
            else:
                results[name] = one(transform, values)
        return results | all_vectors(self._joined(vectors), vectors) if vectors else results

    def _joined(self, vectors: Mapping[str, Tensor]) -> Vectors:
        names = tuple(vectors)
        if names not in self._vectors:
            found = {name: self._transforms[name] for name in names}
            self._vectors[names] = Vectors({name: t for name, t in found.items() if isinstance(t, MonomialTransform)})
        return self._vectors[names]


def _transform(keys: ChannelKeys, axes: TensorAxes) -> TensorTransform | None:
    if axes.out_space is None:
        return None
    out_key = keys.keys[axes.out_space]
    in_key = None if axes.in_space is None else keys.keys[axes.in_space]
    if isinstance(out_key, ChannelKey) and (in_key is None or isinstance(in_key, ChannelKey)):
        return MonomialTransform(out_key, in_key, axes)
    return MixingTransform(out_key, in_key, axes)


def _check(name: str, tensor: Tensor, due: tuple[int, int]) -> None:
    """Raise MalformedMessage unless the tensor is float32 and has these first two axes (a vector's second is 1)."""
    shape = tensor.shape
    fits = len(shape) > 0 and shape[0] == due[0] and (shape[1] if len(shape) > 1 else 1) == due[1]
    if tensor.dtype != torch.float32 or not fits:
        raise MalformedMessage(
            f"tensor {name!r} is {tensor.dtype} {tuple(shape)}; its channels need float32 ({due[0]}, {due[1]}, ...)"
        )
