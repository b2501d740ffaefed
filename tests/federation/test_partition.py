"""Divisions of the training images among clients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from federation.errors import UsageError
from federation.partition import partition

labels_and_clients = st.lists(st.integers(0, 5), min_size=1, max_size=120).flatmap(
    lambda labels: st.tuples(st.just(torch.tensor(labels)), st.integers(1, len(labels)))
)
seeds = st.integers(0, 2**32 - 1)


def check_cover(shares: list[torch.Tensor], count: int) -> None:
    assert all(share.dtype == torch.int64 and len(share) > 0 for share in shares)
    assert all(torch.equal(share, share.sort().values) for share in shares)
    assert sorted(torch.cat(shares).tolist()) == list(range(count))


@given(labels_and_clients, seeds)
def test_iid_shares_cover_all_and_are_even(drawn, seed):
    labels, clients = drawn
    shares = partition("iid", labels, clients, generator=np.random.default_rng(seed))
    check_cover(shares, len(labels))
    sizes = [len(share) for share in shares]
    assert len(sizes) == clients
    assert max(sizes) - min(sizes) <= 1


@given(labels_and_clients, seeds)
def test_disjoint_classes_have_one_owner_each(drawn, seed):
    labels, clients = drawn
    classes = len(labels.unique())
    generator = np.random.default_rng(seed)
    if clients > classes:
        with pytest.raises(UsageError, match=f"take at most {classes}"):
            partition("disjoint-classes", labels, clients, generator=generator)
        return
    shares = partition("disjoint-classes", labels, clients, generator=generator)
    check_cover(shares, len(labels))
    held = [set(labels[share].tolist()) for share in shares]
    assert sum(len(classes_of) for classes_of in held) == classes
    counts = [len(classes_of) for classes_of in held]
    assert max(counts) - min(counts) <= 1


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(0, 20), seeds)
def test_given_sizes_are_kept(sizes, spare, seed):
    labels = torch.arange(sum(sizes) + spare) % 10
    shares = partition("sizes", labels, len(sizes), generator=np.random.default_rng(seed), sizes=sizes)
    assert [len(share) for share in shares] == sizes
    dealt = torch.cat(shares)
    assert len(dealt.unique()) == sum(sizes)
    assert int(dealt.max()) < len(labels)


@given(labels_and_clients, seeds, st.sampled_from([1e-300, 1e-3, 0.1, 1.0, 100.0, 1e6]))
def test_dirichlet_shares_cover_all_and_leave_no_client_empty(drawn, seed, alpha):
    labels, clients = drawn
    shares = partition("dirichlet", labels, clients, generator=np.random.default_rng(seed), alpha=alpha)
    assert len(shares) == clients
    check_cover(shares, len(labels))


def test_dirichlet_proportions_follow_the_distribution():
    # A client's share of one class is Beta(alpha, (K - 1) alpha) distributed.
    alpha, clients, members = 0.5, 4, 1000
    labels = torch.arange(300).repeat_interleave(members)
    shares = partition("dirichlet", labels, clients, generator=np.random.default_rng(0), alpha=alpha)
    proportions = torch.bincount(labels[shares[1]], minlength=300).numpy() / members
    assert stats.kstest(proportions, stats.beta(alpha, (clients - 1) * alpha).cdf).pvalue > 0.01


def test_a_small_alpha_is_more_skewed_than_a_large_one():
    labels = torch.arange(1000) % 10

    def largest_class_share(alpha: float) -> float:
        shares = partition("dirichlet", labels, 5, generator=np.random.default_rng(3), alpha=alpha)
        return float(np.mean([float(torch.bincount(labels[share]).max()) / len(share) for share in shares]))

    assert largest_class_share(100.0) < 0.2 < 0.4 < largest_class_share(0.05)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("iid", {}), ("disjoint-classes", {}), ("sizes", {"sizes": [40, 10]}), ("dirichlet", {"alpha": 0.5})],
)
def test_the_generator_decides(kind, options):
    labels = torch.arange(60) % 6
    first, again, other = (
        partition(kind, labels, 2, generator=np.random.default_rng(seed), **options) for seed in (1, 1, 2)
    )
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert any(not torch.equal(one, two) for one, two in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("kind", "clients", "options", "reason"),
    [
        ("idd", 2, {}, "did you mean iid"),
        ("iid", 0, {}, "at least 1"),
        ("iid", 21, {}, "take fewer clients"),
        ("iid", 2, {"alpha": 1.0}, "unsuitable options.*alpha"),
        ("dirichlet", 2, {}, "unsuitable options.*alpha"),
        ("dirichlet", 2, {"alpha": 0.0}, "above 0"),
        ("dirichlet", 2, {"alpha": float("nan")}, "above 0"),
        ("disjoint-classes", 5, {}, "take at most 4"),
        ("sizes", 2, {"sizes": [1, 2, 3]}, "one size a client"),
        ("sizes", 2, {"sizes": [0, 5]}, "at least 1"),
        ("sizes", 2, {"sizes": [15, 6]}, "sum to 21 but there are 20"),
    ],
)
def test_impossible_divisions_are_one_clear_line(kind, clients, options, reason):
    labels = torch.arange(20) % 4
    with pytest.raises(UsageError, match=reason) as caught:
        partition(kind, labels, clients, generator=np.random.default_rng(0), **options)
    assert "\n" not in str(caught.value)
