"""Compiled loops of pixel and channel keys, against NumPy to the last bit where that is what they promise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmark.audit.chosen import spread_weights
from defenses.keynet import kernels, moving, pieces, runs
from defenses.keynet.monomial import ChannelKey
from defenses.keynet.moving import MonomialTransform, Movement, Step
from defenses.keynet.pixel_form import PixelForm
from defenses.keynet.pixel_keys import PixelKeyPolicy, draw_pixel_keys
from defenses.keynet.pixel_transform import MonomialKeying, PixelTransform, SparseKeying
from federation.channels import TensorAxes
from federation.errors import MalformedMessage
from federation.models import build_model
from federation.network import Network
from federation.secret_root import SecretRoot
from federation.toeplitz import ToeplitzLayout

ROOT = SecretRoot(b"compiled loops, tested by NumPy." * 2)
LENET = Network(lambda: build_model("lenet5", (1, 20, 20), 10, seed=0), (1, 20, 20), 10)
FORM = PixelForm.of(LENET)
KEYS = draw_pixel_keys(FORM, ROOT, PixelKeyPolicy(3.0, outputs="monomial"))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many parts even of small layers."""
    monkeypatch.setattr(kernels, "_PART", 100)
    monkeypatch.setattr(kernels, "_FEW", 1)


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads even for little work."""
    monkeypatch.setattr(pieces, "_WORTH", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


# Toeplitz matrices.


def layer(name: str) -> tuple[ToeplitzLayout, Any, Any]:
    step = FORM.layers[name]
    return step.layout, KEYS.spaces[step.space], KEYS.spaces[step.source_spaces[0]]


def values_of(layout: ToeplitzLayout) -> np.ndarray:
    return np.random.default_rng(0).normal(size=layout.value_count).astype(np.float32)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("name", FORM.layers)
def test_parts_make_the_sparse_product(name: str) -> None:
    layout, output, source = layer(name)
    keying, oracle = MonomialKeying(layout, output, source), SparseKeying(layout, output, source)
    values = values_of(layout)
    parts = keying.protecting(values).pieces
    assert len(parts) > 1 or layout.entries < 2 * layout.value_count
    entries = keying.protect(values)
    assert np.allclose(entries, oracle.product(values).data, rtol=2.0**-23, atol=0)
    assert np.allclose(keying.recover(entries), oracle.recover(entries), rtol=2.0**-23, atol=0)


@pytest.mark.parametrize("name", FORM.layers)
def test_entries_are_the_formula_to_the_last_bit(name: str) -> None:
    """In float64 and rounded once: the bytes of messages stand on it."""
    layout, output, source = layer(name)
    keying, values = MonomialKeying(layout, output, source), values_of(layout)
    places = keying.structure.tocoo()
    row_gains, column_gains = np.append(output.gains, 1), np.append(source.gains, 1)
    due = np.append(values, np.float32(1)).astype(np.float64)[keying.structure.data]
    due = due * row_gains[places.coords[0]] * (1 / column_gains)[places.coords[1]]
    assert np.array_equal(keying.protect(values), due.astype(np.float32))


@pytest.mark.parametrize("name", FORM.layers)
@pytest.mark.parametrize("parts", ["one part", "small parts"])
def test_means_are_those_of_numpy(name: str, parts: str, request: pytest.FixtureRequest) -> None:
    if parts == "small parts":
        request.getfixturevalue("small_parts")
    layout, output, source = layer(name)
    keying = MonomialKeying(layout, output, source)
    entries = np.random.default_rng(1).normal(1, 0.1, layout.entries).astype(np.float32)
    places = keying.structure.tocoo()
    undone = entries / np.append(output.gains, 1)[places.coords[0]] * np.append(source.gains, 1)[places.coords[1]]
    due = [undone[keying.structure.data == value].mean() for value in range(layout.value_count)]
    assert np.allclose(keying.recover(entries), due, rtol=2.0**-23, atol=0)


@pytest.mark.usefixtures("small_parts", "two_threads")
def test_threads_change_no_bit_of_a_whole_model() -> None:
    transform = PixelTransform(FORM, KEYS)
    weights = spread_weights(LENET.layout, torch.Generator().manual_seed(0), smallest=0.0, largest=1.0)
    shared = [transform.protect(weights) for _ in range(5)]
    recovered = [transform.recover(model, "a model") for model in shared]
    torch.set_num_threads(1)
    alone = transform.protect(weights)
    assert {model.to_bytes() for model in shared} == {alone.to_bytes()}
    plain = transform.recover(alone, "a model")
    assert all(torch.equal(found[name], tensor) for found in recovered for name, tensor in plain.items())


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            lambda tensor: tensor.index_fill(0, torch.tensor([1]), torch.nan),
            "'conv1.bias' holds values that are not finite",
        ),
        (lambda tensor: tensor.index_fill(0, torch.tensor([1]), -torch.inf), "'conv1.bias' holds values that are not"),
        (lambda tensor: tensor.bfloat16(), r"'conv1.bias' is torch.bfloat16 \(6,\), agreed is torch.float32"),
        (lambda tensor: tensor[None], r"'conv1.bias' is torch.float32 \(1, 6\), agreed is"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: Callable[[Tensor], Tensor], fault: str) -> None:
    weights = spread_weights(LENET.layout, torch.Generator().manual_seed(0), smallest=0.0, largest=1.0)
    weights["conv1.bias"] = change(weights["conv1.bias"])
    with pytest.raises(MalformedMessage, match=f"weights to be keyed: tensor {fault}"):
        PixelTransform(FORM, KEYS).protect(weights)


# Channels.


def key(rng: np.random.Generator, blocks: np.ndarray, width: int) -> ChannelKey:
    """A key whose blocks of `width` channels come in the order of `blocks`, with an order of its own in each."""
    inside = np.stack([rng.permutation(width) for _ in blocks])
    size = len(blocks) * width
    return ChannelKey((blocks[:, None] * width + inside).ravel(), np.exp(rng.uniform(-1, 1, size)))


def keyed_by_numpy(tensor: np.ndarray, output: ChannelKey, source: ChannelKey, groups: int, run: int) -> np.ndarray:
    """Value by value: the entry of row permutation[i] and column permutation[j] times both gains in float32."""
    width = source.size // groups
    rows = tensor.reshape(output.size, width, run)
    found = np.empty_like(rows)
    inverse_gains = (1 / source.gains).astype(np.float32)
    for i in range(output.size):
        group = i // (output.size // groups)
        for j in range(width):
            factor = np.float32(output.gains[i]) * inverse_gains[group * width + j]
            found[i, j] = rows[output.permutation[i], source.permutation[group * width + j] % width] * factor
    return found.reshape(tensor.shape)


@settings(deadline=None, max_examples=60)
@given(
    groups=st.integers(1, 4),
    outputs=st.integers(1, 5),
    width=st.integers(1, 40),
    run=st.integers(1, 9),
    short=st.booleans(),
    seed=st.integers(0, 99),
)
def test_kernels_are_the_formula_to_the_last_bit(
    groups: int, outputs: int, width: int, run: int, short: bool, seed: int
) -> None:
    """Alone and joined with others; and back, where the same factors divide."""
    rng = np.random.default_rng(seed)
    blocks = rng.permutation(groups)
    output, source = key(rng, blocks, outputs), key(rng, blocks, width)
    transform = MonomialTransform(output, source, TensorAxes((0,), (1,), groups=groups))
    tensor = rng.normal(size=(groups * outputs, width, run)).astype(np.float32)
    names = ["one", "other"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moving, "_SHORT", 1 << 20 if short else 0)
        shapes = dict.fromkeys(names, torch.Size(tensor.shape))
        to = Movement(runs.multiply, dict.fromkeys(names, transform.to), shapes)
        back = Movement(runs.divide, dict.fromkeys(names, transform.back), shapes)
    keyed = to.apply(dict.fromkeys(names, torch.from_numpy(tensor)))
    due = keyed_by_numpy(tensor, output, source, groups, run)
    assert np.array_equal(keyed["one"].numpy(), due)
    assert np.array_equal(keyed["other"].numpy(), due)
    factors = keyed_by_numpy(np.ones_like(tensor), output, source, groups, run)
    places = keyed_by_numpy(
        np.arange(tensor.size, dtype=np.float32).reshape(tensor.shape),
        ChannelKey(output.permutation, np.ones(output.size)), ChannelKey(source.permutation, np.ones(source.size)),
        groups, run,
    ).astype(np.int64)  # fmt: skip
    plain = np.empty(tensor.size, np.float32)
    plain[places.ravel()] = (due / factors).ravel()
    assert np.array_equal(back.apply(keyed)["other"].numpy().ravel(), plain)


def test_a_step_of_one_row_joins_several() -> None:
    moves = [
        Step.of(np.array([1, 0]), np.array([0]), np.array([2.0, 3.0]), np.array([1.0]), 1).with_runs(2),
        Step.of(np.array([0]), np.array([2, 0, 1]), np.array([5.0]), np.array([1.0, 2.0, 4.0]), 1),
    ]
    joined = Step.joined(moves)
    # rows (1 2) and (3 4) swap, times 2 and 3; then 5 6 7 as 7 5 6 times 5, 10 and 20
    values, found = np.array([[1, 2, 3, 4, 5, 6, 7]], np.float32), np.empty((1, 7), np.float32)
    runs.multiply(values, joined.origins, joined.columns, joined.row_factors, joined.column_factors, found)
    assert found.tolist() == [[6, 8, 3, 6, 35, 50, 120]]
    assert joined.size == sum(step.size for step in moves)


@pytest.mark.usefixtures("two_threads")
def test_threads_change_no_bit_of_moved_tensors() -> None:
    rng = np.random.default_rng(0)
    sizes = [(40, 60), (64, 33), (7, 3)]
    tensors = {str(size): torch.from_numpy(rng.normal(size=size).astype(np.float32)) for size in sizes}
    steps = {
        str((rows, columns)): MonomialTransform(
            key(rng, np.arange(1), rows), key(rng, np.arange(1), columns), TensorAxes((0,), (1,))
        ).to
        for rows, columns in sizes
    }
    movement = Movement(runs.multiply, steps, {name: tensor.shape for name, tensor in tensors.items()})
    shared = movement.apply(tensors)
    torch.set_num_threads(1)
    alone = movement.apply(tensors)
    assert shared.keys() == alone.keys() == tensors.keys()
    assert all(torch.equal(shared[name], tensor) for name, tensor in alone.items())
