"""The comparison of attacks with their peers: that both do the published algorithm's work, and what is made of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmark.speed.attacks import AttackFigures, breaching_peer, cosine_speed, image_rates, measure_attacks
from benchmark.speed.attacks.figures import CaseResult, Figure
from benchmark.speed.attacks.image_rates import Outcome
from benchmark.speed.attacks.published import published_cosine, published_dlg
from benchmark.speed.attacks.single_images import SENDER, generator_of, mean_psnr, single_images
from federation.errors import UsageError
from federation.models.base import seeded_initialisation
from federation.normalisation import Normalisation
from federation.threat import PlainModel

PLAIN = Normalisation((0.0,), (1.0,))


def small_sigmoid(image_shape: tuple[int, int, int] = (1, 6, 6), class_count: int = 4) -> nn.Module:
    with seeded_initialisation(5):
        model = nn.Sequential(
            *(nn.Conv2d(image_shape[0], 6, 3, padding=1), nn.Sigmoid(), nn.Flatten()),
            nn.Linear(6 * image_shape[1] * image_shape[2], class_count),
        )
        for parameter in model.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)
    return model


def private() -> tuple[nn.Module, Tensor, dict[str, Tensor]]:
    """A network, an image [1, 1, 6, 6] of class 2, and its gradient."""
    model, image = small_sigmoid(), torch.rand(1, 1, 6, 6, generator=generator_of(1))
    gradients = torch.autograd.grad(F.cross_entropy(model(image), torch.tensor([2])), list(model.parameters()))
    return model, image, dict(zip(dict(model.named_parameters()), gradients, strict=True))


def test_the_published_cosine_loop_finds_the_image() -> None:
    model, image, gradient = private()
    found = published_cosine(
        model,
        gradient,
        2,
        normalisation=PLAIN,
        iterations=400,
        total_variation=0.0,
        start=torch.randn(1, 1, 6, 6, generator=generator_of(2)),
    )
    assert found.shape == image.shape
    assert (found - image).square().mean() < 2e-3
    assert 0 <= found.min() <= found.max() <= 1


def test_the_published_cosine_loop_takes_the_papers_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, gradient = private()
    rates: list[float] = []
    step = torch.optim.Adam.step

    def recorded(self: torch.optim.Adam) -> None:
        rates.append(round(self.param_groups[0]["lr"], 6))
        step(self)

    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    published_cosine(
        model,
        gradient,
        torch.tensor([2]),
        normalisation=PLAIN,
        iterations=16,
        total_variation=1e-3,
        start=torch.randn(1, 1, 6, 6, generator=generator_of(2)),
    )
    assert rates == [0.1] * 6 + [0.01] * 4 + [0.001] * 4 + [0.0001] * 2


def test_the_published_dlg_loop_finds_the_image_and_leaves_off_when_told() -> None:
    """From some starts: without a line search, others diverge."""
    model, image, gradient = private()
    asked: list[list[float]] = []

    def recovered(found: Tensor) -> bool:
        asked[-1].append(float((found - image).square().mean()))
        return asked[-1][-1] < 1e-3

    for seed in range(4):
        asked.append([])
        found = published_dlg(
            model,
            gradient,
            shape=(1, 1, 6, 6),
            classes=4,
            normalisation=PLAIN,
            steps=60,
            generator=generator_of(seed),
            done=recovered,
        )
        assert asked[-1][-1] == float((found - image).square().mean())
        assert all(error >= 1e-3 for error in asked[-1][:-1])
        assert len(asked[-1]) == 60 or asked[-1][-1] < 1e-3
    assert min(errors[-1] for errors in asked) < 1e-3


def test_updates_are_those_of_single_images() -> None:
    work = single_images("mnist5k", small_sigmoid, 3)
    model = small_sigmoid((1, 28, 28), 10)
    for index, victim in enumerate(work.victims):
        view = work.history[victim.observation].view
        assert isinstance(view, PlainModel)
        inputs = work.normalisation.apply(work.pixels[index : index + 1])
        loss = F.cross_entropy(model(inputs), work.labels[index : index + 1])
        for (name, parameter), expected in zip(
            model.named_parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
        ):
            assert torch.equal(view.before[name], parameter)
            torch.testing.assert_close(view.before[name] - view.after[SENDER][name], expected, atol=1e-6, rtol=1e-4)
            torch.testing.assert_close(work.updates[index][name], expected, atol=1e-6, rtol=1e-4)


def test_psnr_is_of_the_error_and_capped() -> None:
    assert mean_psnr(torch.tensor([1e-2, 1e-4])) == pytest.approx(30)
    assert mean_psnr(torch.tensor([0.0])) == 60


def test_cosine_does_the_same_work_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """From equal starts in equal steps, both come to the same images."""
    monkeypatch.setattr(cosine_speed, "is_installed", lambda: False)
    steps: list[tuple[str, int, int]] = []
    chosen = replace(cosine_speed.SIGMOID, build=small_sigmoid, dataset="mnist5k", trials=3, iterations=12, turns=2)
    found = cosine_speed.measure(chosen, lambda *step: steps.append(step))
    ratio, difference = found.figures
    assert (ratio.required, ratio.aim, ratio.unit) == (8, 12, "x")
    assert ratio.measured > 0
    assert (difference.required, difference.lower_is_better) == (0.3, True)
    assert difference.measured < 0.2
    assert steps == [("cosine, LeNet-Zhu with sigmoid", done, 5) for done in range(1, 6)]


@pytest.mark.skipif(not breaching_peer.is_installed(), reason=f"needs {breaching_peer.INSTALL}")
def test_the_public_implementation_does_the_same_work() -> None:
    chosen = replace(cosine_speed.SIGMOID, trials=2, iterations=12, turns=1)
    plain, _, public, difference = cosine_speed.measure(chosen).figures
    assert (plain.required, public.required) == (None, 8)
    assert difference.measured < 0.2


def test_the_networks_are_those_named() -> None:
    relu = cosine_speed.lenet_zhu_relu((3, 32, 32), 10)
    assert sum(isinstance(layer, nn.ReLU) for layer in relu) == 3
    assert sum(parameter.numel() for parameter in relu.parameters()) == (12 * 75 + 12) + 2 * (12 * 300 + 12) + (
        768 * 10 + 10
    )
    convolutions = [
        layer.out_channels for layer in cosine_speed.convnet((3, 32, 32), 10) if isinstance(layer, nn.Conv2d)
    ]
    assert convolutions == [16, 32, 32, 64]


def test_rates_count_failures() -> None:
    peer, ours = Outcome(1, 2, 10.0), Outcome(30, 32, 3.0)
    figure = image_rates._ratio("rate", ours, peer, image_rates.MNIST)
    assert figure.measured == pytest.approx(100)
    assert figure.detail == "peer 0.1 images/s (1 of 2), ours 10 images/s (30 of 32)"
    assert image_rates._ratio("rate", ours, Outcome(0, 2, 10.0), image_rates.MNIST).measured == float("inf")


def test_images_are_counted_where_they_are_recovered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_rates, "STEPS", 2)
    chosen = replace(image_rates.MNIST, images=2, peer_images=1, evaluations=3)
    found = image_rates.measure_dlg(chosen)
    assert [figure.required for figure in found.figures] == [10, 10]
    assert "(0 of 2)" in found.figures[0].detail  # three evaluations recover nothing
    rate, share = image_rates.measure_analytic(chosen).figures
    assert share.measured == 100
    assert rate.measured > 0


def cases() -> list[CaseResult]:
    return [
        CaseResult("one", (Figure("ratio", 9.0, "x", 8, 12, detail="a / b"), Figure("seen", 3.0, "dB")), ("a note",)),
        CaseResult("two", (Figure("error", 0.1, "dB", 0.3, 0.2, lower_is_better=True), Figure("rate", 4.0, "x", 8))),
    ]


def test_the_table_says_what_was_reached() -> None:
    (table,) = AttackFigures(cases()).tables()
    assert [row[1:5] for row in table.rows] == [
        ("9x", "8x", "12x", "yes"),
        ("3 dB", "", "", ""),
        ("0.1 dB", "at most 0.3 dB", "at most 0.2 dB", "aim"),
        ("4x", "8x", "", "no"),
    ]
    assert table.rows[0][5] == "a / b"
    assert table.notes[0] == "one: a note"
    assert "torch " in table.notes[-1]
    assert "load " in table.notes[-1]


def test_json_holds_no_infinity() -> None:
    endless = CaseResult("three", (Figure("ratio", float("inf"), "x", 8),))
    content = json.loads(json.dumps(AttackFigures([*cases(), endless]).as_json(), allow_nan=False))
    assert [figure["reached"] for case in content["cases"] for figure in case["figures"]] == [
        *(True, None, True, False, True)
    ]
    assert content["cases"][2]["figures"][0]["measured"] is None
    assert content["machine"]["versions"]["torch"]


def test_named_cases_run_in_order_on_one_thread() -> None:
    threads: list[int] = []

    def case(result: CaseResult) -> object:
        def run(progress: object) -> CaseResult:
            threads.append(torch.get_num_threads())
            return result

        return run

    one, two = cases()
    before = torch.get_num_threads()
    available = {"one": case(one), "two": case(two)}
    assert [found.name for found in measure_attacks(["two"], cases=available).cases] == ["two"]
    assert [found.name for found in measure_attacks(cases=available).cases] == ["one", "two"]
    assert threads == [1, 1, 1]
    assert torch.get_num_threads() == before
    with pytest.raises(UsageError, match="no case three; there are one, two"):
        measure_attacks(["three"], cases=available)
