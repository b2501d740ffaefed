"""Named-tensor algebra against sums written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from federation.errors import MalformedMessage
from federation.weights import (
    Kind,
    check_layout,
    counters,
    difference,
    flatten,
    floating,
    largest_difference,
    layout_of,
    unflatten,
    weighted_mean,
    weights_of,
)

MODEL = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
LAYOUT = layout_of(MODEL)


def random_weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        spec.name: torch.randint(100, spec.shape, generator=generator)
        if spec.kind is Kind.COUNTER
        else torch.randn(spec.shape, generator=generator)
        for spec in LAYOUT
    }


def test_the_layout_names_every_tensor_and_its_kind() -> None:
    assert [spec.name for spec in LAYOUT] == list(MODEL.state_dict())
    kinds = {spec.name: spec.kind for spec in LAYOUT}
    assert kinds["0.weight"] is kinds["1.weight"] is Kind.PARAMETER
    assert kinds["1.running_mean"] is kinds["1.running_var"] is Kind.RUNNING_STATISTIC
    assert kinds["1.num_batches_tracked"] is Kind.COUNTER
    assert [spec.name for spec in counters(LAYOUT)] == ["1.num_batches_tracked"]
    assert len(floating(LAYOUT)) == len(LAYOUT) - 1
    sizes = {spec.name: spec.size for spec in LAYOUT}
    assert (sizes["0.weight"], sizes["1.num_batches_tracked"], sizes["3.weight"]) == (18, 1, 24)


def test_weights_are_a_copy_that_training_does_not_touch() -> None:
    weights = weights_of(MODEL)
    before = weights["3.bias"].clone()
    with torch.no_grad():
        MODEL.get_parameter("3.bias").add_(1)
    assert torch.equal(weights["3.bias"], before)
    assert not any(tensor.requires_grad for tensor in weights.values())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=6))
def test_the_mean_is_the_sum_of_shares_times_weights(sample_counts: list[int]) -> None:
    contributions = [random_weights(seed) for seed in range(len(sample_counts))]
    shares = [count / sum(sample_counts) for count in sample_counts]
    mean = weighted_mean(LAYOUT, contributions, shares)
    for spec in floating(LAYOUT):
        stacked = np.stack([weights[spec.name].numpy().astype(np.float64) for weights in contributions])
        expected = np.tensordot(np.array(shares), stacked, axes=1)
        np.testing.assert_allclose(mean[spec.name].numpy(), expected, rtol=2.0**-23, atol=1e-12)
        assert mean[spec.name].dtype == torch.float32
    tracked = "1.num_batches_tracked"
    assert int(mean[tracked]) == max(int(weights[tracked]) for weights in contributions)


@pytest.mark.parametrize("shares", [[0.5], [0.5, 0.4], [1.0, 1.0], []])
def test_the_mean_refuses_shares_that_are_none(shares: list[float]) -> None:
    with pytest.raises(ValueError, match="shares that sum to 1"):
        weighted_mean(LAYOUT, [random_weights(0), random_weights(1)], shares)


def test_difference_and_its_largest_value() -> None:
    one, other = random_weights(0), random_weights(1)
    apart = difference(one, other)
    assert all(torch.equal(apart[name], one[name] - other[name]) for name in one)
    expected = max(float((one[name].double() - other[name].double()).abs().max()) for name in one)
    assert largest_difference(one, other) == expected
    assert largest_difference(one, one) == 0
    assert largest_difference({}, {}) == 0


def test_flatten_and_unflatten_are_inverse() -> None:
    weights, specs = random_weights(0), floating(LAYOUT)
    values = flatten(weights, specs)
    assert values.dtype == torch.float64
    np.testing.assert_array_equal(
        values.numpy(), np.concatenate([weights[spec.name].numpy().ravel() for spec in specs])
    )
    back = unflatten(values, specs)
    assert all(torch.equal(back[spec.name], weights[spec.name]) for spec in specs)
    assert len(flatten(weights, [])) == 0


def test_check_layout_accepts_what_fits() -> None:
    check_layout(random_weights(0), LAYOUT, "message")


@pytest.mark.parametrize(
    ("name", "tensor", "reason"),
    [
        ("0.bias", torch.zeros(3), "agreed is torch.float32 (2,)"),
        ("0.bias", torch.zeros(2, dtype=torch.float64), "is torch.float64 (2,)"),
        ("0.bias", torch.tensor([0.0, float("nan")]), "not finite"),
        ("1.running_var", torch.tensor([float("inf"), 1.0]), "not finite"),
        ("1.num_batches_tracked", torch.tensor(1.0), "agreed is torch.int64 ()"),
        ("2.weight", torch.zeros(1), "missing or unknown: ['2.weight']"),
    ],
)
def test_check_layout_refuses_what_does_not(name: str, tensor: torch.Tensor, reason: str) -> None:
    with pytest.raises(MalformedMessage) as caught:
        check_layout(random_weights(0) | {name: tensor}, LAYOUT, "the message")
    assert str(caught.value).startswith("the message: ")
    assert reason in str(caught.value)


def test_check_layout_refuses_a_missing_tensor() -> None:
    weights = random_weights(0)
    del weights["3.bias"]
    with pytest.raises(MalformedMessage, match=r"3\.bias"):
        check_layout(weights, LAYOUT, "message")
