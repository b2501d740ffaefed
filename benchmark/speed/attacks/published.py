"""The published algorithms as their papers give them: one trial at a time, plain autograd, nothing batched.

Written from the papers and not from their code. They are what the engine is compared with in speed and in quality, so
they do nothing that the papers' algorithms do not do, and nothing slower than PyTorch's own operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from federation.normalisation import Normalisation

Shape = tuple[int, int, int, int]


def published_cosine(
    model: nn.Module,
    gradient: Mapping[str, Tensor],
    label: int | Tensor,
    *,
    normalisation: Normalisation,
    iterations: int,
    total_variation: float,
    rate: float = 0.1,
    start: Tensor,
) -> Tensor:
    """Inverting Gradients (Geiping et al. 2020, eq. 4): the last iterate of one trial.

    1 - cosine plus total variation, by Adam on the gradient's sign, its rate divided by ten after 3/8, 5/8 and 7/8 of
    the iterations, every iterate put back into the box of valid pixels.

    Args:
        model: the network at the weights that the gradient was taken at, in the mode that it was taken in.
        gradient: the observed gradient, by the model's parameter names.
        label: of the image, or labels [m] of the batch.
        normalisation: of the client's pixels.
        iterations: 4,800 in the paper.
        total_variation: weight of the mean absolute differences of neighbours.
        rate: Adam's first rate, in normalised pixels.
        start: N(0, 1) in the paper, in normalised pixels, [m, C, H, W].

    Returns:
        Pixels in [0, 1], [m, C, H, W].
    """
    parameters = [parameter for name, parameter in model.named_parameters() if name in gradient]
    observed = [gradient[name] for name, _ in model.named_parameters() if name in gradient]
    labels = torch.as_tensor(label).reshape(-1)
    image = start.clone().requires_grad_()
    lowest, highest = (normalisation.apply(value) for value in (torch.zeros_like(start), torch.ones_like(start)))
    optimiser = torch.optim.Adam([image], lr=rate)
    milestones = [int(iterations * part) for part in (3 / 8, 5 / 8, 7 / 8)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones, gamma=0.1)
    for _ in range(iterations):
        optimiser.zero_grad()
        loss = F.cross_entropy(model(image), labels)
        update = torch.autograd.grad(loss, parameters, create_graph=True)
        total = _cosine_distance(update, observed) + total_variation * _variation(image)
        (slope,) = torch.autograd.grad(total, image)
        image.grad = slope.sign()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            image.copy_(image.clamp(lowest, highest))
    return normalisation.invert(image.detach())


def published_dlg(
    model: nn.Module,
    gradient: Mapping[str, Tensor],
    *,
    shape: Shape,
    classes: int,
    normalisation: Normalisation,
    steps: int,
    generator: torch.Generator,
    done: Callable[[Tensor], bool] = lambda image: False,
) -> Tensor:
    """Deep Leakage from Gradients (Zhu et al. 2019, algorithm 1): the last iterate of one trial.

    The squared distance of gradients over image and label logits jointly, by `torch.optim.LBFGS` at rate 1 with 100 pairs
    and 20 inner iterations a step.

    Args:
        model: the network at the weights that the gradient was taken at.
        gradient: the observed gradient, by the model's parameter names.
        shape: (m, C, H, W).
        classes: K.
        normalisation: of the client's pixels.
        steps: of the optimiser, each of up to 20 iterations; 300 in the published code.
        generator: source of the start, N(0, 1) for image and logits.
        done: asked after every step, with pixels in [0, 1], whether to leave off early.

    Returns:
        Pixels in [0, 1], [m, C, H, W].
    """
    parameters = list(model.parameters())
    observed = [gradient[name] for name, _ in model.named_parameters()]
    image = torch.randn(shape, generator=generator).requires_grad_()
    logits = torch.randn(shape[0], classes, generator=generator).requires_grad_()
    optimiser = torch.optim.LBFGS([image, logits], lr=1, history_size=100, max_iter=20)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(model(image), logits.softmax(-1))
        update = torch.autograd.grad(loss, parameters, create_graph=True)
        distance = torch.stack([(ours - theirs).square().sum() for ours, theirs in zip(update, observed, strict=True)])
        total = distance.sum()
        image.grad, logits.grad = torch.autograd.grad(total, (image, logits))
        return total

    for _ in range(steps):
        optimiser.step(closure)
        pixels = normalisation.invert(image.detach())
        if done(pixels):
            break
    return normalisation.invert(image.detach())


def _cosine_distance(update: tuple[Tensor, ...], observed: list[Tensor]) -> Tensor:
    product = torch.stack([(ours * theirs).sum() for ours, theirs in zip(update, observed, strict=True)]).sum()
    ours, theirs = (torch.stack([one.square().sum() for one in side]).sum().sqrt() for side in (update, observed))
    return 1 - product / (ours * theirs)


def _variation(image: Tensor) -> Tensor:
    return (image[..., 1:] - image[..., :-1]).abs().mean() + (image[..., 1:, :] - image[..., :-1, :]).abs().mean()
