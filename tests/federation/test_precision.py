"""Local steps in bfloat16: what computes in it, and what stays float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from federation.datasets import load_dataset
from federation.models import MODELS
from federation.normalisation import Normalisation
from federation.training import LocalTraining, Precision, cross_entropy_gradients, evaluate, train_locally
from federation.weights import Weights, weights_of

IMAGES = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 10


class Watched:
    """Local steps without a defense, which keep the gradients that leave them and the types that layers compute in."""

    def __init__(self, model: nn.Module) -> None:
        self.gradients: list[dict[str, Tensor]] = []
        self.computed: set[torch.dtype] = set()
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(lambda *seen: self.computed.add(seen[2].dtype))

    def transform_images(self, images: Tensor) -> Tensor:
        return images

    def step_gradients(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.gradients.append(cross_entropy_gradients(model, images, labels))
        return self.gradients[-1]


def train(name: str, precision: Precision, steps: int = 3) -> tuple[Weights, Weights, Watched]:
    """(start, trained, what was seen)."""
    model = MODELS.get(name)((3, 32, 32), 10, seed=1)
    start, watched = weights_of(model), Watched(model)
    training = LocalTraining(batch_size=4, learning_rate=0.05, steps=steps, epochs=None, precision=precision)
    generator = torch.Generator().manual_seed(2)
    trained = train_locally(model, start, IMAGES, LABELS, training, hooks=watched, generator=generator, where="here")
    return start, trained, watched


@pytest.mark.parametrize("name", ["logistic", "lenet-zhu", "lenet5", "mobilenetv2-quarter"])
def test_layers_compute_in_bfloat16_and_what_leaves_a_step_is_float32(name: str) -> None:
    start, trained, watched = train(name, "bfloat16")
    assert watched.computed == {torch.bfloat16}
    assert {gradient.dtype for step in watched.gradients for gradient in step.values()} == {torch.float32}
    assert {key: tensor.dtype for key, tensor in trained.items()} == {key: t.dtype for key, t in start.items()}
    assert all(tensor.is_contiguous() for tensor in trained.values())
    assert train(name, "float32")[2].computed == {torch.float32}


def test_the_step_is_taken_on_float32_weights() -> None:
    """Weights in bfloat16 would drop most of a step: they have eight bits of mantissa."""
    start, trained, watched = train("lenet5", "bfloat16", steps=1)
    for name, gradient in watched.gradients[0].items():
        torch.testing.assert_close(trained[name], start[name] - 0.05 * gradient, rtol=1e-6, atol=1e-8)
        assert not trained[name].equal(trained[name].bfloat16().float())


@pytest.mark.parametrize("name", ["lenet5", "mobilenetv2-quarter"])
def test_the_gradients_are_those_of_torch_s_recipe(name: str) -> None:
    """A forward pass and loss under autocast, the backward pass outside of it."""
    model = MODELS.get(name)((3, 32, 32), 10, seed=1).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cross_entropy_gradients(model, IMAGES, LABELS)
        loss = F.cross_entropy(model(IMAGES).float(), LABELS)
    loss.backward()
    exact = cross_entropy_gradients(model, IMAGES, LABELS)
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(found[key], parameter.grad, rtol=0, atol=0)
        assert not found[key].equal(exact[key])


def test_lenet5_learns_as_well() -> None:
    """Two passes over the embedded digits; docs/devices.md has the figures of a longer training."""
    data = load_dataset("mnist5k")
    normalise = Normalisation(data.mean, data.deviation).apply
    images, labels = normalise(data.training.pixels()), data.training.labels
    model = MODELS.get("lenet5")(data.image_shape, data.class_count, seed=1)
    start = weights_of(model)

    def accuracy(precision: Precision) -> float:
        weights = train_locally(
            model,
            start,
            images,
            labels,
            LocalTraining(batch_size=20, learning_rate=0.1, epochs=2, precision=precision),
            hooks=Watched(nn.Identity()),
            generator=torch.Generator().manual_seed(3),
            where="here",
        )
        return evaluate(model, weights, normalise(data.test.pixels()), data.test.labels, data.class_count).accuracy

    exact, rounded = accuracy("float32"), accuracy("bfloat16")
    assert min(exact, rounded) > 0.8
    assert abs(exact - rounded) < 0.04
