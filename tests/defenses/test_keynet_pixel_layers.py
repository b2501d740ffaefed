"""One layer under pixel keys: relabelling against sparse products and the authors' package, means of entries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import RandomNetwork, random_networks, roots
from small_networks import lenet5
from torch import nn

from defenses.keynet.pixel import PixelKey
from defenses.keynet.pixel_form import PixelForm
from defenses.keynet.pixel_keys import PixelKeyPolicy, draw_pixel_keys
from defenses.keynet.pixel_transform import MonomialKeying, SparseKeying, layer_keying
from federation.models import build_model
from federation.network import Network
from federation.secret_root import SecretRoot
from federation.toeplitz import trace_toeplitz

ROOT = SecretRoot(b"pixel keys are drawn from this.." * 2)


def key(size: int, gain_range: float = 2.0, alpha: int = 1, label: int = 0) -> PixelKey:
    return PixelKey.draw(ROOT.derive("test", label, size).reader(), size, gain_range=gain_range, alpha=alpha)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(random_networks(), roots, st.sampled_from([1.0, 3.0]))
def test_the_relabelling_is_the_sparse_product(case: RandomNetwork, root: SecretRoot, gain_range: float) -> None:
    form, policy = PixelForm.of(case.network), PixelKeyPolicy(gain_range, outputs="monomial")
    keys = draw_pixel_keys(form, root, policy)
    rng = np.random.default_rng(0)
    for step in form.layers.values():
        pair = keys.spaces[step.space], keys.spaces[step.source_spaces[0]]
        fast, product = MonomialKeying(step.layout, *pair), SparseKeying(step.layout, *pair)
        assert isinstance(layer_keying(step.layout, *pair), MonomialKeying)
        values = rng.normal(size=step.layout.value_count).astype(np.float32)
        keyed, oracle = fast.matrix(values), product.product(values)
        assert np.array_equal(keyed.indptr, oracle.indptr)
        assert np.array_equal(keyed.indices, oracle.indices)
        assert np.allclose(keyed.data, oracle.data, rtol=2.0**-23, atol=0)
        recovered = fast.recover(keyed.data)
        assert np.allclose(recovered, product.recover(keyed.data), rtol=2.0**-23, atol=0)
        placed = step.layout.placements > 0
        assert np.allclose(recovered[placed], values[placed], rtol=2.0**-22, atol=0)
        assert not recovered[~placed].any()


REFERENCE_KEYED = [
    [12, 6, 0, 16, 0, 5, 20],
    [6, 2.25, 0, 10, 0, 2, 5],
    [2, 2, 2, 0, 1.25, 0, 10],
    [40, 16, 24, 64, 9, 14, 40],
    [1, 0.625, 0.75, 1, 0.375, 0.5, 2.5],
    [8, 3.5, 5, 0, 2, 0, 10],
    [0, 0, 0, 0, 0, 0, 1],
]
REFERENCE_STRIDED = [
    [5, 6, 8, 9, 0, 0, 0, 0, 10],
    [0, 0, 2, 3, 5, 6, 8, 9, 10],
    [0, 0, 0, 0, 0, 0, 0, 0, 1],
]


def test_the_authors_package_keys_the_same_matrices() -> None:
    """A.dot(W).dot(Ainv) with W from `sparse_toeplitz_conv2d` of github.com/visym/keynet (07c1ed08), on the same keys.

    The kernel is 1 to 9 with bias 10: on a 2x3 image under the keys below, and unkeyed with stride 2 on a 4x2 image.
    """
    values = np.arange(1, 11, dtype=np.float32)
    layouts = []
    for stride, shape in ((1, (1, 2, 3)), (2, (1, 4, 2))):
        layer = nn.Sequential(nn.Conv2d(1, 1, 3, stride, padding=1))
        (step,) = trace_toeplitz(layer, shape).linear
        layouts.append(step.layout)
    output = PixelKey(np.array([[3, 0, 5, 1, 4, 2]]), np.ones(1), np.array([2, 0.5, 1, 4, 0.25, 1]))
    source = PixelKey(np.array([[1, 4, 2, 0, 5, 3]]), np.ones(1), np.array([0.5, 2, 1, 0.25, 4, 2]))
    for keying in (MonomialKeying, SparseKeying):
        assert np.array_equal(keying(layouts[0], output, source).matrix(values).toarray(), REFERENCE_KEYED)
    assert np.array_equal(layouts[1].matrix(values).toarray(), REFERENCE_STRIDED)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(lambda: build_model("lenet5", (1, 28, 28), 10, seed=0), (1, 28, 28), 10)
    form = PixelForm.of(network)
    keys, step = draw_pixel_keys(form, ROOT, PixelKeyPolicy()), form.layers["conv2"]
    keying = MonomialKeying(step.layout, keys.spaces[step.space], keys.spaces[step.source_spaces[0]])
    values = np.random.default_rng(0).normal(size=step.layout.value_count).astype(np.float32)
    alone = keying.protect(values), keying.recover(keying.protect(values))
    monkeypatch.setattr("os.cpu_count", lambda: threads)
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    assert np.array_equal(keying.protect(values), alone[0])
    assert np.array_equal(keying.recover(alone[0]), alone[1])


def test_a_value_is_the_mean_of_its_entries() -> None:
    layout = PixelForm.of(lenet5()).layers["conv1"].layout
    keying = MonomialKeying(layout, key(layout.shape[0] - 1), key(layout.shape[1] - 1, label=1))
    values = np.linspace(1, 2, layout.value_count, dtype=np.float32)
    entries = keying.protect(values)
    entry = int(np.flatnonzero(keying.structure.data == 12)[0])
    off = entries[entry] * np.float32(0.01)
    entries[entry] += off
    moved = keying.recover(entries) - values
    assert moved[12] == pytest.approx(0.01 * values[12] / layout.placements[12], rel=1e-2)
    assert np.abs(np.delete(moved, 12)).max() < 1e-6


def test_values_that_cancel_keep_their_places() -> None:
    layout = PixelForm.of(lenet5()).layers["conv1"].layout
    pair = key(layout.shape[0] - 1), key(layout.shape[1] - 1, alpha=2, label=1)
    keying = SparseKeying(layout, *pair)
    values = np.zeros(layout.value_count, np.float32)
    values[:3] = 1
    keyed = keying.matrix(values)
    assert keyed.nnz == keying.structure.nnz
    assert np.allclose(keyed.toarray(), keying.product(values).toarray(), atol=1e-6)
