"""A server that lets forged zeros stand for all parties but one, against the sound protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from attacks.adaptive.isolation import PaillierIsolation, isolated_sum, isolating_contribution
from attacks.base import Budget
from defenses.paillier.protocol import Paillier
from defenses.parties import keyring_from_bytes
from federation.errors import MalformedMessage
from federation.messages import raw_tensors_from_bytes, tensors_to_bytes
from federation.protocol import Phase
from federation.threat import Position, Victim


@pytest.fixture(scope="module")
def played(play: Callable[..., Any]) -> Any:
    return play("paillier")


@pytest.fixture(scope="module")
def fellow(played: Any) -> Any:
    """Another client of the federation, with the keys that the server lacks."""
    keyring = keyring_from_bytes(played.held("client-1"), [Paillier()], "a client's keys")
    return Paillier().client("client-1", keyring["paillier"], played.client.network)


def upload_of(played: Any, sender: str) -> bytes:
    payload: bytes = next(item.payload for item in played.transcript.phase(Phase.UPLOAD) if item.sender == sender)
    return payload


def modulus_of(played: Any) -> int:
    content = next(raw_tensors_from_bytes(item.payload, "keys") for item in played.transcript.phase(Phase.KEYS))
    return int.from_bytes(content["paillier.public"].numpy().tobytes(), "big")


def test_the_sum_is_one_partys_contribution_and_no_client_takes_it(played: Any, fellow: Any) -> None:
    upload, modulus = upload_of(played, "client-0"), modulus_of(played)
    forged = isolating_contribution(upload, modulus)
    total = isolated_sum(upload, forged, modulus)
    assert len({upload, forged, total}) == 3
    share = played.counts["client-0"] / sum(played.counts.values())
    zeros, opened = (fellow.decode_upload(payload, {}, share) for payload in (forged, total))
    for name, tensor in played.trained["client-0"].items():
        assert not zeros[name].any()
        torch.testing.assert_close(opened[name], tensor, atol=1e-6, rtol=0)
    with pytest.raises(MalformedMessage, match="missing or replaced: client-1"):
        fellow.decode(total)
    honest = isolated_sum(upload, upload_of(played, "client-1"), modulus)
    assert fellow.decode(honest).keys() == played.before.keys()


def test_forgeries_are_fresh_encryptions(played: Any) -> None:
    upload, modulus = upload_of(played, "client-0"), modulus_of(played)
    assert isolating_contribution(upload, modulus) != isolating_contribution(upload, modulus)


@pytest.mark.parametrize(
    ("tensors", "modulus"),
    [({}, 2**64), ({"paillier.ciphertexts": torch.zeros(17, dtype=torch.uint8)}, 2**63 + 1)],
    ids=["none", "half a ciphertext"],
)
def test_what_holds_no_ciphertexts_is_refused(tensors: dict[str, torch.Tensor], modulus: int) -> None:
    with pytest.raises(MalformedMessage, match="no packed Paillier ciphertexts"):
        isolating_contribution(tensors_to_bytes(tensors), modulus)


def test_the_server_gets_no_image_of_it(played: Any, victim: Victim) -> None:
    observation = played.observed(Position.SERVER)
    generator = torch.Generator().manual_seed(0)
    found = PaillierIsolation().reconstruct([observation], [victim], generator=generator, budget=Budget(10))[0]
    assert torch.equal(found.images, torch.full_like(found.images, 0.5))
    assert found.recovered_weights is None
    assert found.findings["isolated ciphertexts"] > 0
    assert "ciphertext without a client's key" in found.note


def test_it_says_where_there_is_nothing_to_isolate(play: Callable[..., Any], pride: Any, victim: Victim) -> None:
    observation = play(pride(randomised=False)).observed(Position.EAVESDROPPER)
    found = PaillierIsolation().recover(observation, victim)
    assert "no message with a public Paillier key" in found.note
    assert (found.after, found.findings) == (None, {})
