"""Every registered attack passes the conformance suite, and attacks that misbehave in one way fail it in that way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attacks.adaptive.recovery import WeightRecovery
from attacks.base import ATTACKS, Attack, Budget, History, Need, Reconstruction, build_attack
from attacks.cosine import Cosine
from benchmark.audit.stand_in import smallest_stand_in
from benchmark.conformance.attacks import CHECKS, AttackSubject, check_attack
from benchmark.conformance.subject import ConformanceFailure
from benchmark.conformance.updates import Updates, small_network
from federation.models import build_model
from federation.network import Network
from federation.secret_root import SecretRoot
from federation.threat import Victim

ROOT = SecretRoot(b"conformance tests of attacks...." * 2)
BUDGET = Budget(evaluations=160)
FEW = Budget(evaluations=40)
UPDATES = Updates(small_network(), ROOT)
# attacks that recover weights first are their inner attack where nothing is hidden; dlg is the quicker one here
SUBJECTS = {
    name: AttackSubject(
        build_attack(name, {"inner": "dlg"} if issubclass(ATTACKS.get(name), WeightRecovery) else {}), UPDATES, BUDGET
    )
    for name in ATTACKS.names()
}
EXAMPLE = Path(__file__).parents[2] / "examples" / "first_layer.py"


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", SUBJECTS)
def test_conforms(name: str, check: str) -> None:
    assert CHECKS[check](SUBJECTS[name])


def test_the_two_attacks_are_registered() -> None:
    assert {"cosine", "dlg"} <= set(SUBJECTS)


def logistic() -> Network:
    return Network(lambda: build_model("logistic", (1, 14, 14), 10, seed=0), (1, 14, 14), 10)


def test_the_example_attack_passes_on_the_network_that_it_is_meant_for() -> None:
    findings = check_attack(build_attack(f"{EXAMPLE}:FirstLayer"), ROOT, logistic())
    assert [finding.check for finding in findings] == list(CHECKS)
    # it divides by a bias gradient without a look, which an update that changes nothing does not survive
    assert [finding.check for finding in findings if not finding.passed] == ["survives no update"]


@dataclass(frozen=True)
class Misbehaving(Attack):
    """Cosine; subclasses spoil one thing."""

    name = "misbehaving"

    def reconstruct(
        self, history: History, victims: Sequence[Victim], *, generator: torch.Generator, budget: Budget
    ) -> list[Reconstruction]:
        found = Cosine().reconstruct(history, victims, generator=generator, budget=budget)
        return [self.spoil(item, history[victim.observation]) for item, victim in zip(found, victims, strict=True)]

    def spoil(self, item: Reconstruction, seen: Any) -> Reconstruction:
        return item


class PeeksAtAuxiliary(Misbehaving):
    def spoil(self, item: Reconstruction, seen: Any) -> Reconstruction:
        return replace(item, findings={"bright": float(seen.auxiliary.pixels.mean())})


class PeeksAtWire(Misbehaving):
    def spoil(self, item: Reconstruction, seen: Any) -> Reconstruction:
        return replace(item, findings={"envelopes": float(len(seen.transcript))})


class DrawsElsewhere(Misbehaving):
    def spoil(self, item: Reconstruction, seen: Any) -> Reconstruction:
        noise = torch.rand(item.images.shape, generator=torch.Generator().manual_seed(time.perf_counter_ns()))
        return replace(item, images=(item.images + 0.2 * noise).clamp(0, 1))


class Overspends(Misbehaving):
    def spoil(self, item: Reconstruction, seen: Any) -> Reconstruction:
        return replace(item, evaluations=item.evaluations + FEW.evaluations)


class TooBright(Misbehaving):
    def spoil(self, item: Reconstruction, seen: Any) -> Reconstruction:
        return replace(item, images=item.images + 1)


class WrongClass(Misbehaving):
    def spoil(self, item: Reconstruction, seen: Any) -> Reconstruction:
        return replace(item, labels=torch.tensor([10]))


class GetsWorse(Misbehaving):
    def spoil(self, item: Reconstruction, seen: Any) -> Reconstruction:
        return replace(item, objective=float(item.evaluations))


class Guesses(Misbehaving):
    def spoil(self, item: Reconstruction, seen: Any) -> Reconstruction:
        return replace(item, images=torch.full_like(item.images, 0.2))


class LosesOne(Misbehaving):
    def reconstruct(self, history: History, victims: Sequence[Victim], **rest: Any) -> list[Reconstruction]:
        return super().reconstruct(history, victims, **rest)[1:]


class OnlyOnPlain(Misbehaving):
    """Works only where no scheme but plain is announced."""

    needs = frozenset({Need.PLAIN_MODEL, Need.SCHEME})

    def spoil(self, item: Reconstruction, seen: Any) -> Reconstruction:
        return item if list(seen.scheme) == ["plain"] else replace(item, images=torch.zeros_like(item.images))


SPOILT = {
    PeeksAtAuxiliary: ("reads what it declares", "auxiliary"),
    PeeksAtWire: ("reads what it declares", "transcript"),
    DrawsElsewhere: ("repeatable", "other images"),
    Overspends: ("returns what it should", "evaluations were spent"),
    TooBright: ("returns what it should", "in \\[0, 1\\]"),
    WrongClass: ("returns what it should", "are not classes"),
    GetsWorse: ("improves with budget", "with a quarter"),
    Guesses: ("clears the floor undefended", "from the floor"),
    LosesOne: ("returns what it should", "3 reconstructions for 4 victims"),
    OnlyOnPlain: ("leaky twins change nothing", "leaky twin of "),
}


@pytest.mark.parametrize("attack", SPOILT, ids=lambda attack: attack.__name__)
def test_what_misbehaves_is_caught(attack: type[Misbehaving]) -> None:
    check, message = SPOILT[attack]
    with pytest.raises(ConformanceFailure, match=message):
        CHECKS[check](AttackSubject(attack(), UPDATES, FEW))


class KnowsTheTruth(Misbehaving):
    """Returns the private images themselves, as if it had been handed them."""

    def reconstruct(self, history: History, victims: Sequence[Victim], **rest: Any) -> list[Reconstruction]:
        truth = UPDATES.images.private.float() / 255
        return [Reconstruction(image[None], None, 0.0, 1, 0.0) for image in truth]


@pytest.mark.parametrize("check", ["falls without signal", "survives no update"])
def test_an_attack_that_is_handed_the_truth_is_caught(check: str) -> None:
    with pytest.raises(ConformanceFailure, match="over the floor"):
        CHECKS[check](AttackSubject(KnowsTheTruth(), UPDATES, FEW))


class Raises(Misbehaving):
    def reconstruct(self, history: History, victims: Sequence[Victim], **rest: Any) -> list[Reconstruction]:
        raise ZeroDivisionError("no bias")


def test_the_suite_reports_an_attack_that_raises() -> None:
    findings = check_attack(Raises(), ROOT, smallest_stand_in())
    assert {finding.detail for finding in findings} == {"it raised ZeroDivisionError: no bias"}
    assert not any(finding.passed for finding in findings)


class NeedsSparse(Misbehaving):
    needs = frozenset({Need.SPARSE_LAYERS})


def test_the_suite_does_not_judge_what_does_not_apply() -> None:
    findings = check_attack(NeedsSparse(), ROOT, smallest_stand_in())
    assert {finding.detail for finding in findings} == {
        "not applicable: needs sparse keyed layers (it reads something else)"
    }
