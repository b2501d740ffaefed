"""QSGD: bias and variance against the paper's formulas, real bits against arithmetic on whole integers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from federation import elias
from federation.errors import MalformedMessage, TrainingError, UsageError
from federation.packed_levels import code_bits
from federation.qsgd import LARGEST_LEVELS, QsgdConfig, Quantised, dequantise, from_bytes, quantise, to_bytes

levels = st.one_of(st.integers(1, 300), st.integers(1, LARGEST_LEVELS))
configs = st.builds(QsgdConfig, levels, st.sampled_from(["l2", "max"]), st.integers(1, 40))
vectors = st.lists(st.floats(-(2.0**100), 2.0**100, width=32), max_size=90).map(
    lambda values: torch.tensor(values).float()
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=generator(seed), dtype=torch.float64)


def bucket_norms(vector: Tensor, config: QsgdConfig) -> Tensor:
    """[values], each value's norm, bucket by bucket."""
    kind = math.inf if config.norm == "max" else 2
    return torch.cat([torch.linalg.vector_norm(part, kind).expand(len(part)) for part in vector.split(config.bucket)])


def packed_by_hand(quantised: Quantised, config: QsgdConfig) -> bytes:
    """The codes as the digits of one long integer."""
    number = 0
    for code in quantised.codes.tolist():
        number = (number << math.ceil(math.log2(2 * config.levels + 1))) | (code + config.levels)
    bits = len(quantised.codes) * math.ceil(math.log2(2 * config.levels + 1))
    return quantised.norms.numpy().tobytes() + (number << (-bits % 8)).to_bytes(-(-bits // 8), "big")


@settings(deadline=None)
@given(vectors, configs, st.integers(0, 99))
def test_values_go_to_a_neighbouring_level_of_their_own_sign(vector: Tensor, config: QsgdConfig, seed: int) -> None:
    quantised = quantise(vector, config, generator(seed))
    assert quantised.codes.abs().le(config.levels).all()
    assert (quantised.codes * vector.sign()).ge(0).all()
    if len(vector):
        step = bucket_norms(vector.double(), config) / config.levels
        # A unit of float32 for the norm that is rounded up, one for the result.
        tolerance = 3 * 2.0**-24 * bucket_norms(vector.double(), config) + 2.0**-149
        assert ((dequantise(quantised, config).double() - vector).abs() <= step + tolerance).all()


@settings(deadline=None)
@given(vectors, configs, st.integers(0, 99))
def test_bytes_read_back_and_are_the_packed_bits(vector: Tensor, config: QsgdConfig, seed: int) -> None:
    quantised = quantise(vector, config, generator(seed))
    payload = to_bytes(quantised, config)
    assert payload == packed_by_hand(quantised, config)
    received = from_bytes(payload, len(vector), config)
    assert torch.equal(received.norms, quantised.norms)
    assert torch.equal(received.codes, quantised.codes)
    assert torch.equal(dequantise(received, config), dequantise(quantised, config))


@settings(deadline=None)
@given(vectors, configs, st.integers(0, 99))
def test_elias_codes_stand_for_the_same_levels(vector: Tensor, config: QsgdConfig, seed: int) -> None:
    packed, coded = quantise(vector, config, generator(seed)), replace(config, coding="elias")
    payload = to_bytes(packed, coded)
    assert payload == packed.norms.numpy().tobytes() + elias.encode(packed.codes.numpy(), config.levels)
    received = from_bytes(payload, len(vector), coded)
    assert torch.equal(received.norms, packed.norms)
    assert torch.equal(received.codes, packed.codes)


def test_long_vectors_are_packed_in_pieces() -> None:
    config = QsgdConfig(5, "max", 1000)
    vector = normal((1 << 21) + 13)
    quantised = quantise(vector, config, generator())
    codes = from_bytes(to_bytes(quantised, config), len(vector), config).codes
    assert torch.equal(codes, quantised.codes)


@pytest.mark.parametrize("config", [QsgdConfig(4, "l2", 32), QsgdConfig(1, "max", 10), QsgdConfig(127, "l2", 50)])
def test_mean_and_variance_are_those_of_the_paper(config: QsgdConfig) -> None:
    """Per value, Q is a Bernoulli step of width norm / s: its mean and variance are known exactly."""
    vector, draws = normal(2 * config.bucket), 20_000
    step = bucket_norms(vector, config) / config.levels
    probability = (vector.abs() / step) % 1
    variance = step**2 * probability * (1 - probability)
    sent = dequantise(quantise(vector.repeat(draws), config, generator(1)), config).double().view(draws, -1)
    # Five standard errors over 100 values: a false alarm in 17,000 seeds, and the seed is fixed.
    error = (sent.mean(dim=0) - vector).abs()
    assert (error <= 5 * (variance / draws).sqrt() + 2.0**-23 * step * config.levels).all()
    total = (sent - vector).square().sum(dim=1)
    assert abs(float(total.mean() - variance.sum())) <= 5 * float(total.std()) / math.sqrt(draws)


@pytest.mark.parametrize(("levels", "size"), [(1, 16), (1, 400), (4, 16), (4, 400), (30, 400)])
@pytest.mark.parametrize("kind", ["normal", "constant", "sparse"])
def test_variance_is_within_the_bound(levels: int, size: int, kind: str) -> None:
    vector = {"normal": normal(size), "constant": torch.ones(size), "sparse": normal(size) ** 9}[kind].double()
    config = QsgdConfig(levels, "l2", size)
    norm = float(torch.linalg.vector_norm(vector))
    draws = generator(2)
    errors = [
        float((dequantise(quantise(vector, config, draws), config).double() - vector).square().sum())
        for _ in range(400)
    ]
    bound = min(size / levels**2, math.sqrt(size) / levels) * norm**2
    assert np.mean(errors) <= bound + 5 * np.std(errors) / 20


def test_an_exact_vector_is_sent_exactly() -> None:
    vector = torch.tensor([4.0, -2.0, 0.0, 1.0, -4.0])
    config = QsgdConfig(4, "max", 5)
    assert torch.equal(dequantise(quantise(vector, config, generator()), config), vector)


def test_no_value_exceeds_the_norm_that_is_sent() -> None:
    vector = torch.full((1000,), 1 + 2.0**-26, dtype=torch.float64)  # float32 would round it down to 1
    quantised = quantise(vector, QsgdConfig(LARGEST_LEVELS, "max", 1), generator())
    assert (quantised.codes <= LARGEST_LEVELS).all()
    assert (quantised.norms == 1 + 2.0**-23).all()


@pytest.mark.parametrize("norm", ["l2", "max"])
def test_the_zero_vector_stays_zero(norm: str) -> None:
    config = QsgdConfig(3, norm, 4)  # type: ignore[arg-type]
    quantised = quantise(torch.zeros(7), config, generator())
    assert torch.equal(dequantise(quantised, config), torch.zeros(7))
    assert to_bytes(quantised, config)[:8] == bytes(8)


def test_an_empty_vector_is_no_bytes() -> None:
    config = QsgdConfig(3)
    assert to_bytes(quantise(torch.zeros(0), config, generator()), config) == b""
    assert len(dequantise(from_bytes(b"", 0, config), config)) == 0


def test_rounding_comes_from_the_generator_alone() -> None:
    vector, config = normal(100), QsgdConfig(2)
    state = torch.get_rng_state()
    one, same, other = (quantise(vector, config, generator(seed)).codes for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("levels", "bits"), [(1, 2), (2, 3), (3, 3), (4, 4), (7, 4), (8, 5), (127, 8), (128, 9), (2**20, 22)]
)
def test_bits_of_a_code(levels: int, bits: int) -> None:
    config = QsgdConfig(levels, "l2", 1000)
    payload = to_bytes(quantise(normal(1001), config, generator()), config)
    assert code_bits(levels) == bits
    assert len(payload) == 8 + math.ceil(1001 * bits / 8)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(TrainingError, match="not finite"):
        quantise(torch.tensor([1.0, bad]), QsgdConfig(3), generator())


def test_a_norm_beyond_float32_is_refused() -> None:
    with pytest.raises(TrainingError, match="beyond the range"):
        quantise(torch.full((2,), 3e38), QsgdConfig(3), generator())


def test_malformed_bytes_are_refused() -> None:
    config = QsgdConfig(2, "l2", 4)  # codes of 3 bits, 5 of them: 15 bits in 2 bytes behind 2 norms
    payload = to_bytes(quantise(torch.tensor([1.0, -1.0, 0.5, 0.1, 2.0]), config, generator()), config)
    for wrong in (payload[:-1], payload + b"\0", b""):
        with pytest.raises(MalformedMessage, match="bytes, but 5 values"):
            from_bytes(wrong, 5, config)
    with pytest.raises(MalformedMessage, match="bytes, but 6 values"):
        from_bytes(payload, 6, config)
    with pytest.raises(MalformedMessage, match="after the last code"):
        from_bytes(payload[:-1] + bytes([payload[-1] | 1]), 5, config)
    with pytest.raises(MalformedMessage, match="code 7 is beyond the largest, 4"):
        from_bytes(payload[:8] + b"\xff\xfe", 5, config)
    for norm in (math.nan, math.inf, -1.0, -0.0):
        with pytest.raises(MalformedMessage, match="norm"):
            from_bytes(np.float32(norm).tobytes() + payload[4:], 5, config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "levels"),
        ((LARGEST_LEVELS + 1,), "levels"),
        ((3, "l1"), "norm"),
        ((3, "l2", 0), "bucket"),
        ((3, "l2", 9, "huffman"), "coding"),
    ],
)
def test_impossible_configurations_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        QsgdConfig(*arguments)  # type: ignore[arg-type]


def test_a_code_in_a_bucket_of_norm_zero_is_refused() -> None:
    config = QsgdConfig(levels=3, norm="max", bucket=4)
    quantised = quantise(torch.zeros(8), config, torch.Generator().manual_seed(0))
    payload = to_bytes(Quantised(quantised.norms, torch.tensor([0, 0, 0, 0, 0, 1, 0, 0], dtype=torch.int32)), config)
    with pytest.raises(MalformedMessage, match="norm zero"):
        from_bytes(payload, 8, config)
