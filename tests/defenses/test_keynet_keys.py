"""Channel keys: their distribution, what they must respect, and their bytes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from defenses.keynet.keys import ChannelKey, ChannelKeys, KeyPolicy, draw_keys, fit_fault, identity_keys
from federation.channels import ChannelMap, trace_channels
from federation.errors import MalformedMessage, UsageError
from federation.messages import raw_tensors_from_bytes, tensors_to_bytes
from federation.secret_root import SecretRoot

ROOT = SecretRoot(b"keys are drawn from this secret." * 2)


def grouped_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 18, 3, groups=6), nn.ReLU(), nn.Conv2d(18, 40, 1), nn.ReLU(),
        nn.Conv2d(40, 40, 3, groups=40), nn.Flatten(), nn.Linear(160, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def channel_map() -> ChannelMap:
    return trace_channels(grouped_network(), (3, 8, 8))


def equal(one: ChannelKeys, other: ChannelKeys) -> bool:
    return all(
        np.array_equal(a.permutation, b.permutation) and np.array_equal(a.gains, b.gains)
        for a, b in zip(one.keys, other.keys, strict=True)
    )


@settings(deadline=None)
@given(seed=st.binary(min_size=32, max_size=32), gain_range=st.floats(1, 100))
def test_drawn_keys_fit_their_map_and_their_policy(channel_map: ChannelMap, seed: bytes, gain_range: float) -> None:
    keys = draw_keys(channel_map, SecretRoot(seed), KeyPolicy(gain_range))
    assert fit_fault(keys, channel_map) is None
    image, *hidden, output = keys.keys
    assert equal(ChannelKeys((image,)), ChannelKeys((ChannelKey(np.arange(3), np.ones(3)),)))
    assert np.array_equal(output.gains, np.ones(10))
    for key in hidden:
        assert np.all((key.gains >= 1 / gain_range * (1 - 1e-12)) & (key.gains <= gain_range * (1 + 1e-12)))


def test_keys_follow_from_the_root_and_nothing_else(channel_map: ChannelMap) -> None:
    policy = KeyPolicy(2.0)
    assert equal(draw_keys(channel_map, ROOT, policy), draw_keys(channel_map, ROOT, policy))
    assert not equal(draw_keys(channel_map, ROOT, policy), draw_keys(channel_map, ROOT.derive("round", 1), policy))


def test_gains_are_log_uniform() -> None:
    channel_map = trace_channels(nn.Sequential(nn.Flatten(), nn.Linear(1, 20_000), nn.Linear(20_000, 1)), (1, 1, 1))
    gains = draw_keys(channel_map, ROOT, KeyPolicy(5.0)).keys[1].gains
    assert stats.kstest(np.log(gains), "uniform", args=(-math.log(5), 2 * math.log(5))).pvalue > 1e-3


def test_spaces_have_keys_of_their_own(channel_map: ChannelMap) -> None:
    keys = draw_keys(channel_map, ROOT, KeyPolicy(3.0)).keys
    sizes = [space.size for space in channel_map.spaces]
    assert sizes == [3, 12, 18, 40, 40, 10]
    # A depthwise pair shares the order of its channels, and nothing else.
    assert np.array_equal(keys[3].permutation, keys[4].permutation)
    assert not np.allclose(keys[3].gains, keys[4].gains)
    # A grouped pair shares the order of its six groups; inside them the channels move as well.
    assert np.array_equal(keys[1].permutation[::2] // 2, keys[2].permutation[::3] // 3)
    assert not np.array_equal(keys[1].permutation[::2] // 2, np.arange(6))
    assert not np.array_equal(keys[2].permutation % 3, np.tile(np.arange(3), 6))


@pytest.mark.parametrize(
    ("outputs", "permuted", "scaled"),
    [("identity", False, False), ("permutation", True, False), ("monomial", True, True)],
)
def test_key_of_the_outputs(channel_map: ChannelMap, outputs: str, permuted: bool, scaled: bool) -> None:
    key = draw_keys(channel_map, ROOT, KeyPolicy(2.0, outputs)).keys[-1]  # type: ignore[arg-type]
    assert (not np.array_equal(key.permutation, np.arange(10))) == permuted
    assert (key.condition_number > 1) == scaled


def test_groups_on_a_plain_space_stay_in_order() -> None:
    network = nn.Sequential(nn.Conv2d(8, 24, 3, groups=8), nn.ReLU(), nn.Flatten(), nn.Linear(24, 4))
    channel_map = trace_channels(network, (8, 3, 3))
    keys = draw_keys(channel_map, ROOT, KeyPolicy(2.0)).keys
    assert np.array_equal(keys[0].permutation, np.arange(8))
    assert np.array_equal(keys[1].permutation // 3, np.repeat(np.arange(8), 3))
    assert not np.array_equal(keys[1].permutation, np.arange(24))


def test_identity_keys_change_nothing(channel_map: ChannelMap) -> None:
    keys = identity_keys(channel_map)
    assert fit_fault(keys, channel_map) is None
    assert keys.condition_numbers == (1.0,) * 6


def test_condition_number_is_that_of_the_matrix(channel_map: ChannelMap) -> None:
    keys = draw_keys(channel_map, ROOT, KeyPolicy(7.0))
    matrices = [np.diag(key.gains) @ np.eye(key.size)[key.permutation] for key in keys.keys]
    assert keys.condition_numbers == pytest.approx([np.linalg.cond(matrix) for matrix in matrices])


def test_bytes_read_back_bit_for_bit(channel_map: ChannelMap) -> None:
    keys = draw_keys(channel_map, ROOT, KeyPolicy(7.0))
    assert equal(ChannelKeys.from_bytes(keys.to_bytes(), channel_map), keys)


def test_keys_do_not_show_in_text(channel_map: ChannelMap) -> None:
    key = draw_keys(channel_map, ROOT, KeyPolicy(7.0)).keys[1]
    assert repr(key) == "ChannelKey(<secret>, size=12)"
    assert str(float(key.gains[0]))[:5] not in repr(ChannelKeys((key,)))


def swap(tensors: dict[str, torch.Tensor], name: str, order: list[int]) -> None:
    tensors[name] = tensors[name][order]


DAMAGE: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "missing": (lambda t: t.pop("0.gains"), "missing or unknown"),
    "unknown": (lambda t: t.update(extra=torch.ones(1)), "missing or unknown"),
    "repeated channel": (lambda t: t["5.permutation"].__setitem__(0, t["5.permutation"][1]), "every channel"),
    "channel out of range": (lambda t: t["5.permutation"].add_(1), "every channel"),
    "zero gain": (lambda t: t["1.gains"].__setitem__(0, 0.0), "space 1: its gains"),
    "negative gain": (lambda t: t["1.gains"].neg_(), "space 1: its gains"),
    "infinite gain": (lambda t: t["1.gains"].__setitem__(3, math.inf), "space 1: its gains"),
    "missing gain": (lambda t: t["1.gains"].__setitem__(3, math.nan), "space 1: its gains"),
    "dtype": (lambda t: t.update({"1.gains": t["1.gains"].float()}), "float64 gains are due"),
    "lengths": (lambda t: t.update({"1.gains": t["1.gains"][:-1]}), "not one length"),
    "rank": (lambda t: t.update({"0.gains": t["0.gains"][None], "0.permutation": t["0.permutation"][None]}), "one len"),
    "empty": (lambda t: t.update({"0.gains": t["0.gains"][:0], "0.permutation": t["0.permutation"][:0]}), "one length"),
    "size": (
        lambda t: t.update({"5.permutation": torch.arange(9), "5.gains": torch.ones(9).double()}),
        "space 5 has 10 channels, its key 9",
    ),
    "torn groups": (lambda t: swap(t, "1.permutation", [1, 2, 0, *range(3, 12)]), "tears the groups"),
    "order of groups": (lambda t: swap(t, "1.permutation", [*range(2, 12), 0, 1]), "another order"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_keys_are_refused(channel_map: ChannelMap, case: str) -> None:
    damage, message = DAMAGE[case]
    tensors = raw_tensors_from_bytes(draw_keys(channel_map, ROOT, KeyPolicy(2.0)).to_bytes(), "keys")
    damage(tensors)
    with pytest.raises(MalformedMessage, match=message):
        ChannelKeys.from_bytes(tensors_to_bytes(tensors), channel_map)


@settings(deadline=None)
@given(cut=st.integers(0, 400), noise=st.binary(max_size=20))
def test_other_bytes_are_refused(channel_map: ChannelMap, cut: int, noise: bytes) -> None:
    payload = identity_keys(channel_map).to_bytes()
    with pytest.raises(MalformedMessage):
        ChannelKeys.from_bytes(payload[:cut] + noise, channel_map)


def test_other_numbers_of_keys_do_not_fit(channel_map: ChannelMap) -> None:
    assert fit_fault(ChannelKeys(identity_keys(channel_map).keys[:-1]), channel_map) == "5 keys for 6 channel spaces"


@pytest.mark.parametrize("gain_range", [0.5, 0.0, -1.0, math.nan, math.inf])
def test_impossible_ranges_are_refused(gain_range: float) -> None:
    with pytest.raises(UsageError, match="gain range"):
        KeyPolicy(gain_range)


def test_impossible_keys_and_outputs_are_refused() -> None:
    with pytest.raises(UsageError, match="outputs"):
        KeyPolicy(2.0, "plain")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not a channel key"):
        ChannelKey(np.array([0, 0]), np.ones(2))
