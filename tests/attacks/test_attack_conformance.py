"""Every registered attack passes the conformance suite, and attacks that misbehave in one way fail it in that way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attacks.adaptive.recovery import WeightRecovery
from attacks.base import ATTACKS, Attack, Budget, History, Need, Reconstruction, build_attack
from attacks.cosine import Cosine
from benchmark.audit.stand_in import smallest_stand_in
from benchmark.conformance.attack_subject import AttackSubject
from benchmark.conformance.attacks import CHECKS, check_attack
from benchmark.conformance.images import ImagesToClassify
from benchmark.conformance.subject import ConformanceFailure
from benchmark.conformance.targets import Targets, wide_network
from benchmark.conformance.updates import Updates, small_network
from federation.models import build_model
from federation.network import Network
from federation.secret_root import SecretRoot
from federation.threat import Victim

ROOT = SecretRoot(b"conformance tests of attacks...." * 2)
BUDGET = Budget(evaluations=120)
FEW = Budget(evaluations=40)
UPDATES, SERVED, TARGETS = Updates(small_network(), ROOT), ImagesToClassify(wide_network(), ROOT), Targets(ROOT)


def subject(attack: Attack, budget: Budget = BUDGET) -> AttackSubject:
    updates = SERVED if Need.KEYED_IMAGES in attack.needs else UPDATES
    return AttackSubject(attack, updates, budget, TARGETS)


# attacks that recover weights first are their inner attack where nothing is hidden; dlg is the quicker one here
SUBJECTS = {
    name: subject(build_attack(name, {"inner": "dlg"} if issubclass(ATTACKS.get(name), WeightRecovery) else {}))
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


class KnowsTheTruthOfGradients(Misbehaving):
    """Returns the private images wherever the update is a gradient, by whose class scores' biases move to and fro alike."""

    def spoil(self, item: Reconstruction, seen: Any) -> Reconstruction:
        before, after = seen.view.before, seen.view.after["client-0"]
        moved = (after["fc.bias"] - before["fc.bias"]).double()
        real = float(moved.abs().sum()) > 0 and float(moved.sum().abs()) < 1e-4 * float(moved.abs().sum())
        return replace(item, images=UPDATES.images.private[:1].float() / 255) if real else item


class KeepsTheWorst(Misbehaving):
    """Of its restarts it keeps the one that its own objective likes least."""

    def reconstruct(
        self, history: History, victims: Sequence[Victim], *, generator: torch.Generator, budget: Budget
    ) -> list[Reconstruction]:
        one = replace(budget, restarts=1)
        tries = [
            Cosine().reconstruct(history, victims, generator=generator, budget=one) for _ in range(budget.restarts)
        ]
        return [max(items, key=lambda item: item.objective or 0.0) for items in zip(*tries, strict=True)]


class TracesAnother(Misbehaving):
    """Its trace is that of another search than the one that it returns."""

    def spoil(self, item: Reconstruction, seen: Any) -> Reconstruction:
        points = tuple(replace(point, images=point.images.flip(-1)) for point in item.trace)
        return replace(item, trace=points)


class BetterUntraced(Misbehaving):
    """Stops early where somebody looks."""

    def reconstruct(
        self, history: History, victims: Sequence[Victim], *, generator: torch.Generator, budget: Budget
    ) -> list[Reconstruction]:
        spent = replace(budget, evaluations=2) if budget.trace_every else budget
        return super().reconstruct(history, victims, generator=generator, budget=spent)


class AsksTheHistory(Misbehaving):
    """Asks what the referee would ask of a history that keeps the truth."""

    def reconstruct(self, history: Any, victims: Sequence[Victim], **rest: Any) -> list[Reconstruction]:
        history.truth(0)
        return super().reconstruct(history, victims, **rest)


class AsksQuietly(Misbehaving):
    """Looks for what nobody gave it, and hides that it found nothing."""

    def spoil(self, item: Reconstruction, seen: Any) -> Reconstruction:
        try:
            return replace(item, images=seen.view.private_batch)
        except Exception:  # noqa: BLE001  as an attack would that wants to go unnoticed
            return item


class AsksTheVictim(Misbehaving):
    def reconstruct(self, history: History, victims: Sequence[Any], **rest: Any) -> list[Reconstruction]:
        assert not hasattr(victims[0], "images")
        return super().reconstruct(history, victims, **rest)


