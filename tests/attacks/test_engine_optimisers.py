"""Signed Adam against torch.optim, L-BFGS against scipy and explicit BFGS matrices, trials alone against a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor

from attacks.engine.curvature import CurvatureMemory
from attacks.engine.lbfgs import LBFGS
from attacks.engine.minimise import Evaluation, Minima, minimise
from attacks.engine.optimisers import Optimiser, SignedAdam
from federation.errors import UsageError

Value = Callable[[Tensor, Tensor], Tensor]
"""(points [n, D], indices of the trials [n]) -> values [n]."""


def solve(optimiser: Optimiser, value: Value, start: Tensor, evaluations: int, **options: Any) -> Minima:
    def evaluation_of(trials: Tensor) -> Evaluation:
        def evaluate(point: Tensor) -> tuple[Tensor, Tensor]:
            variable = point.detach().requires_grad_()
            found = value(variable, trials)
            (gradient,) = torch.autograd.grad(found.sum(), variable)
            return found.detach(), gradient

        return evaluate

    return minimise(optimiser, start, evaluation_of, evaluations, **options)


def rosenbrock(point: Tensor, trials: Tensor) -> Tensor:
    head, tail = point[:, :-1], point[:, 1:]
    return (100 * (tail - head.square()).square() + (1 - head).square()).sum(1)


def starts(trials: int, length: int, seed: int = 0) -> Tensor:
    return torch.randn(trials, length, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def quadratics(trials: int, length: int) -> tuple[Tensor, Tensor]:
    """Positive definite matrices of condition 1e3 and their minimisers."""
    basis = torch.linalg.qr(starts(trials * length, length, seed=1).view(trials, length, length)).Q
    scales = torch.logspace(0, 3, length, dtype=torch.double)
    return basis @ (scales[:, None] * basis.transpose(1, 2)), starts(trials, length, seed=2)


def test_signed_adam_equals_torch_optim_on_the_sign_of_the_gradient() -> None:
    matrices, centres = quadratics(3, 5)
    budget = 40

    def value(point: Tensor, trials: Tensor) -> Tensor:
        offset = point - centres[trials]
        return torch.einsum("ti,tij,tj->t", offset, matrices[trials], offset)

    seen: list[Tensor] = []
    search = SignedAdam().start(starts(3, 5), budget)
    for _ in range(budget):
        variable = search.point.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(value(variable, torch.arange(3)).sum(), variable)
        search.advance(value(search.point, torch.arange(3)), gradient)
        seen.append(search.point)

    for trial in range(3):
        parameter = torch.nn.Parameter(starts(3, 5)[trial : trial + 1])
        optimiser = torch.optim.Adam([parameter], lr=0.1)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [15, 25, 35], gamma=0.1)
        for step in range(budget):
            optimiser.zero_grad()
            value(parameter, torch.tensor([trial])).sum().backward()
            assert parameter.grad is not None
            parameter.grad.sign_()
            optimiser.step()
            schedule.step()
            torch.testing.assert_close(seen[step][trial], parameter.detach()[0])


def test_signed_adam_projects_every_step() -> None:
    search = SignedAdam(rate=1.0).start(torch.zeros(2, 3), 10, projection=lambda point: point.clamp(-0.2, 0.3))
    for _ in range(10):
        search.advance(torch.zeros(2), -torch.ones(2, 3))
    assert torch.equal(search.point, torch.full((2, 3), 0.3))


def test_curvature_memory_equals_explicit_bfgs_matrices() -> None:
    """Against H <- (I - r s y') H (I - r y s') + r s s', from H = scale I over the last h pairs alone."""
    trials, length, history = 3, 6, 4
    memory = CurvatureMemory(trials, length, history, torch.zeros((), dtype=torch.double))
    matrices, _ = quadratics(trials, length)
    pairs: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(trials)]
    gradient = starts(trials, length, seed=9)
    torch.testing.assert_close(memory.follow(torch.zeros(3, dtype=torch.bool), gradient, gradient), gradient)
    for number in range(11):
        step = starts(trials, length, seed=10 + number)
        change = torch.einsum("tij,tj->ti", matrices, step)
        stepped = torch.tensor([True, number % 2 == 0, number < 2])
        gradient = torch.where(stepped[:, None], gradient + change, starts(trials, length, seed=30 + number))
        found = memory.follow(stepped, step, gradient)
        for trial in range(trials):
            if stepped[trial]:
                pairs[trial].append((step[trial].numpy(), change[trial].numpy()))
            s, y = pairs[trial][-1]
            inverse = np.eye(length) * (s @ y) / (y @ y)
            for s, y in pairs[trial][-history:]:
                shrink = np.eye(length) - np.outer(s, y) / (s @ y)
                inverse = shrink @ inverse @ shrink.T + np.outer(s, s) / (s @ y)
            np.testing.assert_allclose(found[trial], inverse @ gradient[trial].numpy(), rtol=1e-7, atol=1e-9)

    memory.forget(torch.tensor([False, True, False]))
    after = memory.follow(torch.zeros(3, dtype=torch.bool), step, gradient)
    torch.testing.assert_close(after[1], gradient[1])
    torch.testing.assert_close(after[[0, 2]], found[[0, 2]])


