"""What attacks that recover weights have in common: the inner attack, its options, claims, and guesses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

from attacks.adaptive.paillier_cloud import PaillierCloud
from attacks.adaptive.paillier_quotient import PaillierQuotient
from attacks.adaptive.recovery import Recovery, WeightRecovery
from attacks.base import ATTACKS, Attack, Budget, Need, build_attack
from attacks.cosine import Cosine
from attacks.dlg import DLG
from benchmark.experiment import AttackSpec
from federation.errors import UsageError
from federation.threat import Nothing, Observation, Position, Victim

BUDGET = Budget(evaluations=20)
RECOVERIES = [
    "difference",
    "paillier-cloud",
    "paillier-exponents",
    "paillier-isolation",
    "paillier-quotient",
    "paillier-selection",
]


def run(attack: Attack, history: list[Observation], victims: list[Victim]) -> Any:
    return attack.reconstruct(history, victims, generator=torch.Generator().manual_seed(3), budget=BUDGET)


@pytest.mark.parametrize("name", RECOVERIES)
def test_undefended_updates_are_the_inner_attacks(play: Callable[..., Any], victim: Victim, name: str) -> None:
    played = play("plain")
    observation = played.observed(Position.SERVER)
    found = run(build_attack(name), [observation], [victim])[0]
    inner = run(Cosine(), [observation], [victim])[0]
    assert torch.equal(found.images, inner.images)
    assert all(torch.equal(found.recovered_weights[key], value) for key, value in played.trained["client-0"].items())


def test_the_inner_attack_and_its_options_are_chosen_by_name(play: Callable[..., Any], victim: Victim) -> None:
    spec = AttackSpec(
        name="paillier-quotient",
        evaluations=20,
        restarts=1,
        options={"inner": "cosine", "inner_options": {"rate": 0.05}},
    )
    attack = spec.build()
    assert isinstance(attack, PaillierQuotient)
    assert attack.inverter == Cosine(rate=0.05)
    assert attack == PaillierQuotient(inner_options={"rate": 0.05})
    assert hash(attack) == hash(PaillierQuotient(inner_options=(("rate", 0.05),)))
    observation = play("plain").observed(Position.SERVER)
    found, inner = (run(each, [observation], [victim])[0] for each in (attack, Cosine(rate=0.05)))
    assert torch.equal(found.images, inner.images)
    assert PaillierCloud(inner="dlg", inner_options={"memory": 5}).inverter == DLG(memory=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner": "cosin"}, "no attack is called 'cosin'; did you mean cosine"),
        ({"inner": "file.py:Class"}, "must be the name of a registered attack"),
        ({"inner": "paillier-cloud"}, "'paillier-cloud', which recovers weights itself"),
        ({"inner_options": {"rte": 1.0}}, "attack 'cosine': no option 'rte'; there are: batch_norm, total_variation"),
        ({"inner_options": {"rate": "fast"}}, "attack 'cosine': option 'rate'"),
    ],
)
def test_an_inner_attack_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_attack("paillier-quotient", options)


def test_all_victims_are_inverted_together_and_each_stays_in_its_place(
    play: Callable[..., Any], pride: Callable[..., Any], victim: Victim
) -> None:
    leaking, tight = (play(pride(randomised=flag)).observed(Position.EAVESDROPPER) for flag in (False, True))
    history = [leaking, tight, leaking]
    victims = [
        Victim("a", 1, "client-0", 1),
        Victim("b", 2, "client-0", 1),
        Victim("c", 0, "nobody", 1),
        Victim("d", 0, "client-0", 1),
    ]
    guess, second, unknown, first = run(PaillierQuotient(), history, victims)
    assert guess.recovered_weights is None
    assert "re-randomised" in guess.note
    assert "no envelopes with a broadcast to nobody" in unknown.note
    for item in (first, second):
        assert item.findings == {"share of sent values recovered": 1.0}
        assert item.objective is not None


@dataclass(frozen=True)
class Halves(WeightRecovery):
    """Knows every second value of the true weights, which a test gives it by way of the view of another position."""

    name: ClassVar[str] = "halves"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.OWN_UPDATE})

    def recover_hidden(self, observation: Observation, victim: Victim) -> Recovery:
        weights = {name: tensor.clone() for name, tensor in observation.own_updates["client-0"].items()}
        for tensor in weights.values():
            tensor.view(-1)[::2] = torch.nan
        before = {name: tensor + 0 for name, tensor in observation.own_updates["before"].items()}
        return Recovery(before, weights, {"found": 0.5}, "every second value")


def test_what_is_not_recovered_counts_as_not_moved(play: Callable[..., Any], victim: Victim) -> None:
    played = play("plain")
    own = {"client-0": played.trained["client-0"], "before": played.before}
    hidden = replace(played.observed(Position.SERVER), view=Nothing("hidden"), own_updates=own)
    recovery = Halves().recover(hidden, victim)
    after = recovery.model_after()
    assert after is not None
    for name, tensor in after.items():
        assert torch.equal(tensor.view(-1)[::2], played.before[name].view(-1)[::2])
        assert torch.equal(tensor.view(-1)[1::2], played.trained["client-0"][name].view(-1)[1::2])
    found = run(Halves(), [hidden], [victim])[0]
    assert found.findings == {"found": 0.5}
    assert found.note == "every second value"
    assert bool(found.recovered_weights["1.weight"].view(-1)[::2].isnan().all())


def test_a_need_of_the_inner_attack_that_is_not_met_leaves_a_guess(
    play: Callable[..., Any], victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True)
    class Fussy(Cosine):
        name: ClassVar[str] = "fussy"
        needs: ClassVar[frozenset[Need]] = frozenset({Need.PLAIN_MODEL, Need.AUXILIARY})

    monkeypatch.setitem(ATTACKS._entries, "fussy", Fussy)
    found = run(PaillierQuotient(inner="fussy"), [play("plain").observed(Position.SERVER)], [victim])[0]
    assert found.note == "no signal: the prior guess; fussy needs auxiliary images"
    assert found.recovered_weights is not None


@pytest.mark.parametrize("name", RECOVERIES)
def test_nothing_undeclared_is_read(
    play: Callable[..., Any], pride: Callable[..., Any], victim: Victim, hiding: Any, name: str
) -> None:
    attack = build_attack(name)
    for position in (Position.EAVESDROPPER, Position.SERVER, Position.CLIENT):
        observation = play(pride(randomised=False)).observed(position, own=("client-1",))
        if Need.PLAIN_MODEL in attack.needs and position is Position.EAVESDROPPER:
            continue  # the harness would not run it on ciphertext
        first, again = (run(attack, [each], [victim])[0] for each in (observation, hiding(observation, attack.needs)))
        assert torch.equal(first.images, again.images)
        assert first.note == again.note
