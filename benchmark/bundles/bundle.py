"""A bundle: what one adversary observes of a few victims, and apart from it what the victims' images really were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from attacks.base import Budget
from federation.datasets import Dataset, LabelledImages
from federation.models import MODELS
from federation.network import Network
from federation.tasks import find_task
from federation.threat import Observation, Victim

Split = Literal["victims", "training"]


@dataclass(frozen=True)
class Bundle:
    """What an attack is handed: no image and no label of a victim.

    Attributes:
        title: one line for listings.
        task, defense, adversary: as tables name them.
        history: the observations.
        victims: what to reconstruct.
        budget: with which an attack is tried unless another is asked for.
    """

    title: str
    task: str
    defense: str
    adversary: str
    history: tuple[Observation, ...]
    victims: tuple[Victim, ...]
    budget: Budget


@dataclass(frozen=True)
class VictimTruth:
    """What one victim really was.

    Attributes:
        images: uint8 [m, C, H, W].
        labels: int64 [m].
        rows: int64 [m], where the images stand in their split.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor


@dataclass(frozen=True)
class BundleTruth:
    """The referee's side of a bundle.

    Attributes:
        victims: one a victim of the bundle, in its order.
        private: the split that the images are from, as clients hold it: the gallery of identification.
        public: the auxiliary images, of which floors are made.
    """

    victims: tuple[VictimTruth, ...]
    private: LabelledImages
    public: LabelledImages


def network_of(task: str, image_shape: Sequence[int], class_count: int) -> Network:
    """The public architecture of a task; it refers to no data."""
    found = find_task(task)
    build = found.build if found.build is not None else MODELS.get(found.model)
    channels, height, width = image_shape
    shape = (channels, height, width)
    return Network(partial(build, shape, class_count, seed=0), shape, class_count)


def private_split(dataset: Dataset, split: Split) -> LabelledImages:
    """A split as it comes, without crop and jitter."""
    return {"victims": dataset.victims, "training": dataset.training}[split]
