"""What a comparison of Key-Net speeds times: networks under fresh keys, and SciPy on the same weights and keys.

Every case is checked as it is made: decrypted weights are the weights within the error that the defense states, and
SciPy's products are the keyed weights. A wrong result is never timed.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse
from torch import Tensor

from benchmark.audit.chosen import spread_weights
from benchmark.speed.keynet_report import Facts
from benchmark.speed.measure import Work
from defenses.base import Magnitudes
from defenses.keynet.channel import ChannelTransform
from defenses.keynet.defense import KeyNet
from defenses.keynet.keys import ChannelKeys, Key, draw_keys
from defenses.keynet.pixel import PixelKey
from defenses.keynet.pixel_defense import KeyNetToeplitz
from defenses.keynet.pixel_form import PixelForm
from defenses.keynet.pixel_keys import PixelKeys, draw_pixel_keys
from defenses.keynet.pixel_message import KeyedModel
from defenses.keynet.pixel_transform import LayerKeying, PixelTransform, Singles, SparseKeying, layer_keying
from defenses.stages import Stage
from federation.channels import TensorAxes
from federation.errors import KeyholeError
from federation.messages import tensors_to_bytes
from federation.models import build_model
from federation.models.base import seeded_initialisation
from federation.network import Network
from federation.secret_root import SecretRoot
from federation.seeds import torch_generator
from federation.toeplitz import ToeplitzLayout
from federation.vision import models
from federation.weights import Weights, floating, largest_difference

Matrix: TypeAlias = scipy.sparse.csr_array | Singles

GAIN_RANGES: Mapping[str, float] = {"permutations": 1.0, "gains": 2.0}

_SINGLES = 2.0**-21
"""Relative difference of SciPy's products in float32 from ours at most: gains and products are each rounded twice."""


@dataclass(frozen=True)
class Case:
    """A network under keys, and what is timed on it.

    Attributes:
        facts: sizes and errors.
        works: "encrypt", "decrypt", "products", "copy"; as Toeplitz matrices also "keying" and "oracle".
    """

    facts: Facts
    works: Mapping[str, Work]


def all_cases() -> list[Case]:
    """LeNet-5 on 28x28 pixels as Toeplitz matrices and MobileNetV2 in channel mode, each with both kinds of keys."""
    lenet = Network(lambda: build_model("lenet5", (1, 28, 28), 10, seed=0), (1, 28, 28), 10)

    def mobilenet() -> Any:
        with seeded_initialisation(0):
            return models.mobilenet_v2(num_classes=10)

    images = Network(mobilenet, (3, 32, 32), 10)
    return [toeplitz_case("LeNet-5", lenet, keys) for keys in GAIN_RANGES] + [
        channel_case("MobileNetV2", images, keys) for keys in GAIN_RANGES
    ]


def toeplitz_case(name: str, network: Network, kind: str) -> Case:
    """A network of convolutions and fully connected layers as keyed Toeplitz matrices.

    Args:
        name: of the network, for the report.
        network: without further tensors with values, so that the products are all there is to do.
        kind: "permutations" or "gains".

    Raises:
        KeyholeError: where a result is wrong, or the network has other tensors.
    """
    defense = KeyNetToeplitz(gain_range=GAIN_RANGES[kind])
    form, weights = PixelForm.of(network), _weights(network)
    if form.vectors:
        raise KeyholeError(f"{name} has tensors that stand in no matrix; SciPy's products would leave them out")
    keys = draw_pixel_keys(form, SecretRoot.fresh(), defense.policy)
    transform = PixelTransform(form, keys)
    message = transform.protect(weights).to_bytes()
    keyed = KeyedModel.from_bytes(message, form, "keyed model")  # as it is received: its places are not ours
    facts = _facts(
        name, network, defense, kind, entries=sum(matrix.nnz for matrix in keyed.matrices.values()),
        wire_bytes=len(message), conditions=keys.condition_numbers,
        weights=weights, recovered=transform.recover(keyed, "keyed model"),
    )  # fmt: skip
    products = _pixel_products(form, keys, weights, keyed)
    keying = _Layers(layer_keying, form, keys, weights, keyed)
    oracle = _Layers(SparseKeying, form, keys, weights, keyed)
    for layers in (keying, oracle):
        layers.check()
    return Case(facts, {
        "encrypt": lambda: transform.protect(weights),
        "decrypt": lambda: transform.recover(keyed, "keyed model"),
        "products": lambda: _there_and_back(products),
        "keying": keying.there_and_back,
        "oracle": oracle.there_and_back,
        "copy": lambda: _copy(weights),
    })  # fmt: skip


