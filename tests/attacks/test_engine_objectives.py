"""Distances of updates against numpy, and what counts as a signal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attacks.engine.objectives import Objective, cosine_distance, has_signal, squared_distance
from federation.errors import UsageError

TRIALS = 3


def updates(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv": (2, 3, 3, 3), "bias": (2,), "scale": ()}
    return {
        name: torch.randn(TRIALS, *shape, generator=generator, dtype=torch.double) for name, shape in shapes.items()
    }


def rows(update: dict[str, Tensor]) -> np.ndarray:
    return np.concatenate([tensor.numpy().reshape(TRIALS, -1) for tensor in update.values()], axis=1)


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_distances_equal_numpy(seed: int) -> None:
    ours, theirs = updates(seed), updates(seed + 1)
    a, b = rows(ours), rows(theirs)
    np.testing.assert_allclose(squared_distance(ours, theirs), ((a - b) ** 2).sum(1))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(cosine_distance(ours, theirs), 1 - cosine)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_cosine_ignores_length_and_stays_in_range(seed: int, factor: float) -> None:
    ours, theirs = updates(seed), updates(seed + 1)
    longer = {name: factor * tensor for name, tensor in ours.items()}
    torch.testing.assert_close(cosine_distance(longer, theirs), cosine_distance(ours, theirs))
    torch.testing.assert_close(cosine_distance(longer, ours), torch.zeros(TRIALS, dtype=torch.double))
    opposite = {name: -tensor for name, tensor in longer.items()}
    torch.testing.assert_close(cosine_distance(opposite, ours), torch.full((TRIALS,), 2.0, dtype=torch.double))


@pytest.mark.parametrize("objective", [squared_distance, cosine_distance])
def test_slopes_equal_finite_differences(objective: Objective) -> None:
    ours, theirs = updates(0), updates(1)
    values = [tensor.requires_grad_() for tensor in ours.values()]
    assert torch.autograd.gradcheck(lambda *parts: objective(dict(zip(ours, parts, strict=True)), theirs), values)


@pytest.mark.parametrize("objective", [squared_distance, cosine_distance])
def test_a_zero_candidate_gives_finite_values_and_gradients(objective: object) -> None:
    ours = {name: torch.zeros_like(tensor).requires_grad_() for name, tensor in updates(0).items()}
    value = objective(ours, updates(1))  # type: ignore[operator]
    gradients = torch.autograd.grad(value.sum(), list(ours.values()))
    assert value.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("objective", [squared_distance, cosine_distance])
def test_trials_do_not_mix(objective: object) -> None:
    ours, theirs = updates(0), updates(1)
    spoilt = {name: tensor.clone() for name, tensor in ours.items()}
    spoilt["bias"][1] = torch.nan
    value = objective(spoilt, theirs)  # type: ignore[operator]
    assert value.isnan().tolist() == [False, True, False]


def test_only_the_targets_names_count() -> None:
    ours, theirs = updates(0), updates(1)
    partial = {"bias": theirs["bias"]}
    torch.testing.assert_close(squared_distance(ours, partial), (ours["bias"] - theirs["bias"]).square().sum(1))
    with pytest.raises(UsageError, match="scale"):
        squared_distance({"conv": ours["conv"], "bias": ours["bias"]}, theirs)


def test_signal_needs_finite_values_and_a_usable_norm() -> None:
    target = {"w": torch.zeros(5, 2, 2), "b": torch.zeros(5, 2)}
    target["b"][1, 0] = 1e-6
    target["w"][2, 0, 0] = torch.inf
    target["b"][2] = 1
    target["w"][3, 1, 1] = torch.nan
    target["w"][4] = 1e-30  # its square is zero in single precision
    assert has_signal(target).tolist() == [False, True, False, False, False]
