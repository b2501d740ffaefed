"""Local training by plain SGD, and evaluation."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from federation.errors import TrainingError, UsageError
from federation.weights import Weights, weights_of

Precision = Literal["float32", "bfloat16"]
"""What a local step computes in. Weights, gradients and what is sent are float32 either way."""

_CPU_BATCH, _ACCELERATOR_BATCH = 50, 1000
"""Images evaluated at once. On a processor, larger activations go back to the system after every layer and come anew, page
by page: of MobileNetV2, 500 at once take three to four times as long an image as 50."""


@dataclass(frozen=True)
class LocalTraining:
    """FedAvg's ClientUpdate(k, w) (McMahan 2016, Algorithm 1).

    Attributes:
        batch_size: B, images a step (the last batch of an epoch may be smaller).
        learning_rate: eta.
        epochs: E, passes over the client's data; None: as many as the steps take.
        steps: tau, if given: stop after this many steps, as FedPAQ does (Reisizadeh 2020).
        precision: what forward and backward pass of a step compute in. "bfloat16" is torch's autocast: convolutions and
            matrix products in bfloat16, the step itself on float32 weights (Micikevicius 2018, without the scaling of the
            loss, for bfloat16 has float32's range).

    Raises:
        UsageError: where neither epochs nor steps say when to stop.
    """

    batch_size: int
    learning_rate: float
    epochs: int | None = 1
    steps: int | None = None
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.epochs is None and self.steps is None:
            raise UsageError("local training ends after so many epochs or so many steps; give one of them")

    def step_count(self, images: int) -> int:
        """The number of SGD steps on a client with this many images."""
        limits = [] if self.steps is None else [self.steps]
        if self.epochs is not None:
            limits.append(self.epochs * -(-images // self.batch_size))
        return min(limits)

    def repeated(self, rounds: int) -> LocalTraining:
        """As much training as so many rounds of this, in one go."""
        epochs, steps = (None if limit is None else limit * rounds for limit in (self.epochs, self.steps))
        return replace(self, epochs=epochs, steps=steps)


class LocalSteps(Protocol):
    """Where a defense can act on local training."""

    def transform_images(self, images: Tensor) -> Tensor:
        """The images that training sees, from those of the client; on the processor."""
        ...

    def step_gradients(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The gradients of one step, by parameter name.

        All tensors are on the model's device. What a defense draws here comes from a generator of the processor and is
        moved there, so that a seed draws the same everywhere.
        """
        ...


def cross_entropy_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Gradients of the mean cross-entropy by parameter name; images [N, C, H, W], normalised; labels int64 [N].

    The loss is reckoned in float32, and so are the gradients, whatever the forward pass computes in.
    """
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(F.cross_entropy(model(images).float(), labels), list(parameters.values()))
    return dict(zip(parameters, gradients, strict=True))


def train_locally(
    model: nn.Module,
    start: Weights,
    images: Tensor,
    labels: Tensor,
    training: LocalTraining,
    *,
    hooks: LocalSteps,
    generator: torch.Generator,
    where: str,
) -> Weights:
    """Train from `start` by SGD on the model's device and return the new weights, on the processor.

    Args:
        model: the network, on the device that shall compute; its own weights are overwritten.
        start: weights to start from.
        images: float [N, C, H, W], normalised; they are moved once.
        labels: int64 [N].
        training: batch size, rate, epochs, steps, precision.
        hooks: the client's defense, which may act on images and on gradients.
        generator: shuffles the data; of the processor, so that a seed gives the same batches everywhere.
        where: names the client and round in an error.

    Raises:
        TrainingError: where a weight is no longer finite, or batch norm meets a single value.
    """
    model.load_state_dict(start)
    model.train()
    device = _device_of(model)
    images, labels = hooks.transform_images(images).to(device), labels.to(device)
    parameters = dict(model.named_parameters())
    remaining = training.step_count(len(labels))
    while remaining > 0:
        order = torch.randperm(len(labels), generator=generator).to(device)
        for batch in order.split(training.batch_size)[:remaining]:
            try:
                with _computing_in(training.precision, device):
                    gradients = hooks.step_gradients(model, images[batch], labels[batch])
            except ValueError as error:
                if len(batch) > 1:
                    raise
                # batch norm over a map of one pixel
                raise TrainingError(f"{where}: the network cannot train on a batch of one image ({error})") from error
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.sub_(gradients[name], alpha=training.learning_rate)
            remaining -= 1
    trained = {name: tensor.to("cpu") for name, tensor in weights_of(model).items()}
    for name, tensor in trained.items():
        if not bool(torch.isfinite(tensor).all()):
            raise TrainingError(f"{where}: training made {name!r} not finite; lower the learning rate")
    return trained


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _computing_in(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[None]:
    if precision == "float32":
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[None] = torch.autocast(device.type, dtype=getattr(torch, precision))
    return context


@dataclass(frozen=True)
class Evaluation:
    """What a model gets right on a test set.

    Attributes:
        accuracy: share of correct images, 0 to 1.
        confusion: int64 [classes, classes]; row: true class, column: predicted class.
        correct: bool [N], per test image.
    """

    accuracy: float
    confusion: Tensor
    correct: Tensor


@torch.no_grad()
def evaluate(
    model: nn.Module, weights: Weights, images: Tensor, labels: Tensor, class_count: int, batch_size: int | None = None
) -> Evaluation:
    """Evaluate `weights` on normalised images [N, C, H, W] with labels int64 [N]: in evaluation mode, in float32.

    The model's device computes, `batch_size` images at once; by default as many as suit it.
    """
    model.load_state_dict(weights)
    model.eval()
    device = _device_of(model)
    if batch_size is None:
        batch_size = _CPU_BATCH if device.type == "cpu" else _ACCELERATOR_BATCH
    predicted = torch.cat([model(batch.to(device)).argmax(dim=1) for batch in images.split(batch_size)]).to("cpu")
    correct = predicted == labels
    confusion = torch.bincount(labels * class_count + predicted, minlength=class_count**2).view(
        class_count, class_count
    )
    return Evaluation(float(correct.double().mean()), confusion, correct)
