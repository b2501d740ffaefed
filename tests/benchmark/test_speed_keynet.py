"""Key-Net's speed comparison: that it checks what it times, and that its figures fit together. Never a time."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor, nn

import benchmark.speed.keynet_cases as cases
from benchmark.audit.chosen import spread_weights
from benchmark.speed.keynet import measure_keynet
from benchmark.speed.keynet_cases import Case, channel_case, toeplitz_case
from benchmark.speed.keynet_report import KeyNetSpeed
from defenses.keynet.channel import ChannelTransform
from defenses.keynet.keys import KeyPolicy, draw_keys
from defenses.keynet.pixel_transform import SparseKeying
from federation.errors import KeyholeError, UsageError
from federation.models import build_model
from federation.network import Network
from federation.secret_root import SecretRoot
from federation.seeds import torch_generator
from federation.weights import Weights

LENET = Network(lambda: build_model("lenet5", (1, 12, 12), 10, seed=0), (1, 12, 12), 10)


class Separable(nn.Module):
    """Batch normalisation, a grouped and a depthwise convolution, and a linear layer that reads runs of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.grouped = nn.Conv2d(6, 4, 1, groups=2)
        self.mix = nn.Conv2d(4, 4, 1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.fc = nn.Linear(4 * 3 * 3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(torch.relu(self.norm(self.conv(x))))
        return self.fc(self.depthwise(self.mix(x)).flatten(1))


SEPARABLE = Network(Separable, (2, 5, 5), 5)
SEPARABLE_VALUES = 2 * 6 * 9 + 4 * 6 + (4 * 3 + 4) + (4 * 4 + 4) + (4 * 9 + 4) + (36 * 5 + 5)


def small_cases() -> list[Case]:
    return [toeplitz_case("small LeNet-5", LENET, kind) for kind in ("permutations", "gains")] + [
        channel_case("separable", SEPARABLE, kind) for kind in ("permutations", "gains")
    ]


@pytest.fixture(scope="module")
def speed() -> KeyNetSpeed:
    return measure_keynet(small_cases(), repeats=1, copy_bytes=1 << 12)


def test_every_case_is_timed_on_one_and_on_two_threads(speed: KeyNetSpeed) -> None:
    names = [facts.name for facts in speed.cases]
    assert names[0] == "small LeNet-5, keynet-toeplitz, permutations"
    assert len(set(names)) == 4
    assert [(one.threads, one.clock) for one in speed.passes] == [(1, "CPU time"), (2, "wall clock")]
    for one in speed.passes:
        assert [timing.case for timing in one.timings] == names
        assert [timing.oracle is None for timing in one.timings] == [False, False, True, True]
        assert [timing.keying is None for timing in one.timings] == [False, False, True, True]


def test_facts_are_those_of_the_networks(speed: KeyNetSpeed) -> None:
    permuted, scaled, channel_permuted, channel_scaled = speed.cases
    assert permuted.values == sum(spec.size for spec in LENET.layout)
    assert permuted.entries == scaled.entries > permuted.values
    assert channel_scaled.values == channel_scaled.entries == SEPARABLE_VALUES
    for facts in speed.cases:
        assert facts.error <= facts.stated_error
        assert facts.wire_bytes > 4 * facts.entries
        assert facts.moved_bytes == 2 * (4 * facts.values + 4 * facts.entries)
    assert permuted.condition == channel_permuted.condition == 1
    assert permuted.error == channel_permuted.error == 0
    for facts in (scaled, channel_scaled):
        assert 1 < facts.condition <= 4  # gains on [1/2, 2]
        assert facts.error > 0


def test_ratios_follow_from_the_figures(speed: KeyNetSpeed) -> None:
    content = json.loads(json.dumps(speed.as_json()))
    moved = {entry["name"]: entry["moved_bytes"] for entry in content["cases"]}
    assert content["targets"] == {"products_over_both": 5, "both_over_copy": 4}
    for one in content["passes"]:
        for entry in one["timings"]:
            both = entry["encrypt"] + entry["decrypt"]
            assert entry["products_over_both"] == entry["products"] / both
            assert entry["both_over_copy"] == both / entry["copy"]
            assert entry["both_over_moving"] == pytest.approx(both * one["bandwidth"] / moved[entry["case"]])
            if entry["keying"] is None:
                assert entry["products_over_keying"] is entry["oracle_over_both"] is None
            else:
                assert entry["oracle_over_keying"] == entry["oracle"] / entry["keying"]


def test_tables_state_targets_threads_and_machine(speed: KeyNetSpeed) -> None:
    tables = speed.tables()
    assert len(tables) == 5
    for table in tables:
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert len(table.rows) == 4
    text = "\n".join(note for table in tables for note in table.notes)
    for expected in ("5 or more", "4 or less", speed.machine["cpu"], "scipy ", "numba ", "load "):
        assert expected in text
    assert "2 threads (wall clock)" in tables[1].title


def test_targets_state_the_worst_case(speed: KeyNetSpeed) -> None:
    one = speed.passes[0]
    chosen = [
        dataclasses.replace(timing, encrypt=1.0, decrypt=1.0, keying=keying, products=products, copy=copy)
        for timing, keying, products, copy in zip(
            one.timings, (1.0, 1.0, None, None), (14.0, 9.0, 2.0, 2.0), (9.0, 9.0, 0.5, 0.25), strict=True
        )
    ]
    found = dataclasses.replace(speed, passes=(dataclasses.replace(one, timings=tuple(chosen)),)).tables()
    assert found[0].notes[-2].endswith("products / both of 5 or more: 4.5 at worst")
    assert found[0].notes[-1].endswith("products / keying of 5 or more: 9.0 at worst")
    assert found[1].notes[-1].endswith("both / copy of 4 or less: 8.0 at worst")


def test_a_target_is_stated_only_where_it_is_measured() -> None:
    against_scipy, _, against_memory, *_ = measure_keynet(
        [channel_case("separable", SEPARABLE, "gains")], repeats=1, copy_bytes=64
    ).tables()
    assert not any("target" in note for note in against_scipy.notes)
    assert "target in channel mode" in against_memory.notes[-1]


def test_progress_and_threads() -> None:
    steps: list[tuple[str, int, int]] = []
    before = torch.get_num_threads()
    case = channel_case("separable", SEPARABLE, "gains")
    measure_keynet([case], repeats=2, copy_bytes=64, progress=lambda *step: steps.append(step))
    # a large copy, encrypt, decrypt, products, a plain copy
    assert steps == [(stage, done, 10) for stage in ("time 1 thread", "time 2 threads") for done in range(1, 11)]
    assert torch.get_num_threads() == before


def test_works_run_on_the_threads_they_are_reported_for() -> None:
    seen: list[int] = []
    case = channel_case("separable", SEPARABLE, "gains")
    works = dict(case.works) | {"encrypt": lambda: seen.append(torch.get_num_threads())}
    measure_keynet([Case(case.facts, works)], repeats=2, copy_bytes=64)
    assert seen == [1, 1, 1, 2, 2, 2]


def test_products_are_those_of_dense_matrices() -> None:
    """A W A^-1 written out with NumPy in float64: dense, grouped and depthwise kernels, vectors, runs of pixels."""
    keys = draw_keys(SEPARABLE.channels, SecretRoot(bytes(32)), KeyPolicy(gain_range=2.0))
    weights = spread_weights(SEPARABLE.layout, torch_generator(3), smallest=0.1, largest=1.0)
    keyed = ChannelTransform(keys, SEPARABLE.channels).protect(weights)
    products = cases._channel_products(SEPARABLE, keys, weights, keyed)
    names = [name for name, axes in SEPARABLE.channels.axes.items() if axes.out_spaces]
    for name, product in zip(names, products, strict=True):
        for factor in filter(scipy.sparse.issparse, (*product.there, *product.back)):
            assert factor.dtype == np.float32
        there, back = cases._multiply(product.there), cases._multiply(product.back)
        truth = functools.reduce(np.matmul, map(dense, product.there))
        assert np.allclose(dense(there), truth, rtol=1e-6, atol=0), name
        assert np.array_equal(np.sort(dense(product.back[1])[dense(product.back[1]) != 0]),
                              np.sort(keyed[name].numpy().ravel())), name  # fmt: skip
        assert np.allclose(dense(back), dense(product.there[1]), rtol=1e-6, atol=0), name


def dense(matrix: Any) -> Any:
    return np.asarray(matrix.toarray() if scipy.sparse.issparse(matrix) else matrix, np.float64)


def test_wrong_decryption_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(self: ChannelTransform, weights: Mapping[str, Tensor]) -> Weights:
        return {name: tensor.clone() for name, tensor in weights.items()}

    monkeypatch.setattr(ChannelTransform, "recover", forgetful)
    with pytest.raises(KeyholeError, match="decrypted weights are off by"):
        channel_case("separable", SEPARABLE, "gains")


def test_wrong_keying_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    # undone perfectly, and yet not A W A^-1
    for way in ("protect", "recover"):
        monkeypatch.setattr(
            ChannelTransform, way, lambda self, weights: {name: tensor.clone() for name, tensor in weights.items()}
        )
    with pytest.raises(KeyholeError, match="SciPy's products and ours differ"):
        channel_case("separable", SEPARABLE, "gains")


def test_an_oracle_that_disagrees_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = SparseKeying.recover

    def off(self: SparseKeying, entries: Any) -> Any:
        return right(self, entries) * np.float32(1.001)

    monkeypatch.setattr(SparseKeying, "recover", off)
    with pytest.raises(KeyholeError, match="SparseKeying keys a layer in another way"):
        toeplitz_case("small LeNet-5", LENET, "gains")


def test_a_network_that_products_would_not_cover_is_refused() -> None:
    network = Network(lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten()), (1, 3, 3), 2)
    with pytest.raises(KeyholeError, match="stand in no matrix"):
        toeplitz_case("normalised", network, "gains")


def test_no_repeats_are_refused() -> None:
    with pytest.raises(UsageError, match="1 or more"):
        measure_keynet([], repeats=0)


def test_the_networks_are_those_of_the_paper() -> None:
    """Gusain (2021): LeNet-5 with 413,179 entries, MobileNetV2 with 2,236,682 parameters and its running statistics."""
    found = cases.all_cases()
    assert [case.facts.defense for case in found] == ["keynet-toeplitz"] * 2 + ["keynet"] * 2
    assert {case.facts.entries for case in found[:2]} == {413_179}
    assert {case.facts.values for case in found[2:]} == {2_236_682 + 34_112}
