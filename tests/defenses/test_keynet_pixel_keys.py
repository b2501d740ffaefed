"""Pixel keys: what they are, how they are drawn, their bytes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import NETWORKS, everything, lenet5

from defenses.keynet.pixel import LARGEST_CONDITION, PixelKey
from defenses.keynet.pixel_defense import KeyNetToeplitz
from defenses.keynet.pixel_form import PixelForm
from defenses.keynet.pixel_keys import PixelKeyPolicy, PixelKeys, draw_pixel_keys
from federation.errors import MalformedMessage, UsageError
from federation.messages import raw_tensors_from_bytes, tensors_to_bytes
from federation.secret_root import SecretRoot

ROOT = SecretRoot(b"pixel keys are drawn from this.." * 2)


def key(size: int, gain_range: float = 2.0, alpha: int = 1, label: int = 0) -> PixelKey:
    return PixelKey.draw(ROOT.derive("test", label, size).reader(), size, gain_range=gain_range, alpha=alpha)


@settings(deadline=None, max_examples=40)
@given(size=st.integers(1, 20), alpha=st.integers(1, 4), gain_range=st.floats(1, 8), seed=st.binary(min_size=32))
def test_a_key_is_eq_2_7_and_its_inverse_undoes_it(size: int, alpha: int, gain_range: float, seed: bytes) -> None:
    found = PixelKey.draw(SecretRoot(seed).reader(), size, gain_range=gain_range, alpha=alpha)
    permutations = np.stack([np.eye(size)[order] for order in found.permutations])
    truth = np.diag(found.gains) @ np.tensordot(found.shares, permutations, axes=1)
    matrix = found.matrix.toarray()
    assert np.allclose(matrix[:-1, :-1], truth)
    assert np.array_equal(matrix[-1], np.eye(size + 1)[-1])
    assert np.array_equal(matrix[:, -1], np.eye(size + 1)[-1])
    if found.condition_number < 1e6:
        assert np.allclose(found.inverse.toarray() @ matrix, np.eye(size + 1), atol=1e-8)
    assert found.gains.min() >= 1 / gain_range * (1 - 1e-12)
    assert found.gains.max() <= gain_range * (1 + 1e-12)
    assert found.is_monomial == (alpha == 1)


@pytest.mark.parametrize("alpha", [1, 2, 5])
def test_condition_numbers_bound_those_of_numpy(alpha: int) -> None:
    found = key(30, alpha=alpha)
    block = found.matrix.toarray()[:-1, :-1]
    truth = max(np.linalg.cond(block, order) for order in (1, np.inf))
    assert found.condition_number == pytest.approx(truth, rel=1e-6)


def test_a_singular_mixture_has_no_finite_condition() -> None:
    orders = np.array([[0, 1], [1, 0]])
    assert PixelKey(orders, np.array([0.5, 0.5]), np.ones(2)).condition_number > LARGEST_CONDITION


@pytest.mark.parametrize(
    ("orders", "shares", "gains", "fault"),
    [
        ([[0, 0]], [1.0], [1.0, 1.0], "does not hold every entry"),
        ([[0, 1]], [1.0], [1.0, -1.0], "gains are not all between"),
        ([[0, 1]], [1.0], [1.0, math.nan], "gains are not all between"),
        ([[0, 1]], [0.5], [1.0, 1.0], "of sum 1"),
        ([[0, 1], [1, 0]], [1.5, -0.5], [1.0, 1.0], "positive numbers"),
        ([[0, 1]], [1.0], [1.0], "do not fit"),
        ([[0.0, 1.0]], [1.0], [1.0, 1.0], "int64"),
    ],
)
def test_what_is_no_key_is_refused(orders: Any, shares: Any, gains: Any, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        PixelKey(np.array(orders), np.array(shares), np.array(gains))


def test_keys_follow_from_the_root_and_nothing_else() -> None:
    form = PixelForm.of(lenet5())
    state = np.random.get_state()[1].tolist()  # noqa: NPY002  the state that must not be used
    first = draw_pixel_keys(form, ROOT, PixelKeyPolicy()).to_bytes()
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002
    assert draw_pixel_keys(form, ROOT, PixelKeyPolicy()).to_bytes() == first
    assert draw_pixel_keys(form, ROOT.derive("round", 1), PixelKeyPolicy()).to_bytes() != first


def test_only_image_and_pooled_maps_get_soft_keys() -> None:
    form = PixelForm.of(lenet5())
    keys = draw_pixel_keys(form, ROOT, PixelKeyPolicy(alpha=3))
    soft = {space.shape for space, found in zip(form.network.spaces, keys.spaces, strict=True) if not found.is_monomial}
    assert soft == {(1, 12, 12), (6, 6, 6), (16, 1, 1)}
    assert max(keys.condition_numbers) <= 1e3
    assert keys.spaces[-1].is_permutation


def test_badly_conditioned_keys_are_refused() -> None:
    with pytest.raises(UsageError, match="32 keys of alpha 16 for 144 entries have conditions over 4"):
        draw_pixel_keys(PixelForm.of(lenet5()), ROOT, PixelKeyPolicy(gain_range=2, alpha=16, largest_condition=4))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"gain_range": 0.5}, "gain range is between 1"),
        ({"alpha": 0}, "alpha is between 1"),
        ({"outputs": "none"}, "outputs are"),
        ({"largest_condition": 1e9}, "condition bound is between"),
        ({"gain_range": 100.0}, "narrow them or raise the bound"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        KeyNetToeplitz(**options).check(lenet5())


@pytest.mark.parametrize("name", NETWORKS)
def test_keys_come_back_from_their_bytes(name: str) -> None:
    form = PixelForm.of(NETWORKS[name]())
    keys = draw_pixel_keys(form, ROOT, PixelKeyPolicy(alpha=2))
    assert PixelKeys.from_bytes(keys.to_bytes(), form).to_bytes() == keys.to_bytes()


def test_malformed_keys_are_refused() -> None:
    form = PixelForm.of(everything())
    tensors = raw_tensors_from_bytes(draw_pixel_keys(form, ROOT, PixelKeyPolicy()).to_bytes(), "keys")
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    two = tensors["norm.weight.permutations"].repeat(2, 1)
    cases = {
        "missing or unknown": {name: tensor for name, tensor in tensors.items() if name != "0.gains"},
        "does not hold every entry": {**tensors, "0.permutations": torch.zeros_like(tensors["0.permutations"])},
        "it has 6 entries, not 144": {**tensors, **{f"0.{part}": tensors[f"norm.weight.{part}"].clone() for part in
                                                    ("permutations", "shares", "gains")}},
        "it mixes 2 permutations": {**tensors, "norm.weight.permutations": two, "norm.weight.shares": half},
        "conditioned worse": {**tensors, "4.permutations": torch.tensor([[0, 1, 2, 3, 4, 5], [1, 0, 3, 2, 5, 4]]),
                              "4.shares": half, "4.gains": torch.ones(6, dtype=torch.float64)},
    }  # fmt: skip
    assert form.network.spaces[4].size == 6
    for fault, changed in cases.items():
        with pytest.raises(MalformedMessage, match=fault):
            PixelKeys.from_bytes(tensors_to_bytes(changed), form)