def test_curvature_that_is_not_clearly_positive_is_left_out() -> None:
    memory = CurvatureMemory(3, 4, 5, torch.zeros(()))
    stepped, step = torch.ones(3, dtype=torch.bool), torch.eye(4)[:3]
    memory.follow(~stepped, step, torch.zeros(3, 4))
    slope = torch.tensor([2.0, -2.0, 0.0])[:, None] * step
    found = memory.follow(stepped, step, slope)
    torch.testing.assert_close(found, torch.stack([slope[0] / 2, slope[1], slope[2]]))


def test_single_precision_remembers_a_search_as_well_as_double() -> None:
    """Along a search on a badly conditioned quadratic that overwrites its 40 pairs several times."""
    scales = torch.logspace(0, 4, 200, dtype=torch.double)
    single, double = (
        CurvatureMemory(2, 200, 40, torch.zeros((), dtype=dtype)) for dtype in (torch.float, torch.double)
    )
    stepped = torch.ones(2, dtype=torch.bool)
    gradient = first = starts(2, 200)
    single.follow(~stepped, gradient.float(), gradient.float())
    direction = double.follow(~stepped, gradient, gradient)
    for number in range(200):
        length = 0.9 * (direction * gradient).sum(1) / (scales * direction.square()).sum(1)  # short of the minimum
        step = -length[:, None] * direction
        gradient = gradient + scales * step
        direction = double.follow(stepped, step, gradient)
        error = single.follow(stepped, step.float(), gradient.float()) - direction
        assert (error.norm(dim=1) < 1e-5 * direction.norm(dim=1)).all(), f"after {number + 1} pairs"
    assert (gradient.norm(dim=1) < 0.1 * first.norm(dim=1)).all()


def test_lbfgs_reaches_the_minima_of_quadratics() -> None:
    matrices, centres = quadratics(4, 30)

    def value(point: Tensor, trials: Tensor) -> Tensor:
        offset = point - centres[trials]
        return torch.einsum("ti,tij,tj->t", offset, matrices[trials], offset)

    found = solve(LBFGS(tolerance=1e-20), value, starts(4, 30), 300)
    torch.testing.assert_close(found.point, centres, atol=1e-7, rtol=0)
    assert (found.evaluations < 300).all()


def test_lbfgs_needs_no_more_than_twice_scipys_evaluations_on_rosenbrock() -> None:
    start = starts(6, 8)
    found = solve(LBFGS(tolerance=1e-16), rosenbrock, start, 1000)
    for trial in range(6):

        def scalar(x: np.ndarray) -> tuple[float, np.ndarray]:
            return optimize.rosen(x), optimize.rosen_der(x)

        reference = optimize.minimize(
            scalar,
            start[trial].numpy(),
            jac=True,
            method="L-BFGS-B",
            options={"maxcor": 100, "ftol": 1e-20, "gtol": 1e-9},
        )
        assert found.value[trial] < reference.fun + 1e-8
        assert found.evaluations[trial] <= 2 * reference.nfev


@pytest.mark.parametrize("optimiser", [SignedAdam(), LBFGS(history=5)])
def test_a_batch_equals_its_trials_alone(optimiser: Optimiser) -> None:
    start = starts(5, 6)
    start[2] = 1 + 1e-3 * start[2]  # one that is nearly there stops early and narrows nobody else's search
    together = solve(optimiser, rosenbrock, start, 60)
    for trial in range(5):
        alone = solve(optimiser, rosenbrock, start[trial : trial + 1], 60)
        torch.testing.assert_close(together.value[trial], alone.value[0], rtol=1e-5, atol=1e-12)
        torch.testing.assert_close(together.point[trial], alone.point[0], rtol=1e-5, atol=1e-6)
        assert together.evaluations[trial] == alone.evaluations[0]


def test_the_batch_narrows_to_the_trials_still_running() -> None:
    start = torch.ones(4, 3, dtype=torch.double)  # the minimum, where the gradient vanishes at once
    start[3] = starts(1, 3)[0]
    widths: list[int] = []

    def value(point: Tensor, trials: Tensor) -> Tensor:
        widths.append(len(point))
        assert torch.equal(trials, torch.arange(4) if len(point) == 4 else torch.tensor([3]))
        return rosenbrock(point, trials)

    found = solve(LBFGS(), value, start, 200)
    assert widths[:2] == [4, 1]
    assert found.evaluations[:3].tolist() == [1, 1, 1]
    assert found.evaluations[3] == len(widths)
    assert found.value[3] < 1e-6
    assert not found.failed.any()


