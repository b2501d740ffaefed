"""The server and one client: every update under every defense; of sums alone, what the client's share leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from attacks.adaptive.collusion import Collusion
from attacks.base import Budget, Reconstruction, missing_need
from attacks.cosine_update import CosineUpdate
from defenses.registry import build_defense
from federation.threat import AGGREGATE, Observation, PlainModel, Position, Victim
from federation.weights import largest_difference

BUDGET = Budget(evaluations=60)
COUNTS = (1, 3, 2)
COLLUDER = "client-1"

DEFENSES = {
    **{name: name for name in ("plain", "paillier", "keynet", "keynet-quantized", "keynet-toeplitz", "qsgd")},
    "a key for each client": build_defense("keynet", [{"keynet": {"per_client": True}}]),
    "fresh keys every round": build_defense("keynet", [{"keynet": {"rotation": 1}}]),
}


def together(played: Any) -> Observation:
    observation: Observation = played.observed(Position.COLLUSION, own=(COLLUDER,))
    return observation


def found_in(observation: Observation, victim: Victim, attack: Any = None) -> Reconstruction:
    attack, generator = attack or Collusion(), torch.Generator().manual_seed(3)
    found: Reconstruction = attack.reconstruct([observation], [victim], generator=generator, budget=BUDGET)[0]
    return found


@pytest.mark.parametrize("defense", DEFENSES.values(), ids=list(DEFENSES))
def test_one_clients_key_opens_every_update(play: Callable[..., Any], victim: Victim, defense: Any) -> None:
    played = play(defense, counts=COUNTS)
    seen = together(played)
    assert missing_need(Collusion(), seen) is None
    found = found_in(seen, victim)
    assert found.recovered_weights is not None
    wrong = largest_difference(found.recovered_weights, played.trained[victim.sender])
    step = largest_difference(played.trained[victim.sender], played.before)
    assert wrong < (0.1 * step if defense in ("qsgd", "keynet-quantized") else 2e-6)
    assert found.findings["other parties"] == found.findings["other parties read"] == len(COUNTS) - 1


@pytest.mark.parametrize("form", ["two-party", "six-party"])
def test_prides_cloud_needs_no_client_and_reads_no_less_with_one(
    play: Callable[..., Any], pride: Callable[..., Any], victim: Victim, form: str
) -> None:
    """Its cloud holds the private key; what is read are floats at the protocol's own precision."""
    played = play(pride(form=form))
    seen = together(played)
    assert missing_need(Collusion(), seen) is None
    found = found_in(seen, victim)
    assert found.recovered_weights is not None
    assert largest_difference(found.recovered_weights, played.trained[victim.sender]) < 2e-6


def test_what_the_key_opened_is_inverted_with_local_steps_simulated(play: Callable[..., Any], victim: Victim) -> None:
    played = play("plain", counts=COUNTS)
    expected = found_in(played.in_clear(), victim, CosineUpdate())
    assert torch.equal(found_in(together(played), victim).images, expected.images)


@pytest.mark.parametrize("counts", [(1, 3), COUNTS], ids=str)
def test_of_a_sum_the_clients_share_is_taken_out(
    play: Callable[..., Any], victim: Victim, counts: tuple[int, ...]
) -> None:
    """As where masks hide the single uploads: no defense here does, so that the view is made by hand."""
    played = play("paillier", counts=counts)
    seen = together(played)
    assert isinstance(seen.view, PlainModel)
    released = played.observed(Position.CLIENT).view.after[AGGREGATE]
    found = found_in(replace(seen, view=replace(seen.view, after={AGGREGATE: released})), victim)
    others = len(counts) - 1
    assert found.findings["other parties"] == others
    assert found.findings["other parties read"] == 0
    if others == 1:
        assert found.recovered_weights is not None
        assert largest_difference(found.recovered_weights, played.trained[victim.sender]) < 2e-6
    else:
        assert found.recovered_weights is None
        assert found.findings["parties in the mean"] == others


@pytest.mark.parametrize("position", [Position.CLIENT, Position.SERVER, Position.EAVESDROPPER])
def test_it_takes_the_server_and_a_client(play: Callable[..., Any], position: Position) -> None:
    own = (COLLUDER,) if position is Position.CLIENT else ()
    missing = missing_need(Collusion(), play("plain").observed(position, own=own))
    assert missing is not None
    assert "own update" in missing or "the update of a client that the position holds" in missing
