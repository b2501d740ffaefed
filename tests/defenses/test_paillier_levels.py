"""QSGD's levels as packed integers: unbiased, within a level, and exact when summed under encryption."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from defenses.paillier import arithmetic
from defenses.paillier.codec import PackedFixedPoint
from defenses.paillier.keys import generate_keypair
from defenses.paillier.levels import PackedLevels
from federation.errors import TrainingError, UsageError

KEY = generate_keypair(512, random.Random(3).randbytes, allow_small=True)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None)
@given(
    st.integers(1, 2**24),
    st.lists(st.floats(-1, 1), min_size=1, max_size=50),
    st.integers(-100, 100),
    st.integers(0, 99),
)
def test_values_go_to_one_of_the_levels_about_them(
    levels: int, relative: list[float], exponent: int, seed: int
) -> None:
    values = np.ldexp(np.array(relative), exponent)
    packing = PackedLevels(2048, 3, levels)
    integers = packing.quantise(values, exponent, generator(seed))
    assert np.abs(integers).max() <= levels
    assert np.abs(integers - np.array(relative) * levels).max() <= 1
    spacing = 2.0**exponent / levels
    back = packing.dequantise(integers, exponent)
    assert np.abs(back - values).max() <= spacing * (1 + 1e-9)
    np.testing.assert_allclose(back, integers * spacing, rtol=1e-12)


@pytest.mark.parametrize("levels", [1, 4, 15, 127])
def test_rounding_is_unbiased_with_the_variance_of_a_coin(levels: int) -> None:
    """The mean of n roundings is within 5 standard errors; of a value a share f above a level the variance is f (1 - f)."""
    values, draws = np.linspace(-1.9, 1.9, 41), 20_000
    packing, source = PackedLevels(2048, 2, levels), generator()
    integers = packing.quantise(np.tile(values, draws), 1, source).reshape(draws, -1)
    scaled = values / 2 * levels
    above = scaled - np.floor(scaled)
    error = np.sqrt(above * (1 - above) / draws)
    assert (np.abs(integers.mean(axis=0) - scaled) <= 5 * error + 1e-12).all()
    np.testing.assert_allclose(integers.var(axis=0), above * (1 - above), atol=0.02)


def test_levels_themselves_stay_as_they_are() -> None:
    integers = np.arange(-15, 16)
    packing = PackedLevels(2048, 4, 15)
    values = packing.dequantise(integers, -3)
    np.testing.assert_array_equal(packing.quantise(values, -3, generator()), integers)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 10), st.sampled_from([1, 2, 15, 127, 1000]), st.integers(0, 99))
def test_encrypted_sums_are_those_of_numpy_and_phe_reads_them(clients: int, levels: int, seed: int) -> None:
    """Integers of any size up to the largest, all of one sign among them, come back as their sum, to the last one."""
    draws = np.random.default_rng(seed)
    integers = draws.integers(-levels, levels + 1, (clients, 60))
    integers[:, 0], integers[:, 1] = levels, -levels
    packing, public = PackedLevels(512, clients, levels), KEY.public_key
    encryptor = arithmetic.PublicEncryptor(public)
    total = arithmetic.add(public, [encryptor.encrypt(packing.pack(row)) for row in integers])
    plaintexts = [KEY.raw_decrypt(int(number)) for number in total]
    by_phe = [plaintext if plaintext <= public.n // 2 else plaintext - public.n for plaintext in plaintexts]
    decrypted = arithmetic.Decryptor(KEY).decrypt(total)
    assert by_phe == decrypted
    np.testing.assert_array_equal(packing.unpack(decrypted, 60), integers.sum(axis=0))


@pytest.mark.parametrize(
    ("levels", "clients", "bits", "values"), [(127, 5, 11, 186), (15, 5, 8, 255), (4, 5, 6, 341), (1, 5, 4, 511)]
)
def test_slots_are_as_wide_as_levels_and_cohort_need(levels: int, clients: int, bits: int, values: int) -> None:
    """A sum within +-K s takes ceil(log2(K s + 1)) bits and a sign."""
    packing = PackedLevels(2048, clients, levels)
    assert packing.slot_bits == bits == int(np.ceil(np.log2(clients * levels + 1))) + 1
    assert packing.values_per_ciphertext == values == 2047 // bits
    assert packing.bytes_per_value < PackedFixedPoint(2048, clients).bytes_per_value / 2


def test_values_beyond_their_bound_and_impossible_levels_are_refused() -> None:
    with pytest.raises(TrainingError, match="outside its agreed bound"):
        PackedLevels(2048, 2, 15).quantise(np.array([1.1]), 0, generator())
    with pytest.raises(TrainingError, match="only finite"):
        PackedLevels(2048, 2, 15).quantise(np.array([np.nan]), 0, generator())
    for arguments in ((2048, 2, 0), (2048, 0, 15), (2048, 2**20, 2**40)):
        with pytest.raises(UsageError, match="packing for"):
            PackedLevels(*arguments)
