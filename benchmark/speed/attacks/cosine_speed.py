"""Cosine matching, all trials in one call, against the published loop, one trial after another: the same work.

Both start every trial at the same point and take the same steps; ours is called as the engine is by the attack, its own
choice of what to compile included. The peer takes its trials in turns with whole calls of ours.
"""

from __future__ import annotations

import statistics
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.cosine import Cosine
from attacks.engine.chain import single_gradient
from attacks.engine.loop import match_gradients
from benchmark.speed.attacks.figures import CaseResult, Figure
from benchmark.speed.attacks.published import published_cosine
from benchmark.speed.attacks.single_images import SingleImages, generator_of, mean_psnr, single_images
from benchmark.speed.measure import Stage, quiet, seconds_as_text
from federation.models import build_model
from federation.models.base import ImageShape, seeded_initialisation

SEED = 7
QUALITY = 0.3
"""Decibels that ours may differ from the peer."""


@dataclass(frozen=True)
class Workload:
    """What is timed.

    Attributes:
        name: of the network, in words.
        build: (image shape, classes) -> the network with its weights.
        required, aim: how many times as fast as the peer.
        dataset: where the images come from.
        trials: N.
        iterations: of each trial.
        turns: whole calls of ours; the peer's trials are shared out between them.
        total_variation: weight.
    """

    name: str
    build: Callable[[ImageShape, int], nn.Module]
    required: float
    aim: float
    dataset: str = "photos32"
    trials: int = 32
    iterations: int = 200
    turns: int = 2
    total_variation: float = 1e-3


def lenet_zhu_relu(image_shape: ImageShape, class_count: int) -> nn.Module:
    """`lenet-zhu-default` with ReLU in the place of each sigmoid."""
    model = build_model("lenet-zhu-default", image_shape, class_count, seed=0)
    layers = [(name, nn.ReLU() if isinstance(layer, nn.Sigmoid) else layer) for name, layer in model.named_children()]
    return nn.Sequential(OrderedDict(layers))


def lenet_zhu_sigmoid(image_shape: ImageShape, class_count: int) -> nn.Module:
    """`lenet-zhu`."""
    return build_model("lenet-zhu", image_shape, class_count, seed=0)


def convnet(image_shape: ImageShape, class_count: int) -> nn.Module:
    """3x3 convolutions of 16, 32, 32 and 64 channels with ReLU, average pooling after every second, one linear layer."""

    def block(inputs: int, middle: int, outputs: int) -> list[nn.Module]:
        return [
            *(nn.Conv2d(inputs, middle, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(middle, outputs, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
        ]

    features = 64 * (image_shape[1] // 4) * (image_shape[2] // 4)
    with seeded_initialisation(0):
        layers = [*block(image_shape[0], 16, 32), *block(32, 32, 64), nn.Flatten(), nn.Linear(features, class_count)]
        return nn.Sequential(*layers)


RELU = Workload("LeNet-Zhu with ReLU", lenet_zhu_relu, 8, 12)
SIGMOID = Workload("LeNet-Zhu with sigmoid", lenet_zhu_sigmoid, 8, 12)
CONVNET = Workload("ConvNet of 16 to 64 channels", convnet, 1.1, 1.5, trials=8, iterations=100)


def measure(workload: Workload, progress: Stage = quiet) -> CaseResult:
    """Time both in turns, on CPU time and one thread, and compare what they reconstruct."""
    work = single_images(workload.dataset, workload.build, workload.trials)
    trials, stage = len(work.pixels), f"cosine, {workload.name}"
    share = -(-trials // workload.turns)
    ours_seconds: list[float] = []
    peer_seconds: list[float] = []
    theirs: list[Tensor] = []
    draws = generator_of(SEED)
    for turn in range(workload.turns):
        start = time.process_time()
        ours = _ours(workload, work)
        ours_seconds.append((time.process_time() - start) / trials)
        progress(stage, turn + 1 + len(theirs), workload.turns + trials)
        for trial in range(turn * share, min((turn + 1) * share, trials)):
            start = time.process_time()
            theirs.append(_peer(workload, work, trial, draws))
            peer_seconds.append(time.process_time() - start)
            progress(stage, turn + 1 + len(theirs), workload.turns + trials)
    each = [statistics.median(seconds) / workload.iterations for seconds in (ours_seconds, peer_seconds)]
    return _result(
        workload,
        *each,
        ours_error=work.squared_errors(ours),
        peer_error=work.squared_errors(torch.cat(theirs)),
    )


def _ours(workload: Workload, work: SingleImages) -> Tensor:
    attack = Cosine(total_variation=workload.total_variation)
    trials = len(work.pixels)
    found = match_gradients(
        single_gradient(work.model, dict(work.model.named_parameters())),
        {name: torch.stack([update[name] for update in work.updates]) for name in work.updates[0]},
        shape=(1, *work.network.image_shape),
        classes=work.network.class_count,
        normalisation=work.normalisation,
        objective=attack.objective(),
        optimiser=attack.optimiser(),
        evaluations=workload.iterations,
        generator=generator_of(SEED),
        labels=F.one_hot(work.labels, work.network.class_count).float().view(trials, 1, -1),
        priors=attack.priors(),
        constraint=attack.constraint(work.normalisation),
    )
    return found.images[:, 0]


def _peer(workload: Workload, work: SingleImages, trial: int, draws: torch.Generator) -> Tensor:
    return published_cosine(
        work.model,
        work.updates[trial],
        work.labels[trial],
        shape=(1, *work.network.image_shape),
        normalisation=work.normalisation,
        iterations=workload.iterations,
        total_variation=workload.total_variation,
        generator=draws,
    )


def _result(workload: Workload, ours: float, peer: float, *, ours_error: Tensor, peer_error: Tensor) -> CaseResult:
    quality, published = mean_psnr(ours_error), mean_psnr(peer_error)
    trials, iterations = len(ours_error), workload.iterations
    return CaseResult(
        f"cosine, {workload.name}",
        (
            Figure(
                f"cosine, {workload.name}, {trials} trials: per trial and iteration",
                peer / ours,
                "x",
                workload.required,
                workload.aim,
                detail=f"peer {seconds_as_text(peer)}, ours {seconds_as_text(ours)}",
            ),
            Figure(
                f"cosine, {workload.name}: difference of mean PSNR from the peer",
                abs(quality - published),
                "dB",
                QUALITY,
                lower_is_better=True,
                detail=f"peer {published:.2f} dB, ours {quality:.2f} dB",
            ),
        ),
        (
            f"{trials} victims of {workload.dataset}, one trial each from the same starts as the peer's, {iterations} "
            f"iterations, total variation {workload.total_variation:g}, labels given to both; CPU time of one thread",
        ),
    )