class AsksTheNetwork(Misbehaving):
    def spoil(self, item: Reconstruction, seen: Any) -> Reconstruction:
        return replace(item, note=str(getattr(seen.network, "dataset", "")))


class ClaimsKeyNet(Misbehaving):
    """Says that it undoes Key-Net, and inverts what it reads as if there were none."""

    undoes = frozenset({"keynet"})
    made_for = frozenset({"keynet"})


class GivesUpOnKeyNet(ClaimsKeyNet):
    """Says of everything that it was made for that it needs something else."""

    def lacks(self, observation: Any) -> str | None:
        return "another world" if observation.view.hidden_by else None


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
    KnowsTheTruthOfGradients: ("tells images apart", "images that it cannot know"),
    KeepsTheWorst: ("improves with restarts", "grows with the number of restarts"),
    TracesAnother: ("keeps an honest trace", "ends elsewhere"),
    BetterUntraced: ("keeps an honest trace", "other images where a trace is asked for"),
    AsksTheHistory: ("reads what it declares", "'truth' of the history"),
    AsksQuietly: ("reads what it declares", "'private_batch' of the view"),
    AsksTheVictim: ("reads what it declares", "'images' of the victim"),
    AsksTheNetwork: ("reads what it declares", "'dataset' of the network"),
    ClaimsKeyNet: ("reaches what it was made for", "does not say so on keynet: gains, ReLU"),
    GivesUpOnKeyNet: ("reaches what it was made for", "reaches nothing .* needs another world"),
}


@pytest.mark.parametrize("attack", SPOILT, ids=lambda attack: attack.__name__)
def test_what_misbehaves_is_caught(attack: type[Misbehaving]) -> None:
    check, message = SPOILT[attack]
    with pytest.raises(ConformanceFailure, match=message):
        CHECKS[check](subject(attack(), FEW))


class KnowsTheTruth(Misbehaving):
    """Returns the private images themselves, as if it had been handed them."""

    def reconstruct(self, history: History, victims: Sequence[Victim], **rest: Any) -> list[Reconstruction]:
        truth = UPDATES.images.private.float() / 255
        return [Reconstruction(image[None], None, 0.0, 1, 0.0) for image in truth]


@pytest.mark.parametrize("check", ["falls without signal", "survives no update", "tells images apart"])
def test_an_attack_that_is_handed_the_truth_is_caught(check: str) -> None:
    with pytest.raises(ConformanceFailure, match="over the floor"):
        CHECKS[check](subject(KnowsTheTruth(), FEW))


class Raises(Misbehaving):
    def reconstruct(self, history: History, victims: Sequence[Victim], **rest: Any) -> list[Reconstruction]:
        raise ZeroDivisionError("no bias")


def test_the_suite_reports_an_attack_that_raises() -> None:
    findings = check_attack(Raises(), ROOT, smallest_stand_in())
    failed = [finding for finding in findings if not finding.passed]
    assert {finding.detail for finding in failed} == {"it raised ZeroDivisionError: no bias"}
    # it was made for no defense, so that there is nothing to try it on
    assert [finding.check for finding in findings if finding.passed] == ["reaches what it was made for"]


class HandsOn(Misbehaving):
    """Hands observations on as they are, parts that it does not read included."""

    def reconstruct(self, history: History, victims: Sequence[Victim], **rest: Any) -> list[Reconstruction]:
        copies = [type(seen)(**{part.name: getattr(seen, part.name) for part in fields(seen)}) for seen in history]
        return super().reconstruct([replace(seen, round=1) for seen in copies], victims, **rest)


def test_handing_observations_on_is_not_reading_them() -> None:
    assert CHECKS["reads what it declares"](subject(HandsOn(), FEW)).startswith("nothing of transcript")


class NeedsSparse(Misbehaving):
    needs = frozenset({Need.SPARSE_LAYERS})


def test_the_suite_does_not_judge_what_does_not_apply() -> None:
    findings = check_attack(NeedsSparse(), ROOT, smallest_stand_in())
    assert {finding.detail for finding in findings} == {
        "not applicable: needs sparse keyed layers (it reads something else)"
    }
