"""Whole models under pixel keys: recovery, averages, what is carried beside the matrices, messages."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import RandomNetwork, random_networks, roots
from small_networks import NETWORKS, assert_recovers, everything, lenet5, lenet_zhu, random_weights
from torch import Tensor

from defenses.base import Magnitudes
from defenses.keynet.pixel_defense import KeyNetToeplitz
from defenses.keynet.pixel_form import PixelForm
from defenses.keynet.pixel_keys import PixelKeyPolicy, draw_pixel_keys, identity_pixel_keys
from defenses.keynet.pixel_message import KeyedModel
from defenses.keynet.pixel_transform import PixelTransform
from federation.errors import MalformedMessage
from federation.messages import raw_tensors_from_bytes, tensors_to_bytes
from federation.secret_root import SecretRoot
from federation.weights import weighted_mean

ROOT = SecretRoot(b"pixel keys are drawn from this.." * 2)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    random_networks(),
    roots,
    st.sampled_from([1.0, 2.0]),
    st.integers(1, 3),
    st.sampled_from(["identity", "permutation", "monomial"]),
)
def test_recovering_undoes_protecting_and_averaging_commutes(
    case: RandomNetwork, root: SecretRoot, gain_range: float, alpha: int, outputs: Any
) -> None:
    network, defense = case.network, KeyNetToeplitz(gain_range=gain_range, alpha=alpha, outputs=outputs)
    form = PixelForm.of(network)
    keys = draw_pixel_keys(form, root, defense.policy)
    transform = PixelTransform(form, keys)
    contributions = [random_weights(network, number) for number in range(2)]
    bound = defense.stated_error(Magnitudes(1.0, 1.0, 2))
    keyed = [transform.protect(weights) for weights in contributions]
    for weights, model in zip(contributions, keyed, strict=True):
        assert_recovers(transform.recover(model, "a model"), weights, bound)
    shares = (0.25, 0.75)
    pairs = list(zip(shares, keyed, strict=True))
    mean = KeyedModel(
        {name: scipy.sparse.csr_array(sum(share * model.matrices[name] for share, model in pairs))
         for name in form.layers},
        {name: sum(share * model.vectors[name] for share, model in pairs) for name in form.vectors},
        {name: keyed[1].counters[name] for name in form.counter_names},
    )  # fmt: skip
    for matrix, model in ((mean.matrices[name], keyed[0].matrices[name]) for name in form.layers):
        assert np.array_equal(matrix.indices, model.indices)
    plain = weighted_mean(network.layout, contributions, shares)
    assert_recovers(transform.recover(mean, "a mean"), plain, bound)
    for name, matrix in transform.protect(plain).matrices.items():
        largest = max(float(np.abs(model.matrices[name].data).max()) for model in keyed)
        assert np.abs(matrix.data - mean.matrices[name].data).max() <= max(bound, 4 * 2.0**-24) * largest


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("gain_range", [1.0, 2.0])
def test_models_come_back_from_their_bytes(name: str, gain_range: float) -> None:
    network = NETWORKS[name]()
    form = PixelForm.of(network)
    transform = PixelTransform(form, draw_pixel_keys(form, ROOT, PixelKeyPolicy(gain_range)))
    weights = random_weights(network)
    payload = transform.protect(weights).to_bytes()
    bound = KeyNetToeplitz(gain_range=gain_range).stated_error(Magnitudes(1.0, 1.0, 1))
    recovered = transform.recover(KeyedModel.from_bytes(payload, form, "a model"), "a model")
    assert_recovers(recovered, weights, bound if gain_range > 1 else 0.0)


def test_what_stands_in_no_matrix_is_carried_under_keys_of_its_own() -> None:
    network = everything()
    form = PixelForm.of(network)
    assert form.vectors == {
        **dict.fromkeys(("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"), 6),
        "depthwise.separate": 6 * 8,
    }
    weights = random_weights(network)
    keys = draw_pixel_keys(form, ROOT, PixelKeyPolicy(1.0))
    model = PixelTransform(form, keys).protect(weights)
    taps = weights["depthwise.weight"].reshape(6, 9)
    outer = np.delete(taps.numpy(), 4, axis=1).ravel()
    assert np.array_equal(model.vectors["depthwise.separate"], outer[keys.vectors["depthwise.separate"].permutation])
    assert sorted(model.vectors["norm.weight"]) == sorted(weights["norm.weight"].numpy())
    assert model.vectors["norm.weight"].tolist() != weights["norm.weight"].tolist()
    orders = {tuple(found.permutation) for name, found in keys.vectors.items() if name.startswith("norm")}
    assert len(orders) == 4
    assert model.counters["norm.num_batches_tracked"] == weights["norm.num_batches_tracked"]


def test_identity_keys_send_the_toeplitz_matrices_themselves() -> None:
    network = lenet5()
    form, weights = PixelForm.of(network), random_weights(network)
    model = PixelTransform(form, identity_pixel_keys(form)).protect(weights)
    for name, step in form.layers.items():
        assert (model.matrices[name] - step.layout.matrix(step.fill(weights)).astype(np.float32)).nnz == 0


@pytest.mark.parametrize(
    ("part", "change", "fault"),
    [
        ("indptr", lambda t: t + 1, "row pointers"),
        ("indptr", lambda t: t.flip(0), "row pointers"),
        ("indptr", lambda t: t[:-1], "row pointers"),
        ("indptr", lambda t: t[:0], "row pointers"),
        ("indptr", lambda t: t.long(), "torch.int64"),
        ("indices", lambda t: t - 1, "columns are not all between"),
        ("indices", lambda t: t.flip(0), "do not increase"),
        ("indices", lambda t: t[:-1], "row pointers"),
        ("data", lambda t: t[:-1], "columns for"),
        ("data", lambda t: t.double(), "torch.float64"),
        ("data", lambda t: t[None], r"\(1, "),
        ("data", lambda t: torch.cat([t[:-1], torch.tensor([math.nan])]), "not finite"),
        ("data", lambda t: torch.cat([t[:-1], torch.tensor([2.0])]), "last row"),
    ],
)
def test_malformed_matrices_are_refused(part: str, change: Callable[[Tensor], Tensor], fault: str) -> None:
    network = everything()
    form = PixelForm.of(network)
    payload = PixelTransform(form, draw_pixel_keys(form, ROOT, PixelKeyPolicy())).protect(random_weights(network))
    tensors = raw_tensors_from_bytes(payload.to_bytes(), "a model")
    changed = {**tensors, f"conv.{part}": change(tensors[f"conv.{part}"])}
    with pytest.raises(MalformedMessage, match=f"upload: (layer 'conv'|tensor 'conv.{part}').*{fault}"):
        KeyedModel.from_bytes(tensors_to_bytes(changed), form, "upload")


def test_another_keys_places_are_refused() -> None:
    network = lenet5()
    form, weights = PixelForm.of(network), random_weights(network)
    one, other = (
        PixelTransform(form, draw_pixel_keys(form, ROOT.derive(name), PixelKeyPolicy())) for name in ("one", "other")
    )
    with pytest.raises(MalformedMessage, match="upload: the entries of layer 'conv1' stand in other places"):
        other.recover(one.protect(weights), "upload")


def test_weights_of_another_network_are_refused() -> None:
    form = PixelForm.of(lenet5())
    transform = PixelTransform(form, identity_pixel_keys(form))
    with pytest.raises(MalformedMessage, match="weights to be keyed"):
        transform.protect(random_weights(lenet_zhu()))
