"""Channel keys: their distribution, what they must respect, and their bytes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from defenses.keynet.keys import ChannelKey, ChannelKeys, KeyPolicy, draw_keys, fit_fault, identity_keys
from defenses.keynet.mixing import LARGEST_CONDITION, LinearKey, MixingKey, OrthogonalKey, SoftKey
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
        for a, b in zip(one.monomial, other.monomial, strict=True)
    )


@settings(deadline=None)
@given(seed=st.binary(min_size=32, max_size=32), gain_range=st.floats(1, 100))
def test_drawn_keys_fit_their_map_and_their_policy(channel_map: ChannelMap, seed: bytes, gain_range: float) -> None:
    keys = draw_keys(channel_map, SecretRoot(seed), KeyPolicy(gain_range))
    assert fit_fault(keys, channel_map) is None
    image, *hidden, output = keys.monomial
    assert equal(ChannelKeys((image,)), ChannelKeys((ChannelKey(np.arange(3), np.ones(3)),)))
    assert np.array_equal(output.gains, np.ones(10))
    for key in hidden:
        assert np.all((key.gains >= 1 / gain_range * (1 - 1e-12)) & (key.gains <= gain_range * (1 + 1e-12)))


def test_keys_follow_from_the_root_and_nothing_else(channel_map: ChannelMap) -> None:
    policy = KeyPolicy(2.0)
    assert equal(draw_keys(channel_map, ROOT, policy), draw_keys(channel_map, ROOT, policy))
    assert not equal(draw_keys(channel_map, ROOT, policy), draw_keys(channel_map, ROOT.derive("round", 1), policy))


def test_default_keys_are_those_of_the_accepted_figures(channel_map: ChannelMap) -> None:
    """Whatever is added, these draws stay in their order: accepted figures stand on them."""
    keys = draw_keys(channel_map, ROOT, KeyPolicy(2.0)).monomial
    permutations = hashlib.sha256(b"".join(key.permutation.tobytes() for key in keys)).hexdigest()
    assert permutations[:16] == "c2bb952532466253"
    # not their bytes: the last bit of an exponential is the processor's
    gains = [(float(key.gains[0]), float(key.gains[-1])) for key in keys[1:3]]
    assert gains == [
        pytest.approx(pair, rel=1e-12)
        for pair in ((0.8172877772825522, 1.9359031123856874), (0.6092964572849036, 0.7967819150669899))
    ]


def test_gains_are_log_uniform() -> None:
    channel_map = trace_channels(nn.Sequential(nn.Flatten(), nn.Linear(1, 20_000), nn.Linear(20_000, 1)), (1, 1, 1))
    gains = draw_keys(channel_map, ROOT, KeyPolicy(5.0)).monomial[1].gains
    assert stats.kstest(np.log(gains), "uniform", args=(-math.log(5), 2 * math.log(5))).pvalue > 1e-3


def test_spaces_have_keys_of_their_own(channel_map: ChannelMap) -> None:
    keys = draw_keys(channel_map, ROOT, KeyPolicy(3.0)).monomial
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
    key = draw_keys(channel_map, ROOT, KeyPolicy(2.0, outputs)).monomial[-1]  # type: ignore[arg-type]
    assert (not np.array_equal(key.permutation, np.arange(10))) == permuted
    assert (key.condition_number > 1) == scaled


def test_groups_on_a_plain_space_stay_in_order() -> None:
    network = nn.Sequential(nn.Conv2d(8, 24, 3, groups=8), nn.ReLU(), nn.Flatten(), nn.Linear(24, 4))
    channel_map = trace_channels(network, (8, 3, 3))
    keys = draw_keys(channel_map, ROOT, KeyPolicy(2.0)).monomial
    assert np.array_equal(keys[0].permutation, np.arange(8))
    assert np.array_equal(keys[1].permutation // 3, np.repeat(np.arange(8), 3))
    assert not np.array_equal(keys[1].permutation, np.arange(24))


def test_identity_keys_change_nothing(channel_map: ChannelMap) -> None:
    keys = identity_keys(channel_map)
    assert fit_fault(keys, channel_map) is None
    assert keys.condition_numbers == (1.0,) * 6


def test_condition_number_is_that_of_the_matrix(channel_map: ChannelMap) -> None:
    keys = draw_keys(channel_map, ROOT, KeyPolicy(7.0))
    matrices = [np.diag(key.gains) @ np.eye(key.size)[key.permutation] for key in keys.monomial]
    assert keys.condition_numbers == pytest.approx([np.linalg.cond(matrix) for matrix in matrices])


def test_bytes_read_back_bit_for_bit(channel_map: ChannelMap) -> None:
    keys = draw_keys(channel_map, ROOT, KeyPolicy(7.0))
    assert equal(ChannelKeys.from_bytes(keys.to_bytes(), channel_map), keys)


def test_keys_do_not_show_in_text(channel_map: ChannelMap) -> None:
    key = draw_keys(channel_map, ROOT, KeyPolicy(7.0)).monomial[1]
    assert repr(key) == "ChannelKey(<secret>, size=12)"
    assert str(float(key.gains[0]))[:5] not in repr(ChannelKeys((key,)))


def swap(tensors: dict[str, torch.Tensor], name: str, order: list[int]) -> None:
    tensors[name] = tensors[name][order]


DAMAGE: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "missing": (lambda t: t.pop("0.gains"), "missing or unknown"),
    "unknown": (lambda t: t.update(extra=torch.ones(1)), "missing or unknown"),
    "repeated channel": (lambda t: t["5.permutation"].__setitem__(0, t["5.permutation"][1]), "every channel"),
    "channel out of range": (lambda t: t["5.permutation"].add_(1), "every channel"),
    "zero gain": (lambda t: t["1.gains"].__setitem__(0, 0.0), "space 1: not a channel key: its gains"),
    "negative gain": (lambda t: t["1.gains"].neg_(), "space 1: not a channel key: its gains"),
    "infinite gain": (lambda t: t["1.gains"].__setitem__(3, math.inf), "space 1: not a channel key: its gains"),
    "missing gain": (lambda t: t["1.gains"].__setitem__(3, math.nan), "space 1: not a channel key: its gains"),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "affine"}, "a kind of key is"),
        ({"kind": "soft", "alpha": 1}, "1 is kind 'monomial'"),
        ({"kind": "soft", "alpha": 65}, "between 2 and 64"),
        ({"kind": "soft", "dominance": 0.5}, "between 0.5 and 1"),
        ({"kind": "soft", "dominance": math.nan}, "between 0.5 and 1"),
        ({"kind": "soft", "gain_range": 8.1}, "a condition number of 262, at most 256 is allowed"),
    ],
)
def test_policies_of_bad_keys_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        KeyPolicy(**options)


def test_impossible_keys_and_outputs_are_refused() -> None:
    with pytest.raises(UsageError, match="outputs"):
        KeyPolicy(2.0, "plain")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not a channel key"):
        ChannelKey(np.array([0, 0]), np.ones(2))


# --- keys that mix channels --------------------------------------------------------------------------------------------

SOFT, ORTHOGONAL = KeyPolicy(2.0, kind="soft"), KeyPolicy(kind="orthogonal")


@pytest.mark.parametrize(("policy", "key_class"), [(SOFT, SoftKey), (ORTHOGONAL, OrthogonalKey)])
def test_free_hidden_spaces_are_mixed_and_no_others(
    channel_map: ChannelMap, policy: KeyPolicy, key_class: type[MixingKey]
) -> None:
    found = [type(key) for key in draw_keys(partly_free_map(), ROOT, policy).keys]
    assert found == [ChannelKey, key_class, ChannelKey, ChannelKey, key_class, ChannelKey]
    assert {type(key) for key in draw_keys(channel_map, ROOT, policy).keys} == {ChannelKey}
    assert {type(key) for key in draw_keys(hidden_space(1), ROOT, policy).keys} == {ChannelKey}


@settings(deadline=None)
@given(
    seed=st.binary(min_size=32, max_size=32),
    size=st.integers(2, 60),
    alpha=st.integers(2, 64),
    gain_range=st.floats(1, 4),
    dominance=st.floats(0.55, 0.95),
)
def test_soft_keys_stay_within_their_bounds(
    seed: bytes, size: int, alpha: int, gain_range: float, dominance: float
) -> None:
    policy = KeyPolicy(gain_range, kind="soft", alpha=alpha, dominance=dominance)
    key = draw_keys(hidden_space(size), SecretRoot(seed), policy).keys[1]
    assert isinstance(key, SoftKey)
    terms = [np.eye(size)[order] * weight for order, weight in zip(key.permutations, key.weights, strict=True)]
    assert key.matrix == pytest.approx(np.diag(key.gains) @ sum(terms))
    assert key.matrix @ key.inverse == pytest.approx(np.eye(size), abs=1e-9)
    assert len(key.weights) == alpha
    for norm in (1, np.inf):
        cond = float(np.linalg.cond(key.matrix, norm))
        assert cond <= policy.condition_bound * (1 + 1e-9) <= LARGEST_CONDITION * (1 + 1e-9)
        assert np.linalg.norm(key.matrix, norm) <= gain_range * (1 + 1e-9)
        assert np.linalg.norm(key.inverse, norm) <= policy.condition_bound / gain_range * (1 + 1e-9)


def partly_free_map() -> ChannelMap:
    """The image, a free space, two that a depthwise convolution ties together, another free one, the outputs."""
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 5, 1), nn.Flatten(),
        nn.Linear(80, 4),
    )  # fmt: skip
    return trace_channels(network, (3, 8, 8))


def hidden_space(size: int) -> ChannelMap:
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, size, bias=False), nn.Linear(size, 2, bias=False))
    return trace_channels(network, (1, 1, 1))


def test_a_soft_key_softens_the_monomial_key_of_its_root() -> None:
    channel_map = hidden_space(20)
    soft = draw_keys(channel_map, ROOT, SOFT).keys[1]
    hard = draw_keys(channel_map, ROOT, KeyPolicy(2.0)).monomial[1]
    assert isinstance(soft, SoftKey)
    assert np.array_equal(soft.permutations[0], hard.permutation)
    assert np.array_equal(soft.gains, hard.gains)
    assert soft.weights.argmax() == 0


def test_orthogonal_keys_are_uniform_over_the_group() -> None:
    """Haar: each entry of a 4 x 4 matrix is (2 B - 1), B ~ Beta(3/2, 3/2), and traces average 0, their squares 1."""
    channel_map = hidden_space(4)
    drawn = [draw_keys(channel_map, ROOT.derive(index), ORTHOGONAL).keys[1] for index in range(600)]
    matrices = np.stack([key.matrix for key in drawn if isinstance(key, OrthogonalKey)])
    assert len(matrices) == 600
    for row, column in ((0, 0), (1, 2), (3, 3)):
        entries = (matrices[:, row, column] + 1) / 2
        assert stats.kstest(entries, stats.beta(1.5, 1.5).cdf).pvalue > 1e-3
    traces = np.trace(matrices, axis1=1, axis2=2)
    assert abs(traces.mean()) < 5 / 600**0.5
    assert abs((traces**2).mean() - 1) < 5 * (2 / 600) ** 0.5
    assert abs((np.linalg.det(matrices) > 0).mean() - 0.5) < 0.1


def test_a_coordinate_in_a_random_direction_is_as_small_as_growth_assumes() -> None:
    key = draw_keys(hidden_space(400), ROOT, ORTHOGONAL).keys[1]
    assert abs(key.matrix).max() * 400**0.5 < 8
    assert abs(key.matrix @ np.ones(400)).max() < 8  # a vector of largest value 1 and the greatest length


@pytest.mark.parametrize("policy", [SOFT, ORTHOGONAL])
def test_mixing_keys_read_back_bit_for_bit(policy: KeyPolicy) -> None:
    channel_map = partly_free_map()
    keys = draw_keys(channel_map, ROOT, policy)
    again = ChannelKeys.from_bytes(keys.to_bytes(), channel_map, policy)
    assert again.to_bytes() == keys.to_bytes()
    assert keys.condition_numbers == pytest.approx([np.linalg.cond(key.matrix) for key in keys.keys])
    with pytest.raises(UsageError, match="monomial keys are needed"):
        _ = keys.monomial


@pytest.mark.parametrize("policy", [KeyPolicy(2.0), SOFT, ORTHOGONAL], ids=lambda policy: policy.kind)
def test_products_of_keys_are_products_of_matrices(policy: KeyPolicy) -> None:
    channel_map = partly_free_map()
    first, second = (draw_keys(channel_map, ROOT.derive(index), policy) for index in (1, 2))
    product = second.after(first)
    for found, one, other in zip(product.keys, second.keys, first.keys, strict=True):
        assert found.matrix == pytest.approx(one.matrix @ other.matrix)
        assert found.matrix @ found.inverse == pytest.approx(np.eye(found.size), abs=1e-9)
    assert fit_fault(product, channel_map) is None
    assert ChannelKeys.from_bytes(product.to_bytes(), channel_map, policy).to_bytes() == product.to_bytes()


@pytest.mark.parametrize("policy", [SOFT, ORTHOGONAL])
def test_keys_of_another_kind_are_refused(channel_map: ChannelMap, policy: KeyPolicy) -> None:
    for other in (KeyPolicy(2.0), SOFT, ORTHOGONAL):
        if other != policy:
            with pytest.raises(MalformedMessage, match="missing or unknown"):
                ChannelKeys.from_bytes(draw_keys(free_map(), ROOT, other).to_bytes(), free_map(), policy)


def free_map() -> ChannelMap:
    return hidden_space(6)


def keep_terms(tensors: dict[str, torch.Tensor], count: int) -> None:
    for part in ("1.weights", "1.permutations"):
        tensors[part] = tensors[part][:count].clone()


MIXING_DAMAGE: dict[str, tuple[KeyPolicy, Callable[[dict[str, torch.Tensor]], object], str]] = {
    "repeated channel": (SOFT, lambda t: t["1.permutations"][1].__setitem__(0, t["1.permutations"][1, 1]), "every perm"),
    "no dominant weight": (SOFT, lambda t: t["1.weights"].fill_(0.25), "one of them over a half"),
    "weights of another sum": (SOFT, lambda t: t["1.weights"].mul_(1.5), "sum 1"),
    "negative weight": (SOFT, lambda t: t["1.weights"].add_(torch.tensor([0.4, -0.4, 0, 0])), "not positive"),
    "weight that is no number": (SOFT, lambda t: t["1.weights"].__setitem__(1, math.nan), "not positive"),
    "gain that is no number": (SOFT, lambda t: t["1.gains"].__setitem__(1, math.nan), "its gains"),
    "zero gain": (SOFT, lambda t: t["1.gains"].__setitem__(1, 0.0), "its gains"),
    "ill-conditioned": (SOFT, lambda t: t["1.gains"].__setitem__(0, 1000.0), "at most 256 is allowed"),
    "nearly singular": (SOFT, lambda t: t["1.weights"].copy_(torch.tensor([0.501, 0.499, 0, 0])), "at most 256"),
    "another alpha": (SOFT, lambda t: t.update({"1.weights": t["1.weights"][:3].clone()}), "are not .alpha, n"),
    "one term": (SOFT, lambda t: keep_terms(t, 1), "alpha > 1"),
    "another dtype": (SOFT, lambda t: t.update({"1.weights": t["1.weights"].float()}), "float64 weights"),
    "another size": (SOFT, lambda t: t.update({"1.permutations": t["1.permutations"][:, :-1].contiguous()}), "alpha, n"),
    "not orthogonal": (ORTHOGONAL, lambda t: t["1.orthogonal"].mul_(1.001), "off the identity"),
    "no number": (ORTHOGONAL, lambda t: t["1.orthogonal"].__setitem__((0, 0), math.nan), "not finite"),
    "infinite": (ORTHOGONAL, lambda t: t["1.orthogonal"].__setitem__((0, 0), math.inf), "not finite"),
    "not square": (ORTHOGONAL, lambda t: t.update({"1.orthogonal": t["1.orthogonal"][:-1].clone()}), "a square float64"),
    "single precision": (ORTHOGONAL, lambda t: t.update({"1.orthogonal": t["1.orthogonal"].float()}), "float64"),
    "other channels": (ORTHOGONAL, lambda t: t.update({"1.orthogonal": torch.eye(5).double()}), "6 channels, its key 5"),
}  # fmt: skip


@pytest.mark.parametrize("case", MIXING_DAMAGE)
def test_damaged_mixing_keys_are_refused(case: str) -> None:
    policy, damage, message = MIXING_DAMAGE[case]
    tensors = raw_tensors_from_bytes(draw_keys(free_map(), ROOT, policy).to_bytes(), "keys")
    damage(tensors)
    with pytest.raises(MalformedMessage, match=message):
        ChannelKeys.from_bytes(tensors_to_bytes(tensors), free_map(), policy)


def test_products_that_are_ill_conditioned_are_refused() -> None:
    LinearKey(np.diag([1.0, 256.0]))
    for matrix in (np.diag([1.0, 257.0]), np.ones((2, 2)), np.full((2, 2), np.nan), np.ones((2, 3)), np.zeros((0, 0))):
        with pytest.raises(UsageError, match="not a key"):
            LinearKey(matrix)


def test_mixing_keys_do_not_show_in_text() -> None:
    keys = [draw_keys(free_map(), ROOT, policy).keys[1] for policy in (SOFT, ORTHOGONAL)]
    assert [repr(key) for key in keys] == ["SoftKey(<secret>, size=6)", "OrthogonalKey(<secret>, size=6)"]
