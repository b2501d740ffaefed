"""A task: a dataset and the model trained on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from federation.datasets import Dataset, load_dataset
from federation.datasets.base import find_source
from federation.errors import UsageError
from federation.models import MODELS, ModelBuilder
from federation.registry import Registry


@dataclass(frozen=True)
class Task:
    """What is learnt, and by which model.

    Attributes:
        name: how experiments refer to it.
        dataset: a dataset specification as `load_dataset` takes it, or the name of what `load` loads.
        model: a registered model, or the name of what `build` builds.
        description: one line for listings.
        load: for a task with data of its own: called with (data directory or None, download) instead of `load_dataset`.
        build: for a task with a model of its own: called instead of the registered model.
    """

    name: str
    dataset: str
    model: str
    description: str
    load: Callable[[Path | None, bool], Dataset] | None = None
    build: ModelBuilder | None = None

    def load_data(self, data_directory: Path | None = None, download: bool = False) -> Dataset:
        """Load the task's dataset; raises DataError where it is missing or malformed."""
        if self.load is not None:
            return self.load(data_directory, download)
        return load_dataset(self.dataset, data_directory=data_directory, download=download)

    def build_model(self, dataset: Dataset, seed: int) -> nn.Module:
        """Build the task's model for `dataset`, with weights drawn from `seed`, on the CPU."""
        build = self.build if self.build is not None else MODELS.get(self.model)
        return build(dataset.image_shape, dataset.class_count, seed=seed)


TASKS: Registry[Task] = Registry("task", entry_points="keyhole.tasks")


def find_task(specification: str) -> Task:
    """The task that `specification` names: a registered name, or DATASET/MODEL such as `imagefolder:photos/lenet5`.

    Raises:
        UsageError: where there is no such task, dataset or model, or an entry point gave something else than a Task.
    """
    dataset, slash, model = specification.rpartition("/")
    if slash:
        find_source(dataset)
        MODELS.get(model)
        return Task(specification, dataset, model, f"{model} on {dataset}")
    task = TASKS.get(specification)
    if not isinstance(task, Task):
        raise UsageError(f"the task {specification!r} is a {type(task).__name__}; an entry point must name a Task")
    return task


_DATASETS = {
    "mnist5k": "5,000 embedded MNIST digits",
    "photos32": "embedded photographs in 32x32 crops",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
}
_MODELS = {
    "lenet-zhu": "the sigmoid LeNet of DLG",
    "lenet5": "LeNet-5",
    "logistic": "logistic regression",
    "mobilenetv2": "MobileNetV2 with CIFAR strides",
    "mobilenetv2-imagenet-strides": "MobileNetV2 with ImageNet's strides",
    "mobilenetv2-quarter": "MobileNetV2 with CIFAR strides at a quarter of its width",
    "resnet18": "ResNet-18",
}
_MODELS_OF = {
    "mnist5k": ("lenet-zhu", "lenet5", "logistic"),
    "photos32": ("lenet-zhu", "lenet5", "mobilenetv2-quarter", "resnet18"),
    "mnist": ("lenet-zhu", "lenet5", "logistic"),
    "cifar10": (
        "lenet-zhu",
        "lenet5",
        "mobilenetv2",
        "mobilenetv2-imagenet-strides",
        "mobilenetv2-quarter",
        "resnet18",
    ),
}
for _dataset, _models in _MODELS_OF.items():
    for _model in _models:
        _name = f"{_dataset}-{_model}"
        TASKS.add(_name, Task(_name, _dataset, _model, f"{_MODELS[_model]} on {_DATASETS[_dataset]}"))
