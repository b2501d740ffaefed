"""The conformance suite of attacks: each does undefended what it says, and falls where there is nothing to find."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor

from attacks.base import Attack, Budget, Need, Reconstruction, missing_need
from benchmark.audit.chosen import CLIENTS
from benchmark.conformance.defenses import Finding
from benchmark.conformance.subject import ConformanceFailure
from benchmark.conformance.updates import VICTIMS, Images, Updates, small_network, with_noise, with_update
from benchmark.metrics import pixel
from benchmark.metrics.floors import floors
from federation.network import Network
from federation.secret_root import SecretRoot
from federation.seeds import torch_generator
from federation.threat import Observation, Victim

CLEARS = 2.0
"""Decibels above the floor that an attack reaches undefended at least, on average."""

AT_FLOOR = 1.0
"""Decibels above the floor that it may reach, on average, where there is nothing to find."""

SAME = 2.0
"""Decibels by which its average may differ between undefended updates that are equal up to rounding."""


class _Forbidden:
    """Stands for what an attack did not declare that it needs."""

    def __init__(self, part: str) -> None:
        object.__setattr__(self, "_part", part)

    def __getattribute__(self, name: str) -> NoReturn:
        part = object.__getattribute__(self, "_part")
        raise ConformanceFailure(f"it reads the observation's {part}, which is not among its needs")

    def _refuse(self, *_: object) -> NoReturn:
        raise ConformanceFailure(f"it reads the observation's {object.__getattribute__(self, '_part')}")

    __iter__ = __len__ = __getitem__ = __contains__ = __bool__ = _refuse


@dataclass(frozen=True)
class AttackSubject:
    """An attack under test, its budget, and what it is tried on: updates of a network that it is meant for."""

    attack: Attack
    updates: Updates
    budget: Budget

    @cached_property
    def plain(self) -> Attempt:
        """The attack on updates under no defense at all."""
        return self.attempt(self.updates.plain)

    def attempt(self, history: list[Observation], budget: Budget | None = None) -> Attempt:
        """Reconstruct every victim, and score against truth and floors."""
        victims = [Victim(f"victim-{index}", index, CLIENTS[0], 1) for index in range(VICTIMS)]
        generator = torch_generator("conformance of attacks")
        found = self.attack.reconstruct(history, victims, generator=generator, budget=budget or self.budget)
        if len(found) != len(victims):
            raise ConformanceFailure(f"it returned {len(found)} reconstructions for {len(victims)} victims")
        return Attempt(tuple(found), self.updates.images)


@dataclass(frozen=True)
class Attempt:
    """What an attack returned, one reconstruction a victim."""

    found: tuple[Reconstruction, ...]
    images: Images

    @cached_property
    def gain(self) -> float:
        """Mean PSNR over the highest floor of each image, in decibels."""
        public = self.images.auxiliary
        private = self.images.private
        guesses = floors(public.pixels, public.labels, len(private), None, torch_generator("conformance floors"))
        highest = torch.stack([pixel.psnr(private, guess) for guess in guesses.values()]).amax(0)
        return float((pixel.psnr(private, self.eight_bit) - highest).mean())

    @property
    def eight_bit(self) -> Tensor:
        """The images as they would be stored, [V, C, H, W]."""
        return pixel.to_eight_bit(torch.cat([item.images for item in self.found]))

    @property
    def objective(self) -> float | None:
        """The mean of the attack's own objective; None where it states none."""
        stated = [item.objective for item in self.found]
        return None if None in stated else sum(map(float, stated)) / len(stated)  # type: ignore[arg-type]


AttackCheck: TypeAlias = Callable[[AttackSubject], str]
"""Returns in words what it saw; raises ConformanceFailure."""


def returns_what_it_should(subject: AttackSubject) -> str:
    """Images of the right shape in [0, 1], labels that are classes, and no more evaluations than the budget."""
    shape = (1, *subject.updates.network.image_shape)
    budget = subject.budget.evaluations * subject.budget.restarts
    for item in subject.plain.found:
        if tuple(item.images.shape) != shape or not item.images.is_floating_point():
            raise ConformanceFailure(f"images are {item.images.dtype} {tuple(item.images.shape)}, expected {shape}")
        if not bool(item.images.isfinite().all()) or item.images.min() < 0 or item.images.max() > 1:
            raise ConformanceFailure("images must be finite and in [0, 1]")
        if item.labels is not None and not set(item.labels.tolist()) <= set(range(subject.updates.network.class_count)):
            raise ConformanceFailure(f"labels {item.labels.tolist()} are not classes")
        if not 0 <= item.evaluations <= budget:
            raise ConformanceFailure(f"{item.evaluations} evaluations were spent on a victim, the budget is {budget}")
        if item.seconds < 0:
            raise ConformanceFailure(f"it states {item.seconds} seconds")
    return f"images of shape {shape}"


def clears_the_floor_undefended(subject: AttackSubject) -> str:
    """Undefended, reconstructions are better than guesses; else the attack can show nothing."""
    gain = subject.plain.gain
    if gain < CLEARS:
        raise ConformanceFailure(f"undefended it is {gain:+.1f} dB from the floor, {CLEARS:+.1f} dB are needed")
    return f"{gain:+.1f} dB over the floor"