@pytest.mark.parametrize("optimiser", [SignedAdam(), LBFGS(history=5)])
def test_waiting_trials_take_the_places_of_those_that_ended_and_change_nothing(optimiser: Optimiser) -> None:
    """Seven trials on two places, one of which fails half way and one of which begins at its minimum."""
    start = starts(7, 4)
    start[1] = 1
    seen: list[list[int]] = []

    def value(point: Tensor, trials: Tensor) -> Tensor:
        seen.append(trials.tolist())
        spoilt = (trials == 3) & (point.sum(1) < start[3].sum())
        return torch.where(spoilt, torch.nan, 1.0) * rosenbrock(point, trials)

    found = solve(optimiser, value, start, 40, width=2)
    assert max(len(trials) for trials in seen) == 2
    spent = [sum(trial in trials for trials in seen) for trial in range(7)]
    together = solve(optimiser, value, start, 40)
    for name in ("point", "value"):
        torch.testing.assert_close(getattr(found, name), getattr(together, name), rtol=1e-5, atol=1e-7)
    assert torch.equal(found.evaluations, together.evaluations)
    assert torch.equal(found.failed, together.failed)
    # nobody waits for the slowest: places are empty only once nobody waits
    full = sum(len(trials) == 2 for trials in seen)
    assert full >= (int(found.evaluations.sum()) - 40) // 2
    assert all(count >= int(evaluations) for count, evaluations in zip(spent, found.evaluations, strict=True))


def test_a_step_tells_how_far_each_trial_is() -> None:
    start = starts(3, 3)
    start[0] = 1  # ends after one evaluation
    steps: list[tuple[list[int], list[int], list[bool]]] = []
    solve(
        LBFGS(),
        rosenbrock,
        start,
        3,
        width=2,
        report=lambda step: steps.append((step.trials.tolist(), step.evaluations.tolist(), step.ended.tolist())),
    )
    assert steps == [
        ([0, 1], [1, 1], [True, False]),
        ([2, 1], [1, 2], [False, False]),
        ([2, 1], [2, 3], [False, True]),
        ([2], [3], [True]),
    ]


def test_lbfgs_backs_off_from_where_the_function_is_undefined() -> None:
    def value(point: Tensor, trials: Tensor) -> Tensor:
        return (point - point.log()).sum(1) - point.shape[1]  # minimum 0 at 1; undefined below 0

    start = torch.full((1, 4), 1e-3, dtype=torch.double)
    start[0, 0] = 40.0
    found = solve(LBFGS(tolerance=0), value, start, 200)
    torch.testing.assert_close(found.point, torch.ones_like(start), atol=1e-5, rtol=0)
    assert not found.failed.any()


@pytest.mark.parametrize("optimiser", [SignedAdam(), LBFGS()])
def test_a_trial_that_meets_no_finite_value_is_frozen_and_flagged(optimiser: Optimiser) -> None:
    def value(point: Tensor, trials: Tensor) -> Tensor:
        return torch.where(trials == 1, torch.nan, 1.0) * rosenbrock(point, trials)

    start = starts(3, 4)
    found = solve(optimiser, value, start, 30)
    assert found.failed.tolist() == [False, True, False]
    assert found.evaluations[1] == 1
    assert torch.equal(found.point[1], start[1])
    assert found.value.isinf().tolist() == [False, True, False]


def test_signed_adam_keeps_the_best_point_of_a_trial_that_fails_later() -> None:
    def value(point: Tensor, trials: Tensor) -> Tensor:
        return torch.where(point.sum(1) < -1, torch.nan, point.sum(1))

    found = solve(SignedAdam(), value, torch.zeros(1, 1, dtype=torch.double), 100)
    assert found.failed.all()
    assert -1 <= found.value.item() < -0.85
    assert found.evaluations.item() < 100


@pytest.mark.parametrize("optimiser", [SignedAdam(), LBFGS()])
def test_the_best_point_is_one_that_was_evaluated(optimiser: Optimiser) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def value(point: Tensor, trials: Tensor) -> Tensor:
        found = rosenbrock(point, trials)
        seen.append((point.detach().clone(), found.detach()))
        return found

    found = solve(optimiser, value, starts(1, 4), 25)
    assert found.evaluations.item() == len(seen) == 25
    point, least = min(seen, key=lambda pair: pair[1].item())
    assert torch.equal(found.point, point)
    assert torch.equal(found.value, least)


def test_lbfgs_cannot_project() -> None:
    with pytest.raises(UsageError, match="without bounds"):
        LBFGS().start(torch.zeros(1, 2), 10, projection=lambda point: point)
