"""Cosine matching, all trials in one call, against the published loop, one trial after another: the same work.

All start every trial at the same point and take the same steps; ours is called as the engine is by the attack, its own
choice of what to compile included. The peers take their trials in turns with whole calls of ours.
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
from benchmark.speed.attacks.breaching_peer import INSTALL, breaching_cosine, is_installed
from benchmark.speed.attacks.figures import CaseResult, Figure
from benchmark.speed.attacks.published import published_cosine
from benchmark.speed.attacks.single_images import SingleImages, generator_of, mean_psnr, single_images
from benchmark.speed.measure import Stage, quiet, seconds_as_text
from federation.models import build_model
from federation.models.base import ImageShape, seeded_initialisation

SEED = 7
QUALITY = 0.3
"""Decibels that ours may differ from the peer."""


OURS, PLAIN_LOOP, PUBLIC = "ours", "the plain loop", "breaching"


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


Peer = Callable[[Workload, SingleImages, int, Tensor], Tensor]
"""One trial: the workload, its images, which of them, where to start [1, C, H, W]; returns pixels [1, C, H, W]."""

RELU = Workload("LeNet-Zhu with ReLU", lenet_zhu_relu, 8, 12)
SIGMOID = Workload("LeNet-Zhu with sigmoid", lenet_zhu_sigmoid, 8, 12)
CONVNET = Workload("ConvNet of 16 to 64 channels", convnet, 1.1, 1.5, trials=8, iterations=100)


def measure(workload: Workload, progress: Stage = quiet) -> CaseResult:
    """Time all in turns, on CPU time and one thread, and compare what they reconstruct.

    The peer that a ratio is required of is the public implementation where it is installed, else the plain loop.
    """
    work = single_images(workload.dataset, workload.build, workload.trials)
    peers: dict[str, Peer] = {PLAIN_LOOP: _plain_loop}
    if is_installed():
        peers[PUBLIC] = _public
    trials, stage = len(work.pixels), f"cosine, {workload.name}"
    share, steps = -(-trials // workload.turns), workload.turns + trials * len(peers)
    # each peer starts every trial where ours does
    shape = (1, *work.network.image_shape)
    draws = generator_of(SEED)
    starts = [torch.randn(shape, generator=draws) for _ in range(trials)]
    done = 0
    seconds: dict[str, list[float]] = {name: [] for name in (OURS, *peers)}
    found: dict[str, list[Tensor]] = {name: [] for name in peers}
    for turn in range(workload.turns):
        begun = time.process_time()
        ours = _ours(workload, work)
        seconds[OURS].append((time.process_time() - begun) / trials)
        progress(stage, done := done + 1, steps)
        for trial in range(turn * share, min((turn + 1) * share, trials)):
            for name, peer in peers.items():
                begun = time.process_time()
                found[name].append(peer(workload, work, trial, starts[trial]))
                seconds[name].append(time.process_time() - begun)
                progress(stage, done := done + 1, steps)
    each = {name: statistics.median(taken) / workload.iterations for name, taken in seconds.items()}
    quality = {name: mean_psnr(work.squared_errors(torch.cat(images))) for name, images in found.items()}
    return _result(workload, trials, each, quality | {OURS: mean_psnr(work.squared_errors(ours))})


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


def _plain_loop(workload: Workload, work: SingleImages, trial: int, start: Tensor) -> Tensor:
    return published_cosine(
        work.model,
        work.updates[trial],
        work.labels[trial],
        normalisation=work.normalisation,
        iterations=workload.iterations,
        total_variation=workload.total_variation,
        start=start,
    )


def _public(workload: Workload, work: SingleImages, trial: int, start: Tensor) -> Tensor:
    return breaching_cosine(
        work.model,
        work.updates[trial],
        work.labels[trial],
        shape=work.network.image_shape,
        normalisation=work.normalisation,
        iterations=workload.iterations,
        total_variation=workload.total_variation,
        start=start,
    )


def _result(workload: Workload, trials: int, seconds: dict[str, float], quality: dict[str, float]) -> CaseResult:
    figures = []
    peers = [name for name in seconds if name != OURS]
    for name in peers:
        decides = name == peers[-1]
        figures += [
            Figure(
                f"cosine, {workload.name}, {trials} trials: per trial and iteration, against {name}",
                seconds[name] / seconds[OURS],
                "x",
                workload.required if decides else None,
                workload.aim if decides else None,
                detail=f"peer {seconds_as_text(seconds[name])}, ours {seconds_as_text(seconds[OURS])}",
            ),
            Figure(
                f"cosine, {workload.name}: difference of mean PSNR from {name}",
                abs(quality[OURS] - quality[name]),
                "dB",
                QUALITY,
                lower_is_better=True,
                detail=f"peer {quality[name]:.2f} dB, ours {quality[OURS]:.2f} dB",
            ),
        ]
    missing = () if PUBLIC in seconds else (f"the public implementation is not installed: {INSTALL}",)
    return CaseResult(
        f"cosine, {workload.name}",
        tuple(figures),
        (
            f"{trials} victims of {workload.dataset}, one trial each from the same starts as the peers', "
            f"{workload.iterations} iterations, total variation {workload.total_variation:g}, labels given to all; "
            "CPU time of one thread",
            *missing,
        ),
    )