def channel_case(name: str, network: Network, kind: str) -> Case:
    """A network with its kernels and vectors keyed by channel; arguments and errors like those of `toeplitz_case`."""
    defense, weights = KeyNet(gain_range=GAIN_RANGES[kind]), _weights(network)
    keys = draw_keys(network.channels, SecretRoot.fresh(), defense.policy)
    transform = ChannelTransform(keys, network.channels)
    keyed = transform.protect(weights)
    facts = _facts(
        name, network, defense, kind, entries=sum(keyed[spec.name].numel() for spec in floating(network.layout)),
        wire_bytes=len(tensors_to_bytes(keyed)), conditions=keys.condition_numbers,
        weights=weights, recovered=transform.recover(keyed),
    )  # fmt: skip
    products = _channel_products(network, keys, weights, keyed)
    return Case(facts, {
        "encrypt": lambda: transform.protect(weights),
        "decrypt": lambda: transform.recover(keyed),
        "products": lambda: _there_and_back(products),
        "copy": lambda: _copy(weights),
    })  # fmt: skip


@dataclass(frozen=True)
class _Product:
    """A W B^-1 and back with SciPy alone, on matrices that are ready.

    Attributes:
        there: A, W and, unless W is a vector, B^-1.
        back: A^-1, the keyed W and, unless W is a vector, B.
    """

    there: tuple[Matrix, ...]
    back: tuple[Matrix, ...]

    def check(self, where: str) -> None:
        """Raise KeyholeError unless the products are the keyed matrix and the plain one."""
        for factors, due in ((self.there, self.back[1]), (self.back, self.there[1])):
            if abs(_multiply(factors) - due).max() > _SINGLES * abs(due).max():
                raise KeyholeError(f"{where}: SciPy's products and ours differ")


def _multiply(factors: tuple[Matrix, ...]) -> Matrix:
    return functools.reduce(operator.matmul, factors)


def _there_and_back(products: Iterable[_Product]) -> None:
    """Every product, each result dropped at once: memory that is used again is the fastest."""
    for product in products:
        _multiply(product.there)
        _multiply(product.back)


def _pixel_products(form: PixelForm, keys: PixelKeys, weights: Weights, keyed: KeyedModel) -> list[_Product]:
    products = []
    for name, step in form.layers.items():
        output, source = keys.spaces[step.space], keys.spaces[step.source_spaces[0]]
        product = _Product(
            (_singles(output.matrix), _singles(step.layout.matrix(step.fill(weights))), _singles(source.inverse)),
            (_singles(output.inverse), keyed.matrices[name], _singles(source.matrix)),
        )
        product.check(name)
        products.append(product)
    return products


