"""What a dataset is: labelled 8-bit images in four splits, with the facts that results need to cite."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from federation.errors import DataError, UsageError
from federation.registry import Registry

SPLITS = ("training", "auxiliary", "victims", "test")
_CHUNK = 4096  # images that are counted at once, to bound memory


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images and their labels.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N], each at least 0.

    Raises:
        DataError: where types, shapes or counts do not fit.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise DataError(
                f"images must be uint8 [N, C, H, W], not {self.images.dtype} {list(self.images.shape)}",
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"labels must be int64 [{len(self.images)}], one an image, "
                f"not {self.labels.dtype} {list(self.labels.shape)}",
            )
        if len(self.labels) and int(self.labels.min()) < 0:
            raise DataError(f"labels must be at least 0, not {int(self.labels.min())}")

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor | Sequence[int]) -> LabelledImages:
        """The images and labels at `indices`, in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return LabelledImages(self.images[chosen], self.labels[chosen])

    def pixels(self) -> Tensor:
        """The images as float32 [N, C, H, W] in [0, 1]."""
        return self.images.to(torch.float32) / 255


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named set in four disjoint splits; built by `assemble_dataset`, which computes the derived fields.

    Attributes:
        name: the specification that loads it.
        classes: the class names, in the order of the labels.
        training: what clients train on.
        auxiliary: public to adaptive attackers.
        victims: private images that attacks try to reconstruct; no client trains on them outside a victim's update.
        test: what accuracy is measured on.
        provenance: one sentence for captions: where the images come from and what was done to them.
        sha256: hex digest over the splits' shapes, image bytes and label bytes, in the order of `SPLITS`.
        mean: per channel, of the training split, in [0, 1].
        deviation: per channel standard deviation of the training split, above 0.
    """

    name: str
    classes: tuple[str, ...]
    training: LabelledImages
    auxiliary: LabelledImages
    victims: LabelledImages
    test: LabelledImages
    provenance: str
    sha256: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.training.images.shape[1:]
        return channels, height, width

    @property
    def class_count(self) -> int:
        """How many classes there are."""
        return len(self.classes)


def assemble_dataset(
    name: str, classes: Sequence[str], splits: Mapping[str, LabelledImages], provenance: str
) -> Dataset:
    """Build a `Dataset` from the four `splits` (keys: `SPLITS`) and compute its digest and channel statistics.

    Raises:
        DataError: where a split is empty, shapes differ, a label has no class, or a channel is constant.
    """
    shape = splits["training"].images.shape[1:]
    for split in SPLITS:
        part = splits[split]
        if not len(part):
            raise DataError(f"the {split} split of {name} is empty; the set has too few images")
        if part.images.shape[1:] != shape:
            raise DataError(f"the {split} split of {name} has images {list(part.images.shape[1:])}, not {list(shape)}")
        if int(part.labels.max()) >= len(classes):
            raise DataError(f"{name} has the label {int(part.labels.max())} but only {len(classes)} classes")
    mean, deviation = channel_statistics(splits["training"].images)
    if min(deviation) == 0:
        raise DataError(f"channel {deviation.index(0)} of every training image of {name} has one and the same value")
    return Dataset(
        name=name,
        classes=tuple(classes),
        **{split: splits[split] for split in SPLITS},
        provenance=provenance,
        sha256=_digest(splits),
        mean=mean,
        deviation=deviation,
    )


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and (population) standard deviation per channel of uint8 [N, C, H, W], on the scale [0, 1]."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.zeros(256, dtype=torch.int64)
        for chunk in images[:, channel].split(_CHUNK):
            counts += torch.bincount(chunk.flatten(), minlength=256)
        shares = counts.double() / counts.sum()
        mean = shares @ levels
        means.append(float(mean))
        deviations.append(math.sqrt(shares @ (levels - mean).square()))
    return tuple(means), tuple(deviations)


def _digest(splits: Mapping[str, LabelledImages]) -> str:
    digest = hashlib.sha256()
    for split in SPLITS:
        part = splits[split]
        digest.update(f"{split} {list(part.images.shape)}\n".encode())
        digest.update(part.images.contiguous().numpy().data)
        digest.update(part.labels.numpy().astype("<i8").data)
    return digest.hexdigest()


@dataclass(frozen=True)
class DataRequest:
    """What a loader is asked for.

    Attributes:
        argument: what stands after the colon of the specification; empty where there is none.
        directory: the data directory, or None where none is given.
        download: whether a missing set may be downloaded into `directory`.
    """

    argument: str
    directory: Path | None
    download: bool


@dataclass(frozen=True)
class DatasetSource:
    """A registered way to load a dataset.

    Attributes:
        load: returns the set; raises DataError where it is missing or malformed.
        argument: the form of what must stand after `NAME:`, such as "PATH?size=32"; empty where the name stands alone.
    """

    load: Callable[[DataRequest], Dataset]
    argument: str = ""


DATASETS: Registry[DatasetSource] = Registry("dataset")
Loader = Callable[[DataRequest], Dataset]


def dataset(name: str, *, argument: str = "") -> Callable[[Loader], Loader]:
    """Return a decorator that registers a loader under `name`."""

    def store(load: Loader) -> Loader:
        DATASETS.add(name, DatasetSource(load, argument))
        return load

    return store


def find_source(specification: str) -> tuple[DatasetSource, str]:
    """The source that `specification` (`NAME` or `NAME:ARGUMENT`) names, and its argument.

    Raises:
        UsageError: for an unknown name, an argument that is missing or one that the name does not take.
    """
    name, _, argument = specification.partition(":")
    source = DATASETS.get(name)
    if argument and not source.argument:
        raise UsageError(f"the dataset {name!r} takes nothing after its name, but {specification!r} was given")
    if source.argument and not argument:
        raise UsageError(f"the dataset {name!r} needs an argument: {name}:{source.argument}")
    return source, argument