def leaky_twins_change_nothing(subject: AttackSubject) -> str:
    """On every defense with its key published and its noise off, it does as well as undefended."""
    seen = []
    for name, history in subject.updates.leaky_twins.items():
        gain = subject.attempt(history).gain
        if abs(gain - subject.plain.gain) > SAME:
            raise ConformanceFailure(
                f"on the leaky twin of {name} it is {gain:+.1f} dB from the floor, undefended {subject.plain.gain:+.1f} dB"
            )
        seen.append(f"{name} {gain:+.1f} dB")
    return ", ".join(seen)


def falls_without_signal(subject: AttackSubject) -> str:
    """On updates that have nothing to do with any image, it returns no better than a guess."""
    history = [with_noise(observation, index) for index, observation in enumerate(subject.updates.plain)]
    gain = subject.attempt(history).gain
    if gain > AT_FLOOR:
        raise ConformanceFailure(f"on updates of noise it is {gain:+.1f} dB over the floor: it sees what it must not")
    return f"{gain:+.1f} dB from the floor"


def survives_no_update(subject: AttackSubject) -> str:
    """On an update that changes nothing it says that there was no signal, or at least returns a guess."""
    history = [
        with_update(observation, lambda tensor: torch.zeros_like(tensor)) for observation in subject.updates.plain
    ]
    attempt = subject.attempt(history)
    if not bool(torch.cat([item.images for item in attempt.found]).isfinite().all()):
        raise ConformanceFailure("on an update that changes nothing it returns pixels that are not finite")
    if attempt.gain > AT_FLOOR:
        raise ConformanceFailure(f"on an update that changes nothing it is {attempt.gain:+.1f} dB over the floor")
    return attempt.found[0].note or "a guess"


def improves_with_budget(subject: AttackSubject) -> str:
    """Its own objective is no worse with four times the evaluations."""
    small = replace(subject.budget, evaluations=max(1, subject.budget.evaluations // 4))
    starved, full = subject.attempt(subject.updates.plain, small).objective, subject.plain.objective
    if starved is None or full is None:
        return "not applicable: it states no objective"
    if full > starved + 1e-6 * abs(starved):
        raise ConformanceFailure(f"its objective is {full:.3g} with the whole budget, {starved:.3g} with a quarter")
    return f"{starved:.3g} with a quarter of the budget, {full:.3g} with all"


def repeatable(subject: AttackSubject) -> str:
    """The same generator gives the same images."""
    again = subject.attempt(subject.updates.plain)
    if not torch.equal(again.eight_bit, subject.plain.eight_bit):
        raise ConformanceFailure("a second call with the same generator returns other images")
    return "bit for bit"


def reads_what_it_declares(subject: AttackSubject) -> str:
    """Parts of an observation that are not among its needs are not looked at."""
    parts: dict[str, Need] = {
        "transcript": Need.TRANSCRIPT,
        "held": Need.HELD,
        "scheme": Need.SCHEME,
        "auxiliary": Need.AUXILIARY,
        "own_updates": Need.OWN_UPDATE,
    }
    undeclared = [part for part, need in parts.items() if need not in subject.attack.needs]
    forbidden: dict[str, Any] = {part: _Forbidden(part) for part in undeclared}
    subject.attempt([replace(observation, **forbidden) for observation in subject.updates.plain])
    return f"nothing of {', '.join(undeclared)}" if undeclared else "it declares every part"


CHECKS: Mapping[str, AttackCheck] = {
    "returns what it should": returns_what_it_should,
    "clears the floor undefended": clears_the_floor_undefended,
    "leaky twins change nothing": leaky_twins_change_nothing,
    "falls without signal": falls_without_signal,
    "survives no update": survives_no_update,
    "improves with budget": improves_with_budget,
    "repeatable": repeatable,
    "reads what it declares": reads_what_it_declares,
}
"""Every check by name."""


def check_attack(
    attack: Attack, root: SecretRoot, network: Network | None = None, budget: Budget | None = None
) -> list[Finding]:
    """Run every check on an attack; one that fails does not stop the others.

    Args:
        attack: Keyhole's own or another package's.
        root: where the keys of leaky twins come from.
        network: a small network of the kind that the attack is meant for.
        budget: enough of it to work undefended.
    """
    subject = AttackSubject(attack, Updates(network or small_network(), root), budget or Budget(evaluations=200))
    missing = missing_need(attack, subject.updates.plain[0])
    if missing is not None:
        return [Finding(name, True, f"not applicable: {missing}") for name in CHECKS]
    findings = []
    for name, check in CHECKS.items():
        try:
            findings.append(Finding(name, True, check(subject)))
        except ConformanceFailure as failure:
            findings.append(Finding(name, False, str(failure)))
        except Exception as error:  # noqa: BLE001  whatever an outside attack raises is a finding about it
            findings.append(Finding(name, False, f"it raised {type(error).__name__}: {error}"))
    return findings
