"""One evaluation of all trials at once against one trial after another: `pytest tests/benchmarks/bench_attack_engine.py`.

The loop is what single-trial code does: plain autograd with a second backward pass. Both run alternately on one thread in the
same process, so the ratio (`extra_info["times_faster"]`) holds on a busy machine too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.nn import functional as F

from attacks.engine.candidates import Layout
from attacks.engine.chain import single_gradient
from attacks.engine.evaluation import Problem, eager_evaluator
from attacks.engine.objectives import cosine_distance
from attacks.engine.priors import TotalVariation

ROUNDS = 10
WEIGHT = 1e-3


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def lenet_zhu() -> nn.Module:
    return nn.Sequential(
        *(
            nn.Conv2d(1, 12, 5, stride=2, padding=2),
            nn.Sigmoid(),
            nn.Conv2d(12, 12, 5, stride=2, padding=2),
            nn.Sigmoid(),
        ),
        *(nn.Conv2d(12, 12, 5, padding=2), nn.Sigmoid(), nn.Flatten(), nn.Linear(588, 10)),
    )


def lenet5() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def one_at_a_time(model: nn.Module, points: Tensor, labels: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    parameters = dict(model.named_parameters())
    values, gradients = [], []
    for trial, point in enumerate(points):
        image = point.view(1, 1, 28, 28).requires_grad_()
        loss = F.cross_entropy(model(image), labels[trial])
        update = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        theirs = [target[name][trial] for name in parameters]
        product = sum((ours * other).sum() for ours, other in zip(update, theirs, strict=True))
        ours_norm = sum(ours.square().sum() for ours in update)
        norm = torch.as_tensor(ours_norm * sum(other.square().sum() for other in theirs)).sqrt()
        variation = (image[..., 1:] - image[..., :-1]).abs().mean() + (
            image[..., 1:, :] - image[..., :-1, :]
        ).abs().mean()
        value = 1 - product / norm + WEIGHT * variation
        (gradient,) = torch.autograd.grad(value, image)
        values.append(value.detach())
        gradients.append(gradient.flatten())
    return torch.stack(values), torch.stack(gradients)


@pytest.mark.parametrize("trials", [8, 32])
@pytest.mark.parametrize("make", [lenet_zhu, lenet5])
def test_batched_evaluation(benchmark: BenchmarkFixture, make: type[nn.Module], trials: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        points, private = torch.randn(2, trials, 784)
    labels = F.one_hot(torch.arange(trials) % 10, 10).float()[:, None]
    layout = Layout((1, 1, 28, 28), 10, joint_labels=False)
    update = single_gradient(model, dict(model.named_parameters()))
    target = update(layout.images(private), labels)
    evaluate = eager_evaluator(Problem(layout, update, cosine_distance, (TotalVariation(WEIGHT),)))

    # the same work: without this the ratio means nothing
    torch.testing.assert_close(
        evaluate(points, target, labels), one_at_a_time(model, points, labels, target), rtol=1e-3, atol=1e-6
    )

    seconds: dict[str, list[float]] = {"loop": [], "batch": []}
    for _ in range(ROUNDS):
        for name, call in (
            ("loop", lambda: one_at_a_time(model, points, labels, target)),
            ("batch", lambda: evaluate(points, target, labels)),
        ):
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    loop, batch = (statistics.median(seconds[name]) for name in ("loop", "batch"))
    benchmark.extra_info["times_faster"] = round(loop / batch, 2)
    benchmark.extra_info["milliseconds_per_trial"] = round(1e3 * batch / trials, 3)
    assert batch < loop
    benchmark.pedantic(evaluate, args=(points, target, labels), rounds=ROUNDS, warmup_rounds=1)
