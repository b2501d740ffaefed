"""The cosine of rounded updates: against the formula written out, against autograd, and against the cosine itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from attacks.engine.gradients import SingleGradient
from attacks.engine.objectives import cosine_distance
from attacks.engine.quantiser import LEAST_VARIANCE, SPACING, RoundedCosine, rounding_variance
from attacks.engine.rounded_labels import labels_of_rounded
from federation.qsgd import QsgdConfig, dequantise, quantise

NAMES = ("weight", "bias")


def drawn(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(3, 4, 2, generator=generator, dtype=torch.double),
        "bias": torch.randn(3, 4, generator=generator, dtype=torch.double),
    }


def with_spacing(values: dict[str, Tensor], spacing: dict[str, Tensor]) -> dict[str, Tensor]:
    return values | {SPACING + name: tensor for name, tensor in spacing.items()}


def written_out(candidate: dict[str, Tensor], values: dict[str, Tensor], spacing: dict[str, Tensor]) -> Tensor:
    """The distance for tolerance 0.3, trial by trial and value by value, the weights found from `weighing`."""
    found = []
    for trial in range(3):
        ours, theirs = [], []
        blur = 0.3 * torch.cat([values[name][trial].flatten() for name in NAMES]).square().mean().sqrt()
        for name in NAMES:
            for u, v, d in zip(*(each[name][trial].flatten() for each in (candidate, values, spacing)), strict=True):
                part = (u.detach().abs() / d) % 1
                deviation = (d**2 * max(float(part * (1 - part)), LEAST_VARIANCE) + blur**2).sqrt()
                ours.append(u / deviation)
                theirs.append(v / deviation)
        found.append(1 - F.cosine_similarity(torch.stack(ours), torch.stack(theirs), dim=0))
    return torch.stack(found)


def test_values_weigh_the_inverse_of_their_blur_and_so_does_the_gradient() -> None:
    candidate, values = drawn(0), drawn(1)
    spacing = {name: tensor.abs() + 0.1 for name, tensor in drawn(2).items()}
    for tensor in candidate.values():
        tensor.requires_grad_()
    found = RoundedCosine(0.3)(candidate, with_spacing(values, spacing))
    expected = written_out(candidate, values, spacing)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(total.sum(), list(candidate.values())) for total in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_without_rounding_it_is_the_cosine() -> None:
    candidate, values = drawn(0), drawn(1)
    expected = cosine_distance(candidate, values)
    assert torch.equal(RoundedCosine(0.1)(candidate, values), expected)
    for apart in (0.0, 1e-7):
        spacing = {name: torch.full_like(tensor, apart) for name, tensor in values.items()}
        torch.testing.assert_close(RoundedCosine(0.1)(candidate, with_spacing(values, spacing)), expected)


def test_what_is_rounded_coarsely_counts_less() -> None:
    values = drawn(1)
    candidate = values | {"bias": -values["bias"]}
    fine = {name: torch.full_like(tensor, 1e-6) for name, tensor in values.items()}
    coarse = fine | {"bias": torch.full_like(values["bias"], 50.0)}
    distance = RoundedCosine(0.1)
    assert bool((distance(candidate, with_spacing(values, coarse)) < 0.01).all())
    assert bool((distance(candidate, with_spacing(values, fine)) > 0.1).all())


def test_an_update_that_was_rounded_to_nothing_gives_a_finite_distance_and_slope() -> None:
    values = {name: torch.zeros_like(tensor, dtype=torch.float32) for name, tensor in drawn(1).items()}
    candidate = {name: tensor.float().requires_grad_() for name, tensor in drawn(0).items()}
    for apart in (0.0, 1.0):
        spacing = {name: torch.full_like(tensor, apart) for name, tensor in values.items()}
        found = RoundedCosine(0.1)(candidate, with_spacing(values, spacing))
        slopes = torch.autograd.grad(found.sum(), list(candidate.values()))
        assert all(bool(tensor.isfinite().all()) for tensor in (found, *slopes))


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 20), st.sampled_from(["max", "l2"]), st.integers(0, 2**31))
def test_the_variance_is_that_of_quantising(levels: int, norm: str, seed: int) -> None:
    """Against the spread of many roundings of one bucket, by QSGD itself."""
    generator = torch.Generator().manual_seed(seed)
    config = QsgdConfig(levels, norm, bucket=24)  # type: ignore[arg-type]
    values = torch.randn(24, generator=generator)
    rounded = quantise(values.repeat(3000), config, generator)
    spread = dequantise(rounded, config).double().view(3000, 24).var(0)
    spacing = (rounded.norms[:1] / levels).expand(24)
    stated = rounding_variance(values, spacing).double()
    least = LEAST_VARIANCE * spacing.double().square()
    assert bool(((spread - stated).abs() <= 0.2 * stated + least).all())
    assert bool((stated >= 0.999 * least).all())


def last_layers(count: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients of a network's last layers at as many images, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 10))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    images = torch.randn(count, 1, 1, 8, 8, generator=generator)
    labels = torch.randint(10, (count,), generator=generator)
    update = SingleGradient(model, dict(model.named_parameters()))
    return update(images, F.one_hot(labels, 10).float()[:, None]), labels


def test_the_label_survives_rounding_that_the_bias_does_not() -> None:
    gradients, labels = last_layers(60, 0)
    layer = {name: tensor for name, tensor in gradients.items() if name.startswith("3.")}
    assert torch.equal(labels_of_rounded(layer, 10), labels)  # type: ignore[arg-type]
    config, generator = QsgdConfig(1, "l2", bucket=512), torch.Generator().manual_seed(1)
    flat = torch.cat([tensor.flatten(1) for tensor in layer.values()], dim=1)
    rounded = torch.stack([dequantise(quantise(row, config, generator), config) for row in flat])
    weight, bias = rounded.split([2000, 10], dim=1)
    found = labels_of_rounded({"3.weight": weight.view(-1, 10, 200), "3.bias": bias}, 10)
    assert found is not None
    assert float((found == labels).float().mean()) > 0.9
    assert float((bias.argmin(1) == labels).float().mean()) < 0.8


@pytest.mark.parametrize("classes", [3, 11])
def test_without_a_layer_of_so_many_classes_there_is_no_label(classes: int) -> None:
    assert labels_of_rounded(last_layers(2, 0)[0], classes) is None