def _channel_products(
    network: Network, keys: ChannelKeys, weights: Weights, keyed: Mapping[str, Tensor]
) -> list[_Product]:
    products = []
    for name, axes in network.channels.axes.items():
        if not axes.out_spaces:
            continue
        output = [keys.keys[space] for space in axes.out_spaces]
        plain, due = (_as_matrix(tensors[name], axes) for tensors in (weights, keyed))
        matrix, inverse = _block_diagonal(output)
        product = _Product((_singles(matrix), plain), (_singles(inverse), due))
        if axes.in_spaces:
            do, undo = _block_diagonal([keys.keys[space] for space in axes.in_spaces])
            run = scipy.sparse.eye_array(plain.shape[1] // do.shape[0])
            do, undo = (_singles(scipy.sparse.kron(matrix, run)) for matrix in (do, undo))
            product = _Product((*product.there, undo), (*product.back, do))
        product.check(name)
        products.append(product)
    return products


def _block_diagonal(keys: Sequence[Key]) -> tuple[scipy.sparse.sparray, scipy.sparse.sparray]:
    """The keys of an axis as one matrix, and its inverse."""
    return (
        scipy.sparse.block_diag([scipy.sparse.csr_array(key.matrix) for key in keys]),
        scipy.sparse.block_diag([scipy.sparse.csr_array(key.inverse) for key in keys]),
    )


def _as_matrix(tensor: Tensor, axes: TensorAxes) -> Matrix:
    """[outputs, inputs * taps]: dense, which SciPy multiplies fastest; blocks on a diagonal where it is grouped."""
    rows = tensor.numpy().reshape(len(tensor), -1) if axes.in_spaces else tensor.numpy()
    return rows if axes.groups == 1 else _singles(scipy.sparse.block_diag(np.split(rows, axes.groups)))


class _Layers:
    """One way of keying every layer: values to entries, and entries to values."""

    def __init__(
        self,
        keying: Callable[[ToeplitzLayout, PixelKey, PixelKey], LayerKeying],
        form: PixelForm,
        keys: PixelKeys,
        weights: Weights,
        keyed: KeyedModel,
    ) -> None:
        self._layers = [
            (
                keying(step.layout, keys.spaces[step.space], keys.spaces[step.source_spaces[0]]),
                step.fill(weights).astype(np.float32),
                keyed.matrices[name].data,
            )
            for name, step in form.layers.items()
        ]

    def there_and_back(self) -> list[tuple[Singles, Singles]]:
        return [(keying.protect(values), keying.recover(entries)) for keying, values, entries in self._layers]

    def check(self) -> None:
        """Raise KeyholeError unless it keys as the keyed model is keyed, and recovers the values."""
        for (keying, values, entries), found in zip(self._layers, self.there_and_back(), strict=True):
            if not all(
                np.allclose(*pair, rtol=_SINGLES, atol=0) for pair in zip(found, (entries, values), strict=True)
            ):
                raise KeyholeError(f"{type(keying).__name__} keys a layer in another way than the whole model is keyed")


def _facts(
    name: str, network: Network, defense: Stage, kind: str, *, entries: int, wire_bytes: int,
    conditions: Iterable[float], weights: Weights, recovered: Weights,
) -> Facts:  # fmt: skip
    """The case's facts; raises KeyholeError unless the recovered weights are the weights within the stated error."""
    largest = max(float(weights[spec.name].abs().max()) for spec in floating(network.layout))
    error = largest_difference(recovered, weights)
    stated = defense.stated_error(Magnitudes(weights=largest, update=0.0, clients=1))
    if not error <= stated:
        raise KeyholeError(f"{name}: decrypted weights are off by {error:.3g}, more than the stated {stated:.3g}")
    return Facts(
        network=name,
        defense=defense.name,
        keys=kind,
        values=sum(spec.size for spec in floating(network.layout)),
        entries=entries,
        wire_bytes=wire_bytes,
        condition=max(conditions),
        error=error,
        stated_error=stated,
    )


def _weights(network: Network) -> Weights:
    """Weights of either sign, none of them 0: batch normalisation's would else be 0 and 1."""
    return spread_weights(network.layout, torch_generator(0), smallest=1e-3, largest=0.1)


def _copy(weights: Weights) -> Weights:
    return {name: tensor.clone() for name, tensor in weights.items()}


def _singles(matrix: Any) -> scipy.sparse.csr_array:
    """The matrix in float32 and CSR; its places keep their type, since SciPy 1.17 is slower with all in 32 bits."""
    return scipy.sparse.csr_array(matrix, dtype=np.float32)
