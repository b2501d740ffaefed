"""Training and attacks on a device of their own: nothing is mixed up between devices, and nothing else changes.

No GPU is needed: `SecondDevice` plays one. Its tensors say that they are on torch's "meta" device, which has no values of
its own; they keep theirs on the processor, which computes for them. Operations that a GPU would refuse, for they mix tensors
of two devices, are refused. What comes out must therefore equal the processor's results to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from benchmark.store import RunTables
from federation.models import MODELS
from federation.models.base import seeded_initialisation
from federation.training import LocalTraining, cross_entropy_gradients, evaluate, train_locally
from federation.weights import Weights, weights_of

OTHER = "meta"
_aten = torch.ops.aten
COPIES = {_aten.copy_, _aten._to_copy}
INDEXING = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}
"""A tensor on a GPU may be indexed by one on the processor, not the other way round."""


class Elsewhere(torch.Tensor):
    """A tensor on the second device; `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, device=OTHER, **layout)
        made.held = held
        return made

    def new_tensor(self, data: Any, **_: Any) -> Tensor:
        """As on a GPU; torch's own would give a tensor of the real "meta" device, without values."""
        return torch.tensor(data, dtype=self.dtype).to(OTHER)

    @classmethod
    def __torch_dispatch__(cls, operation: Any, *_: Any) -> Any:
        raise RuntimeError(f"{operation} on the second device outside of its block")


class SecondDevice(TorchDispatchMode):
    """Inside the block there is a second device. `operations` counts what ran there."""

    operations = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [item for item in tree_flatten((args, kwargs))[0] if isinstance(item, Tensor)]
        away = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
        home = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and tensor.dim() > 0]
        kind = operation.overloadpacket
        mixing = kind in COPIES or (kind in INDEXING and isinstance(args[0], Elsewhere))
        if away and home and not mixing:
            raise RuntimeError(f"{operation}: tensors on two devices")
        there = bool(away)
        if kind is _aten.copy_:
            there = isinstance(args[0], Elsewhere)
        elif kwargs.get("device") is not None:
            there = torch.device(kwargs["device"]).type == OTHER
            kwargs["device"] = torch.device("cpu")
        self.operations += there
        opened, options = tree_map(lambda item: item.held if isinstance(item, Elsewhere) else item, (args, kwargs))
        result = operation(*opened, **options)
        themselves = {id(tensor.held): tensor for tensor in away}  # what an operation in place returns

        def wrapped(item: Any) -> Any:
            if not there or not isinstance(item, Tensor):
                return item
            return themselves[id(item)] if id(item) in themselves else Elsewhere(item)

        return tree_map(wrapped, result)


class NoDefense:
    """Local steps without a defense."""

    def transform_images(self, images: Tensor) -> Tensor:
        assert images.device.type == "cpu"
        return images

    def step_gradients(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        assert {images.device, labels.device} == {next(model.parameters()).device}
        return cross_entropy_gradients(model, images, labels)


IMAGES = torch.randn(11, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(11) % 10

pytestmark = pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")  # which it is not here


def with_batch_norm() -> nn.Module:
    with seeded_initialisation(1):
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 10))


BUILDERS = {
    "lenet-zhu": lambda: MODELS.get("lenet-zhu")((3, 32, 32), 10, seed=1),
    "lenet5": lambda: MODELS.get("lenet5")((3, 32, 32), 10, seed=1),
    "batch norm": with_batch_norm,
}


def trained_on(device: str, name: str) -> tuple[Weights, torch.Tensor]:
    model = BUILDERS[name]()
    start = weights_of(model)
    weights = train_locally(
        model.to(device),
        start,
        IMAGES,
        LABELS,
        LocalTraining(batch_size=4, learning_rate=0.05, epochs=2),
        hooks=NoDefense(),
        generator=torch.Generator().manual_seed(2),
        where="here",
    )
    assert {tensor.device.type for tensor in weights.values()} == {"cpu"}
    return weights, evaluate(model, weights, IMAGES, LABELS, 10).confusion


@pytest.mark.parametrize("name", list(BUILDERS))
def test_training_and_evaluation_change_the_device_alone(name: str) -> None:
    expected, confusion = trained_on("cpu", name)
    with SecondDevice() as device:
        found, counted = trained_on(OTHER, name)
    assert device.operations > 100
    assert found.keys() == expected.keys()
    assert all(found[key].equal(expected[key]) for key in expected)
    assert counted.equal(confusion)


def test_the_second_device_refuses_what_a_gpu_would() -> None:
    """Otherwise the other tests here could not fail."""
    with SecondDevice():
        here, there = torch.ones(3), torch.ones(3).to(OTHER)
        for mixed in (lambda: here + there, lambda: torch.stack([here, there]), lambda: here[there.long()]):
            with pytest.raises(RuntimeError, match="tensors on two devices"):
                mixed()
        assert (there[here.long()] + 1).to("cpu").tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match="tensors on two devices"):
            cross_entropy_gradients(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)).to(OTHER), IMAGES, LABELS)


def test_a_whole_experiment_changes_the_device_alone(
    tmp_path: Path, run_in: Callable[..., RunTables], tiny_experiment: Any, assert_same_rows: Any
) -> None:
    experiment = tiny_experiment(
        {
            "federations.0.task": "small-digits-lenet-zhu",
            "federations.0.defenses": ["plain", "keynet-quantized"],
            "federations.0.references": True,
            "adversaries": ["server/oblivious"],
            "victims.probe.count": 2,
            "attacks": [{"name": "cosine", "evaluations": 3, "restarts": 2}, {"name": "dlg", "evaluations": 4}],
        }
    )
    expected = run_in(tmp_path / "here", experiment)
    with SecondDevice() as device, pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmark.harness.hardware", lambda device: {"device": device})
        found = run_in(tmp_path / "there", experiment, device=OTHER)
    assert device.operations > 1000
    assert found.manifest.hardware == {"device": OTHER}
    assert set(expected.cells["outcome"]) <= {"measured", "not evaluated"}
    assert set(found.trainings["training"]).isdisjoint(expected.trainings["training"])
    assert_same_rows(without_addresses(expected), without_addresses(found))


def without_addresses(tables: RunTables) -> RunTables:
    """The device is part of every address; what it names must be the same."""

    def kept(frame: pd.DataFrame) -> pd.DataFrame:
        columns = ("training", "cell", "control", "original", "reconstruction")
        return frame.drop(columns=[column for column in columns if column in frame])

    return RunTables(kept(tables.trainings), kept(tables.cells), kept(tables.images), tables.manifest, tables.directory)
