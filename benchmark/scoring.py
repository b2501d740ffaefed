"""Scores of one attack run: every image beside its truth, its floors and its gallery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

import torch
from torch import Tensor

from benchmark.attack_runs import AttackRun, StoredReconstruction
from benchmark.metrics import pixel
from benchmark.metrics.floors import CLASS_MEAN, GREY, MEAN, RANDOM, floors
from benchmark.metrics.identification import Gallery, draw_gallery
from benchmark.metrics.image_files import write_image
from benchmark.metrics.matching import match
from benchmark.metrics.perceptual import PerceptualMetric, Unavailable, load_lpips, load_st_lpips
from benchmark.metrics.score import score_batch
from benchmark.observations import ObservedRounds
from benchmark.store import ImageRow
from benchmark.training_files import Truth
from benchmark.training_plan import TrainingPlan
from benchmark.workspace import Workspace
from federation.datasets import LabelledImages
from federation.seeds import torch_generator
from federation.threat import Victim

_SPLIT_OF = {"probe": "victims", "real-round": "training", "keyed-image": "victims"}


@dataclass(frozen=True)
class PerceptualMetrics:
    """The two learnt metrics; LPIPS may be unavailable, with its reason."""

    lpips: PerceptualMetric
    st_lpips: PerceptualMetric

    @property
    def lpips_reason(self) -> str:
        """Why the LPIPS column is empty; "" where it is filled."""
        return self.lpips.reason if isinstance(self.lpips, Unavailable) else ""


@lru_cache(maxsize=1)
def perceptual_metrics(trunk: Path | None) -> PerceptualMetrics:
    """Load both metrics once a process. No worker downloads: the harness has done so if it could be done."""
    return PerceptualMetrics(load_lpips(trunk, download=False), load_st_lpips())


def score_run(
    cell: str, run: AttackRun, plan: TrainingPlan, history: ObservedRounds, victims: Sequence[Victim], kind: str
) -> list[ImageRow]:
    """The image rows of a cell whose attack run is `run`."""
    private = plan.workspace.private(plan.task, _SPLIT_OF[kind], raw=plan.victims.raw)
    rows: list[ImageRow] = []
    for victim, reconstruction in zip(victims, run.reconstructions, strict=True):
        truth = history.truth(victim.observation)
        rows += _score_victim(cell, run.identifier, plan, victim, truth, reconstruction, private, kind)
    return rows


def _score_victim(
    cell: str,
    run_identifier: str,
    plan: TrainingPlan,
    victim: Victim,
    truth: Truth,
    reconstruction: StoredReconstruction,
    private: LabelledImages,
    kind: str,
) -> list[ImageRow]:
    metrics = perceptual_metrics(plan.workspace.lpips_trunk)
    drawn = draw_gallery(len(private), truth.indices, torch_generator("gallery", plan.task, victim.identifier))
    gallery = Gallery(private.images[drawn], torch.arange(len(truth.labels)))
    scores = score_batch(
        truth.images, reconstruction.images, lpips=metrics.lpips, st_lpips=metrics.st_lpips, gallery=gallery
    )
    floor = _floor_psnr(plan, victim, truth, reconstruction.labels)
    rows = []
    for index, score in enumerate(scores):
        floor_here = {name: float(values[index]) for name, values in floor.items()}
        guess = score.guess_index
        labels = reconstruction.labels
        pairing = f"{kind}/{plan.task}/{int(truth.indices[index])}"
        rows.append(
            ImageRow(
                cell=cell,
                victim=victim.identifier,
                image=index,
                pairing=pairing,
                mse=score.mse,
                psnr=score.psnr,
                ssim=score.ssim,
                lpips=score.lpips,
                st_lpips=score.st_lpips,
                identified=bool(score.identified),
                gallery=len(gallery),
                floor_grey=floor_here[GREY],
                floor_mean=floor_here[MEAN],
                floor_class_mean=floor_here.get(CLASS_MEAN),
                floor_random=floor_here[RANDOM],
                gain=score.psnr - max(floor_here.values()),
                label_true=int(truth.labels[index]),
                label_guess=None if labels is None or guess is None else int(labels[guess]),
                original=_write_png(
                    plan.workspace,
                    f"originals/{kind}/{quote(plan.task, safe='')}/{int(truth.indices[index])}-seed{plan.seed}.png",
                    truth.images[index],
                ),
                reconstruction=_write_png(
                    plan.workspace,
                    f"reconstructions/{run_identifier}/{victim.observation}-{index}.png",
                    reconstruction.images[guess if guess is not None else index],
                ),
            )
        )
    return rows


def _floor_psnr(plan: TrainingPlan, victim: Victim, truth: Truth, labels: Tensor | None) -> dict[str, Tensor]:
    """PSNR of every floor guess on every true image, after the same matching that reconstructions get."""
    auxiliary = plan.workspace.dataset(plan.task).auxiliary
    generator = torch_generator("floor", plan.task, victim.identifier)
    guesses = floors(auxiliary.images, auxiliary.labels, len(truth.labels), labels, generator)
    found = {}
    for name, images in guesses.items():
        order = torch.empty(len(truth.labels), dtype=torch.int64)
        for truth_index, guess_index in match(truth.images, images):
            order[truth_index] = guess_index
        found[name] = pixel.psnr(truth.images, images[order])
    return found


def _write_png(workspace: Workspace, name: str, image: Tensor) -> str:
    """Write a uint8 [C, H, W] image and return its path relative to the run."""
    path = workspace.directory / "images" / name
    write_image(path, image)
    return str(path.relative_to(workspace.directory))
