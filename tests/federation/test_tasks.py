"""Tasks: the built-in ones, ad-hoc pairs, and those of outside packages."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
import torch
from torch import nn

from federation.datasets import SPLITS, LabelledImages, assemble_dataset
from federation.datasets.base import find_source
from federation.errors import UsageError
from federation.models import MODELS
from federation.registry import Registry
from federation.tasks import TASKS, Task, find_task


def tiny_dataset(data_directory: Path | None, download: bool):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 1, 3, 3), dtype=torch.uint8, generator=generator)
    part = LabelledImages(images, torch.tensor([0, 1, 0, 1]))
    return assemble_dataset(f"tiny {data_directory} {download}", ["a", "b"], dict.fromkeys(SPLITS, part), "Made up.")


def tiny_model(image_shape, class_count, *, seed):
    return nn.Sequential(nn.Flatten(), nn.Linear(9, class_count + seed))


OWN = Task("own", "tiny", "tiny", "a task with its own data and model", load=tiny_dataset, build=tiny_model)


@pytest.mark.parametrize("name", TASKS.names())
def test_every_built_in_task_names_what_exists(name):
    task = find_task(name)
    assert name == f"{task.dataset}-{task.model}"
    assert task.description
    find_source(task.dataset)
    MODELS.get(task.model)


def test_the_tasks_that_experiments_rely_on_are_there():
    expected = {
        f"{dataset}-{model}"
        for dataset, last in (
            ("mnist5k", "logistic"),
            ("mnist", "logistic"),
            ("photos32", "resnet18"),
            ("cifar10", "resnet18"),
        )
        for model in ("lenet-zhu", "lenet5", last)
    }
    assert expected <= set(TASKS.names())


def test_a_task_loads_its_data_and_builds_its_model():
    task = find_task("mnist5k-lenet-zhu")
    dataset = task.load_data()
    network = task.build_model(dataset, 3)
    assert dataset.name == "mnist5k"
    assert network(dataset.victims.pixels()[:2]).shape == (2, 10)
    again = task.build_model(dataset, 3)
    assert torch.equal(network.fc.weight, again.fc.weight)


def test_any_dataset_goes_with_any_model():
    task = find_task("mnist5k/lenet-zhu-default")
    assert (task.dataset, task.model) == ("mnist5k", "lenet-zhu-default")
    folder = find_task("imagefolder:/some/where?size=64/lenet5")
    assert (folder.dataset, folder.model) == ("imagefolder:/some/where?size=64", "lenet5")


@pytest.mark.parametrize(
    ("specification", "reason"),
    [
        ("mnist5k-lenet", "did you mean mnist5k-lenet5"),
        ("mnist5k/lenet", "no model is called 'lenet'"),
        ("mnist6k/lenet5", "no dataset is called 'mnist6k'; did you mean mnist5k"),
        ("imagefolder/lenet5", "needs an argument"),
    ],
)
def test_misspelt_tasks(specification, reason):
    with pytest.raises(UsageError, match=reason):
        find_task(specification)


def test_a_task_of_ones_own_brings_data_and_model():
    dataset = OWN.load_data(Path("there"), True)
    assert dataset.name == "tiny there True"
    assert OWN.build_model(dataset, 4)[1].out_features == 6


def test_outside_packages_add_tasks_by_entry_points(monkeypatch):
    def entry_points(*, group):
        points = {"own": f"{__name__}:OWN", "wrong": f"{__name__}:tiny_model"} if group == "keyhole.tasks" else {}
        return [importlib.metadata.EntryPoint(name, value, group) for name, value in points.items()]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    monkeypatch.setattr(importlib.metadata.EntryPoint, "load", lambda point: globals()[point.attr])
    monkeypatch.setattr("federation.tasks.TASKS", Registry("task", entry_points="keyhole.tasks"))
    assert find_task("own") is OWN
    with pytest.raises(UsageError, match="'wrong' is a function; an entry point must name a Task"):
        find_task("wrong")
