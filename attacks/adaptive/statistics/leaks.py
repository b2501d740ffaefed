"""Keyed images that updates of a network leak whose first layer is fully connected (Gusain 2021, eq. 2.2).

A unit that reads the image x has dL/dW_i = (dL/db_i) x. Under a pixel key A_0 on the image and any key on the units, rows of
the keyed update are multiples of (x^T A_0^-1, 1), so that their quotient is x, permuted and divided by the gains, whatever
the units' key is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.sparse
from torch import Tensor

from attacks.adaptive.statistics.public import Floats
from federation.network import Network
from federation.threat import PlainModel, SparseLayers, View
from federation.toeplitz import Linear, toeplitz_of

Model: TypeAlias = Mapping[str, Tensor] | Mapping[str, scipy.sparse.csr_array]
"""Weights by tensor, or keyed matrices by layer."""

_ROUNDING = 2.0**-22
"""Differences of weights, in units of the largest weight, that pass for rounding."""


@dataclass(frozen=True, eq=False)
class Leak:
    """What one update of a single image gives away.

    Attributes:
        image: [P], normalised and keyed.
        label: the number of its class in the keyed outputs' order.
    """

    image: Floats
    label: int


def dense_first(network: Network) -> Linear | None:
    """The fully connected layer, with a bias, that reads the images; None where another one does."""
    traced = toeplitz_of(network)
    readers = [step for step in traced.weighted if traced.spaces[step.source_spaces[0]].role == "input"]
    shapes = {spec.name: spec.shape for spec in network.layout}
    if len(readers) != 1 or len(readers[0].tensors) != 2 or len(shapes[readers[0].tensors[0]]) != 2:
        return None
    return readers[0]


def image_leak(network: Network, view: View, sender: str) -> Leak | None:
    """The leak in one sender's update; None where it moves nothing beyond rounding, or is not there.

    Args:
        network: one with `dense_first`.
        view: of weights that were keyed as those before them.
        sender: whose update.
    """
    first = dense_first(network)
    assert first is not None, "looked at before"
    if not isinstance(view, PlainModel | SparseLayers) or sender not in view.after:
        return None
    return layer_leak(network, first, view.before, view.after[sender])


def layer_leak(network: Network, step: Linear, before: Model, after: Model) -> Leak | None:
    """What a fully connected layer reads of an update's single image; None where nothing moves beyond rounding.

    Args:
        network: the architecture.
        step: the layer, with a bias.
        before, after: weights by tensor, or keyed matrices by layer.
    """
    update, final = (_moved(before, after, each) for each in (step, toeplitz_of(network).weighted[-1]))
    if update is None or final is None:
        return None
    weights, biases = update[:, :-1], update[:, -1]
    total = float(np.square(biases).sum())
    if total == 0:
        return None
    return Leak(
        biases @ weights / total, int(final[:, -1].argmax())
    )  # of the label's bias alone the gradient is negative


def _moved(before: Model, after: Model, step: Linear) -> Floats | None:
    """What an update adds to [W b], [out, in + 1]; None where that is nothing but rounding."""
    old, new = (_dense(model, step) for model in (before, after))
    moved = new - old
    return moved if np.abs(moved).max() > _ROUNDING * np.abs(old).max() else None


def _dense(model: Model, step: Linear) -> Floats:
    """[W b] of a layer."""
    if step.layer in model:
        matrix = model[step.layer]
        assert not isinstance(matrix, Tensor), "a layer's name is no tensor's"
        return np.asarray(matrix.toarray()[:-1], np.float64)
    parts = [model[name] for name in step.tensors]
    return np.concatenate([part.reshape(part.shape[0], -1).double().numpy() for part in parts], axis=1)
