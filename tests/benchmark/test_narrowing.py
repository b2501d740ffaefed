"""Narrowing: what stays, what takes a place, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmark.experiment import Experiment
from benchmark.narrowing import narrowed
from federation.errors import UsageError

Tiny = Callable[..., Experiment]


def test_narrowing_keeps_plain_and_drops_the_rest(tiny_experiment: Tiny) -> None:
    fewer = narrowed(
        tiny_experiment(),
        defenses=("keynet",),
        adversaries=("server/adaptive",),
        attacks=("cosine",),
        seeds=(5,),
    )
    assert [spec.name for spec in fewer.federations[0].defenses] == ["plain", "keynet"]
    assert fewer.adversaries == ("server/adaptive",)
    assert fewer.seeds == (5,)
    assert fewer.attacks == tiny_experiment().attacks


def test_narrowing_by_nothing_changes_nothing(tiny_experiment: Tiny) -> None:
    assert narrowed(tiny_experiment()) == tiny_experiment()


def test_narrowing_adds_what_the_experiment_does_not_list(tiny_experiment: Tiny) -> None:
    other = narrowed(tiny_experiment(), attacks=("dlg",), defenses=("qsgd",), tasks=("mnist5k-lenet5",))
    assert [(spec.name, spec.evaluations) for spec in other.attacks] == [("dlg", 8)]
    assert [spec.name for spec in other.federations[0].defenses] == ["plain", "qsgd"]
    assert [spec.task for spec in other.federations] == ["mnist5k-lenet5"]


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        ({"tasks": ("mnist5k-lenet-zhou",)}, ["mnist5k-lenet-zhou", "mnist5k-lenet-zhu"]),
        ({"defenses": ("pailler",)}, ["pailler", "paillier"]),
        ({"attacks": ("dgl",)}, ["dgl", "dlg"]),
        ({"adversaries": ("server/adaptve",)}, ["server/adaptve", "server/adaptive"]),
        ({"seeds": (1, 1)}, ["seeds", "1", "twice"]),
    ],
)
def test_narrowing_to_a_misspelt_name_lists_near_matches(
    tiny_experiment: Tiny, names: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        narrowed(tiny_experiment(), **names)
    assert all(part in str(caught.value) for part in parts)
    assert "\n" not in str(caught.value)
