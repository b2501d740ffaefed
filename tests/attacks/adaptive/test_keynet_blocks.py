"""Keys that mix the pixels of blocks: keyed images opened all the same, and the parts that find the mixing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from keyed_digits import CAP, SIDE, as_pictures, psnr

from attacks.adaptive.grid.mixed import BlockOrder, block_entries, open_mixed
from attacks.adaptive.grid.template import ConvolutionTemplate, KeyNotFoundError
from attacks.adaptive.grid.unmixing import TOLERANCES, block_basis
from attacks.adaptive.keynet_image import recover_images
from federation.datasets import load_dataset
from federation.errors import UsageError

DIGITS = 3
LENET = ConvolutionTemplate.of((1, SIDE, SIDE), 6, (5, 5), padding=(2, 2))


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """[DIGITS, PIXELS], grey levels 0 to 255."""
    return load_dataset("mnist5k").victims.images[:DIGITS].flatten(1).numpy().astype(np.float64)


@dataclass(frozen=True)
class Kind:
    """A key as the authors' package draws its blockwise keys: gains uniform on [1, 1 + beta], offsets on [0, gamma].

    Attributes:
        mixing: of the pixels of a block: "permutation", "givens" (rotations of `block` pairs), "doubly" (doubly stochastic
            with a band of 3, dense once inverted); or "orthogonal", uniform over the orthogonal group.
        block: side of a block.
        order: of the entries.
        shuffle: what is permuted before the mixing.
    """

    mixing: str
    block: int = 4
    order: BlockOrder = "tiles"
    shuffle: str = "nothing"
    beta: float = 1.0
    gamma: float = 0.0


def mixing(kind: str, size: int, generator: np.random.Generator) -> np.ndarray:
    """[size, size]."""
    before, after = (np.eye(size)[generator.permutation(size)] for _ in range(2))
    if kind == "permutation":
        return before
    if kind == "orthogonal":
        return np.asarray(np.linalg.qr(generator.normal(size=(size, size)))[0])
    if kind == "givens":
        rotated = np.eye(size)
        pairs = generator.permutation(size)[: 2 * int(np.sqrt(size))].reshape(-1, 2)
        for (first, second), angle in zip(pairs, generator.uniform(0, 2 * np.pi, len(pairs)), strict=True):
            rotated[first, [first, second]] = np.cos(angle), -np.sin(angle)
            rotated[second, [first, second]] = np.sin(angle), np.cos(angle)
        return after @ rotated
    band = generator.uniform(size=(3, size))
    band[0] += band[1:].sum(0)
    weights = np.diag(band[0]) + np.diag(band[1, 1:], 1) + np.diag(band[2, :-1], -1)
    for _ in range(100):
        weights /= weights.sum(0)
        weights /= weights.sum(1, keepdims=True)
    return before @ weights @ after


@dataclass(frozen=True)
class Scheme:
    """A first layer and images under one key. The layer's rows are permuted, with gains log-uniform on [1/2, 2]."""

    layer: scipy.sparse.csr_array
    linear: scipy.sparse.csr_array
    offsets: np.ndarray

    @classmethod
    @cache
    def drawn(cls, seed: int, kind: Kind, template: ConvolutionTemplate = LENET) -> Scheme:
        generator = np.random.default_rng(seed)
        channels, height, width = template.image_shape
        entries, size = channels * height * width, kind.block**2
        inside = generator.uniform(1, 1 + kind.beta, size)[:, None] * mixing(kind.mixing, size, generator)
        order = np.arange(entries).reshape(channels, height, width)
        if kind.order == "tiles":
            order = np.stack(
                [
                    order[channel, y : y + kind.block, x : x + kind.block].ravel()
                    for channel in range(channels)
                    for y in range(0, height, kind.block)
                    for x in range(0, width, kind.block)
                ]
            )
        moved = {
            "nothing": lambda: np.arange(entries),
            "pixels": lambda: generator.permutation(entries),
            "blocks": lambda: np.arange(entries).reshape(-1, size)[generator.permutation(entries // size)].ravel(),
        }[kind.shuffle]()
        places, shuffle = permutation(order.ravel()), permutation(moved)
        repeat = scipy.sparse.eye_array(entries // size)
        linear = places.T @ scipy.sparse.kron(repeat, inside) @ shuffle @ places
        inverse = places.T @ shuffle.T @ scipy.sparse.kron(repeat, np.linalg.inv(inside)) @ places
        offsets = places.T @ np.tile(generator.uniform(0, kind.gamma, size), entries // size)
        rows = template.layout.shape[0] - 1
        gains = scipy.sparse.diags_array(np.exp(generator.uniform(-np.log(2), np.log(2), rows)))
        plain = template.layout.matrix(generator.uniform(-0.2, 0.2, template.layout.value_count))
        keyed_rows = scipy.sparse.block_diag([gains @ permutation(generator.permutation(rows)), np.ones((1, 1))])
        unkeyed = scipy.sparse.block_array([[inverse, -(inverse @ offsets)[:, None]], [None, np.ones((1, 1))]])
        return cls(
            scipy.sparse.csr_array(keyed_rows @ plain @ unkeyed), scipy.sparse.csr_array(linear), np.asarray(offsets)
        )

    def encrypted(self, images: np.ndarray) -> np.ndarray:
        return np.asarray((self.linear @ images.T).T + self.offsets)


def permutation(order: np.ndarray) -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array((np.ones(len(order)), (np.arange(len(order)), order)))


def blocks_of(kind: Kind, shape: tuple[int, int, int] = (1, SIDE, SIDE)) -> np.ndarray:
    return block_entries(shape, (kind.block, kind.block), kind.order)


KEYS: dict[str, tuple[Kind, float]] = {
    "permuted in blocks": (Kind("permutation", gamma=1.0), 57.0),
    "the same, large offsets": (Kind("permutation", gamma=10_000.0), 31.0),
    "pairs rotated": (Kind("givens", beta=0.1, gamma=100.0), 48.0),
    "doubly stochastic": (Kind("doubly", gamma=1.0), 40.0),
    "doubly stochastic, no offsets": (Kind("doubly"), 40.0),
    "blocks permuted": (Kind("doubly", shuffle="blocks", beta=100.0, gamma=1000.0), 31.0),
    "pixels permuted": (Kind("doubly", shuffle="pixels", gamma=255.0), 40.0),
    "along lines": (Kind("doubly", order="lines", gamma=1.0), 40.0),
    "small blocks": (Kind("doubly", block=2, gamma=1.0), 46.0),
    "large blocks": (Kind("doubly", block=7, gamma=1.0), 36.0),
    "orthogonal": (Kind("orthogonal", gamma=255.0), 42.0),
}
"""With what eight bits must reach, in dB: some dB under what three digits gave."""


@pytest.mark.parametrize("name", KEYS)
def test_exact_and_eight_bit_ciphertexts_open(digits: np.ndarray, name: str) -> None:
    kind, least = KEYS[name]
    scheme = Scheme.drawn(0, kind)
    keyed = scheme.encrypted(digits)
    found = recover_images(scheme.layer, keyed, LENET, blocks=blocks_of(kind))
    assert found.key.offsets == (kind.gamma > 0)
    assert psnr(found.images, digits) == CAP
    seen = recover_images(scheme.layer, as_pictures(keyed), LENET, grey_levels=True, blocks=blocks_of(kind))
    assert psnr(seen.images, digits) >= least


@pytest.mark.parametrize("name", ["pairs rotated", "doubly stochastic", "orthogonal"])
def test_float32_is_enough(digits: np.ndarray, name: str) -> None:
    kind, least = KEYS[name]
    scheme = Scheme.drawn(1, kind)
    layer = scheme.layer.astype(np.float32).astype(np.float64)
    found = recover_images(
        layer, as_pictures(scheme.encrypted(digits)), LENET, grey_levels=True, blocks=blocks_of(kind)
    )
    assert psnr(found.images, digits) >= least


@pytest.mark.parametrize("name", ["permuted in blocks", "pairs rotated", "doubly stochastic", "pixels permuted"])
def test_another_networks_layer_opens_nothing(digits: np.ndarray, name: str) -> None:
    kind, _ = KEYS[name]
    scheme, other = (Scheme.drawn(seed, kind) for seed in (0, 1))
    pictures = as_pictures(scheme.encrypted(digits))
    found = recover_images(other.layer, pictures, LENET, grey_levels=True, blocks=blocks_of(kind))
    assert psnr(found.images, digits) <= max(15.0, psnr(pictures, digits) + 1)


WRONG: dict[str, Kind] = {
    "unmixed": Kind("doubly", block=1),
    "another order": Kind("doubly", order="lines"),
    "the whole image": Kind("doubly", block=28),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_blocks_are_not_taken_for_right(digits: np.ndarray, name: str) -> None:
    scheme = Scheme.drawn(0, Kind("doubly"))
    with pytest.raises(KeyNotFoundError, match="do not stand where"):
        recover_images(scheme.layer, digits, LENET, blocks=blocks_of(WRONG[name]))


def test_a_mixed_layer_needs_its_blocks(digits: np.ndarray) -> None:
    with pytest.raises(KeyNotFoundError, match="do not stand where"):
        recover_images(Scheme.drawn(0, Kind("doubly")).layer, digits, LENET)


def test_noise_is_no_layer(digits: np.ndarray) -> None:
    scheme = Scheme.drawn(0, Kind("doubly"))
    noise = scheme.layer.copy()
    noise.data = np.random.default_rng(0).normal(size=noise.nnz)
    with pytest.raises(KeyNotFoundError):
        recover_images(noise, digits, LENET, blocks=blocks_of(Kind("doubly")))


@pytest.mark.parametrize("mixed", ["doubly", "givens"])
def test_images_are_no_negatives(digits: np.ndarray, mixed: str) -> None:
    """Under keys of the authors' package, whose entries add up to something positive."""
    scheme = Scheme.drawn(2, Kind(mixed, gamma=1.0))
    found = recover_images(scheme.layer, scheme.encrypted(digits), LENET, blocks=blocks_of(Kind(mixed)))
    truth = digits[0].reshape(SIDE, SIDE)
    turned = [np.rot90(side, turns) for side in (found.images[0, 0], found.images[0, 0].T) for turns in range(4)]
    assert max(np.corrcoef(each.ravel(), truth.ravel())[0, 1] for each in turned) > 0.999


def test_blocks_all_of_which_touch_the_border_tell_together() -> None:
    """Two by two blocks: none lacks a side, but each shows what another cannot."""
    template = ConvolutionTemplate.of((1, 12, 12), 6, (5, 5), padding=(2, 2))
    kind = Kind("orthogonal", block=6)
    scheme = Scheme.drawn(0, kind, template)
    opened = open_mixed(scheme.layer, template, blocks_of(kind, (1, 12, 12)))
    assert is_monomial(opened.decoder @ scheme.linear)


def is_monomial(matrix: scipy.sparse.csr_array) -> bool:
    large = abs(matrix.toarray()) > 1e-6 * abs(matrix).max()
    return bool(np.all(large.sum(0) == 1) and np.all(large.sum(1) == 1))


def test_colour_images_open() -> None:
    """Blocks within one colour, as the authors' package has them."""
    template = ConvolutionTemplate.of((3, 16, 16), 5, (3, 3), padding=(1, 1))
    kind = Kind("doubly", gamma=1.0)
    scheme = Scheme.drawn(0, kind, template)
    opened = open_mixed(scheme.layer, template, blocks_of(kind, (3, 16, 16)))
    assert is_monomial(opened.decoder @ scheme.linear)
    assert np.all((opened.decoder @ scheme.linear).sum(1) > 0)


def test_a_stride_hides_the_mixing() -> None:
    """Some pixels are in no window without others of their block: zeros do not tell them apart."""
    template = ConvolutionTemplate.of((1, 16, 16), 6, (3, 3), stride=(2, 2), padding=(1, 1))
    kind = Kind("doubly")
    with pytest.raises(KeyNotFoundError, match="do not stand where"):
        open_mixed(Scheme.drawn(0, kind, template).layer, template, blocks_of(kind, (1, 16, 16)))


@settings(max_examples=15, deadline=None)
@given(
    block=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kernel=st.tuples(st.integers(2, 5), st.integers(2, 5)),
    channels=st.integers(2, 8),
    seed=st.integers(0, 2**16),
)
def test_a_basis_is_the_blocks_own(block: tuple[int, int], kernel: tuple[int, int], channels: int, seed: int) -> None:
    """Every window on a block of its own, mixed by random numbers, against the matrix that mixed it."""
    generator = np.random.default_rng(seed)
    size = block[0] * block[1]
    windows = [
        [
            (y, x)
            for y in range(max(top, 0), min(top + kernel[0], block[0]))
            for x in range(max(left, 0), min(left + kernel[1], block[1]))
        ]
        for top in range(1 - kernel[0], block[0])
        for left in range(1 - kernel[1], block[1])
    ]
    rows = np.zeros((len(windows), channels, *block))
    for row, window in zip(rows, windows, strict=True):
        for y, x in window:
            row[:, y, x] = generator.uniform(0.1, 1, channels) * generator.choice([-1, 1], channels)
    mixed = mixing("orthogonal", size, generator) * generator.uniform(1, 2, size)
    basis = block_basis([rows.reshape(-1, size) @ np.linalg.inv(mixed)], channels, TOLERANCES[0])
    assert basis is not None
    assert is_monomial(scipy.sparse.csr_array(np.linalg.inv(mixed) @ basis))


@settings(max_examples=30, deadline=None)
@given(
    counts=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    block=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_tiles_are_the_images_own(counts: tuple[int, int, int], block: tuple[int, int]) -> None:
    shape = counts[0], counts[1] * block[0], counts[2] * block[1]
    image = np.arange(np.prod(shape)).reshape(shape)
    tiles = block_entries(shape, block, "tiles").reshape(*counts, *block)
    for channel, y, x in np.ndindex(counts):
        down, right = y * block[0], x * block[1]
        assert np.array_equal(tiles[channel, y, x], image[channel, down : down + block[0], right : right + block[1]])
    lines = block_entries(shape, block, "lines")
    assert np.array_equal(lines.ravel(), image.ravel())
    assert lines.shape[1] == block[0] * block[1]


BAD: dict[str, Callable[[], Any]] = {
    "do not fill": lambda: block_entries((1, 28, 28), (5, 4), "tiles"),
    "do not fill 1": lambda: block_entries((1, 28, 28), (5, 1), "lines"),
    "blocks of 0x4": lambda: block_entries((1, 28, 28), (0, 4), "lines"),
    "tiles or lines": lambda: block_entries((1, 28, 28), (4, 4), "rows"),  # type: ignore[arg-type]
    "once": lambda: open_mixed(scipy.sparse.csr_array((4705, 785)), LENET, np.zeros((1, 784), np.int64)),
}


@pytest.mark.parametrize("part", BAD)
def test_blocks_of_no_such_image_are_refused(part: str) -> None:
    with pytest.raises(UsageError, match=part):
        BAD[part]()


def test_one_output_channel_is_not_enough() -> None:
    template = ConvolutionTemplate.of((1, 8, 8), 1, (3, 3), padding=(1, 1))
    kind = Kind("doubly", block=2)
    with pytest.raises(KeyNotFoundError, match="one output channel"):
        open_mixed(Scheme.drawn(0, kind, template).layer, template, blocks_of(kind, (1, 8, 8)))


def test_a_layer_of_another_shape_is_refused() -> None:
    with pytest.raises(KeyNotFoundError, match="shape"):
        open_mixed(scipy.sparse.csr_array((10, 785)), replace(LENET), blocks_of(Kind("doubly")))
