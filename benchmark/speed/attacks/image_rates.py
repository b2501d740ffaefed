"""Images recovered a second on the task of Deep Leakage from Gradients: single images, the sigmoid LeNet, MSE < 1e-3.

The peer is the published loop, one image after another. It is asked after every step whether the image is already there,
which only the truth can tell, and is spared the rest of its steps; ours is the engine, all images in one call, and runs until
its own objective tells it to stop. Every side's failures cost it their time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from attacks.base import Budget, build_attack
from attacks.engine.chain import single_gradient
from attacks.engine.labels import last_layer_labels
from attacks.engine.lbfgs import LBFGS
from attacks.engine.loop import match_gradients
from attacks.engine.objectives import squared_distance
from benchmark.speed.attacks.cosine_speed import lenet_zhu_sigmoid
from benchmark.speed.attacks.figures import CaseResult, Figure
from benchmark.speed.attacks.published import published_dlg
from benchmark.speed.attacks.single_images import SingleImages, generator_of, single_images
from benchmark.speed.measure import Stage, quiet

RECOVERED = 1e-3
"""Mean squared error of pixels in [0, 1], under which an image counts as recovered."""

STEPS = 300
SEED = 7


@dataclass(frozen=True)
class Set:
    """A data set and what is to be reached on it.

    Attributes:
        dataset: its name.
        required, aim: how many times as many images a second as the peer.
        analytic_required, analytic_aim: images a second by the analytic attack.
        evaluations: budget of an image for L-BFGS, ours; the peer's is up to 6,000.
        tolerance: share of its first value at which ours takes its objective for a match, where the attacks go on to 1e-9:
            chosen on victims that are not measured here, so that nearly all that are matched are recovered.
        analytic_evaluations: budget of an image for the analytic attack.
        images: how many ours and the analytic attack are given.
        peer_images: how many of them the peer is given.
    """

    dataset: str
    required: float
    aim: float
    analytic_required: float
    analytic_aim: float
    evaluations: int
    tolerance: float
    analytic_evaluations: int
    images: int = 64
    peer_images: int = 6


MNIST = Set("mnist5k", 10, 20, 40, 100, evaluations=300, tolerance=1e-6, analytic_evaluations=300)
PHOTOS = Set(
    "photos32",
    3,
    8,
    5,
    15,
    evaluations=6000,
    tolerance=5e-8,
    analytic_evaluations=1500,
    images=32,
    peer_images=4,
)

SUCCESS = 98.0
"""Per cent of the images that the analytic attack has to recover."""


@dataclass(frozen=True)
class Outcome:
    """What one side did.

    Attributes:
        recovered: how many images.
        images: out of how many.
        seconds: CPU seconds, failures included.
    """

    recovered: int
    images: int
    seconds: float

    @property
    def rate(self) -> float:
        """Images recovered a second."""
        return self.recovered / self.seconds

    def __str__(self) -> str:
        return f"{self.rate:.3g} images/s ({self.recovered} of {self.images})"


def measure_dlg(chosen: Set, progress: Stage = quiet) -> CaseResult:
    """Gradient matching by L-BFGS against the published loop."""
    work = _task(chosen)
    count, stage = min(chosen.peer_images, len(work.pixels)), f"dlg, {chosen.dataset}"
    steps = count + 2
    # ours comes before and after the peer's images, so that what else the machine does meets both
    read = _lbfgs(work, chosen, labels_read=True)
    progress(stage, 1, steps)
    peer = _peer(work, count, lambda done: progress(stage, 1 + done, steps))
    joint = _lbfgs(work, chosen, labels_read=False)
    progress(stage, steps, steps)
    return CaseResult(
        stage,
        (
            _ratio(f"{chosen.dataset}: images/s by L-BFGS, label read from the update", read, peer, chosen),
            _ratio(f"{chosen.dataset}: images/s by L-BFGS, label optimised as the peer does", joint, peer, chosen),
        ),
        (
            f"recovered: MSE < {RECOVERED:g}; victims of {chosen.dataset}, lenet-zhu, one image and one step an update, one "
            f"start each; {chosen.evaluations} evaluations at most (ours), {STEPS} steps of up to 20 iterations (peer), "
            "which stops as soon as the image is recovered; CPU time of one thread",
        ),
    )


def measure_analytic(chosen: Set, progress: Stage = quiet) -> CaseResult:
    """The attack registered as `analytic` on the same task."""
    found = _attack(_task(chosen), "analytic", chosen.analytic_evaluations)
    progress(f"analytic, {chosen.dataset}", 1, 1)
    share = 100 * found.recovered / found.images
    return CaseResult(
        f"analytic, {chosen.dataset}",
        (
            Figure(
                f"{chosen.dataset}: images/s by the analytic attack",
                found.rate,
                "images/s",
                chosen.analytic_required,
                chosen.analytic_aim,
                detail=f"{found.recovered} of {found.images} in {found.seconds:.3g} s",
            ),
            Figure(f"{chosen.dataset}: recovered by the analytic attack", share, "%", SUCCESS),
        ),
        (f"recovered: MSE < {RECOVERED:g}; victims of {chosen.dataset}, lenet-zhu, one image and one step an update",),
    )


def _task(chosen: Set) -> SingleImages:
    # pixels as they are and weights U(-0.5, 0.5): as in the paper
    return single_images(chosen.dataset, lenet_zhu_sigmoid, chosen.images, normalised=False)


def _lbfgs(work: SingleImages, chosen: Set, *, labels_read: bool) -> Outcome:
    """The engine as `idlg` calls it, or as `dlg` does, which optimises label logits; but for when it stops."""
    start = time.process_time()
    target = {name: torch.stack([update[name] for update in work.updates]) for name in work.updates[0]}
    classes = work.network.class_count
    labels = last_layer_labels(target, classes) if labels_read else None
    found = match_gradients(
        single_gradient(work.model, dict(work.model.named_parameters())),
        target,
        shape=(1, *work.network.image_shape),
        classes=classes,
        normalisation=work.normalisation,
        objective=squared_distance,
        optimiser=LBFGS(tolerance=chosen.tolerance),
        evaluations=chosen.evaluations,
        generator=generator_of(SEED),
        labels=None if labels is None else F.one_hot(labels, classes).float()[:, None],
    )
    return _outcome(work, found.images[:, 0], time.process_time() - start)


def _attack(work: SingleImages, name: str, evaluations: int) -> Outcome:
    attack = build_attack(name)
    start = time.process_time()
    found = attack.reconstruct(work.history, work.victims, generator=generator_of(SEED), budget=Budget(evaluations))
    seconds = time.process_time() - start
    return _outcome(work, torch.cat([one.images for one in found]), seconds)


def _peer(work: SingleImages, count: int, progress: Callable[[int], None]) -> Outcome:
    images: list[Tensor] = []
    draws, start = generator_of(SEED), time.process_time()
    for index in range(count):
        images.append(
            published_dlg(
                work.model,
                work.updates[index],
                shape=(1, *work.network.image_shape),
                classes=work.network.class_count,
                normalisation=work.normalisation,
                steps=STEPS,
                generator=draws,
                done=partial(_recovered, work.pixels[index]),
            )
        )
        progress(index + 1)
    return _outcome(work, torch.cat(images), time.process_time() - start)


def _recovered(truth: Tensor, image: Tensor) -> bool:
    return bool((image[0] - truth).square().mean() < RECOVERED)


def _outcome(work: SingleImages, images: Tensor, seconds: float) -> Outcome:
    return Outcome(int((work.squared_errors(images) < RECOVERED).sum()), len(images), seconds)


def _ratio(name: str, ours: Outcome, peer: Outcome, chosen: Set) -> Figure:
    return Figure(
        name,
        ours.rate / peer.rate if peer.recovered else float("inf"),
        "x",
        chosen.required,
        chosen.aim,
        detail=f"peer {peer}, ours {ours}",
    )
