"""Claimed keys undo what a real key did, on every kind of layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.adaptive.monomial import ClaimedKeys
from defenses.keynet.channel import ChannelTransform
from defenses.keynet.keys import ChannelKeys, KeyPolicy, draw_keys
from federation.secret_root import SecretRoot
from federation.weights import largest_difference, weights_of

NETWORKS = ["lenet5", "residual-norm", "depthwise", "concatenated"]


def claimed(keys: ChannelKeys, *, order: bool) -> ClaimedKeys:
    found = enumerate(keys.monomial)
    parts = {index: (torch.from_numpy(key.gains), torch.from_numpy(key.permutation)) for index, key in found}
    return ClaimedKeys(
        {index: gains for index, (gains, _) in parts.items()},
        {index: places for index, (_, places) in parts.items()} if order else {},
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_true_keys_give_the_true_weights(tools: Any, name: str) -> None:
    network = tools.network(name)
    weights = weights_of(network.build())

    @settings(max_examples=10, deadline=None)
    @given(seed=st.integers(0, 255), gain_range=st.floats(1, 50))
    def holds(seed: int, gain_range: float) -> None:
        keys = draw_keys(network.channels, SecretRoot(bytes([seed]) * 32), KeyPolicy(gain_range, "monomial"))
        keyed = ChannelTransform(keys, network.channels).protect(weights)
        undone = claimed(keys, order=True).undo(keyed, network.channels)
        assert largest_difference(undone, weights) < 1e-6
        assert {name: tensor.dtype for name, tensor in undone.items()} == {
            name: tensor.dtype for name, tensor in weights.items()
        }

    holds()


@pytest.mark.parametrize("name", NETWORKS)
def test_without_the_order_the_network_computes_the_same(tools: Any, digits: Any, name: str) -> None:
    network = tools.network(name)
    model = network.build().eval()
    keys = draw_keys(network.channels, SecretRoot(b"7" * 32), KeyPolicy(2.0, "permutation"))
    keyed = ChannelTransform(keys, network.channels).protect(weights_of(model))
    expected = model(digits.normalised[:8])
    model.load_state_dict(claimed(keys, order=False).undo(keyed, network.channels))
    order = torch.from_numpy(keys.monomial[-1].permutation)
    torch.testing.assert_close(model(digits.normalised[:8]), expected[:, order], atol=1e-5, rtol=1e-4)


def test_claims_are_named_by_space() -> None:
    keys = ClaimedKeys({3: torch.ones(2, dtype=torch.float64)}, {3: torch.arange(2)})
    assert set(keys.tensors()) == {"gains.3", "places.3"}
