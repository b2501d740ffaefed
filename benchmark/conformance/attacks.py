"""The conformance suite of attacks: each does undefended what it says, and falls where there is nothing to find."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import TypeAlias

import torch

from attacks.base import Attack, Budget, missing_need
from benchmark.conformance.attack_subject import CLEARS, EVERYONE, AttackSubject
from benchmark.conformance.defenses import Finding
from benchmark.conformance.images import updates_for
from benchmark.conformance.made_for import reaches_what_it_was_made_for
from benchmark.conformance.subject import ConformanceFailure
from benchmark.conformance.targets import Targets
from benchmark.conformance.updates import small_network
from benchmark.conformance.watched import PARTS, Trespasses, WatchedHistory, watched_victims
from federation.network import Network
from federation.secret_root import SecretRoot

AT_FLOOR = 1.0
"""Decibels above the floor that it may reach, on average, where there is nothing to find."""

SAME = 2.0
"""Decibels by which its average may differ between undefended updates that are equal up to rounding."""

SAME_OBJECTIVE = 0.01
"""Share by which an objective may grow where it should not: rounding differs with the number of trials at once."""

RESTARTS = (1, 2, 4)
"""Numbers of restarts that are compared."""


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
    """On every defense with its key published and its noise off, it does as well as undefended.

    Compared after half of the evaluations, where that is enough to see anything.
    """
    budget = subject.part(2)
    plain = subject.attempt(subject.updates.plain, budget).gain
    if plain < CLEARS:
        budget, plain = subject.budget, subject.plain.gain
    seen = []
    for name, history in subject.updates.leaky_twins.items():
        gain = subject.attempt(history, budget).gain
        if abs(gain - plain) > SAME:
            raise ConformanceFailure(
                f"on the leaky twin of {name} it is {gain:+.1f} dB from the floor, undefended {plain:+.1f} dB"
            )
        seen.append(f"{name} {gain:+.1f} dB")
    return ", ".join(seen)


def falls_without_signal(subject: AttackSubject) -> str:
    """On what has nothing to do with any image, it returns no better than a guess.

    That is an update of noise, or an image beside a network under another key.
    """
    gain = subject.attempt(subject.updates.of_noise).gain
    if gain > AT_FLOOR:
        raise ConformanceFailure(f"on what is noise it is {gain:+.1f} dB over the floor: it sees what it must not")
    return f"{gain:+.1f} dB from the floor"


def survives_no_update(subject: AttackSubject) -> str:
    """On an update that changes nothing, or an empty image, it says that there was no signal, or returns a guess."""
    attempt = subject.attempt(subject.updates.of_nothing)
    if not bool(torch.cat([item.images for item in attempt.found]).isfinite().all()):
        raise ConformanceFailure("where there is no signal it returns pixels that are not finite")
    if attempt.gain > AT_FLOOR:
        raise ConformanceFailure(f"where there is no signal it is {attempt.gain:+.1f} dB over the floor")
    return attempt.found[0].note or "a guess"


def improves_with_budget(subject: AttackSubject) -> str:
    """Its own objective is no worse with four times the evaluations."""
    starved, full = subject.starved.objective, subject.plain.objective
    if starved is None or full is None:
        return "not applicable: it states no objective"
    if full > starved + 1e-6 * abs(starved):
        raise ConformanceFailure(f"its objective is {full:.3g} with the whole budget, {starved:.3g} with a quarter")
    return f"{starved:.3g} with a quarter of the budget, {full:.3g} with all"


def repeatable(subject: AttackSubject) -> str:
    """The same generator gives the same images."""
    again = subject.attempt(subject.updates.plain, subject.quarter)
    if not torch.equal(again.eight_bit, subject.starved.eight_bit):
        raise ConformanceFailure("a second call with the same generator returns other images")
    return "bit for bit"


def improves_with_restarts(subject: AttackSubject) -> str:
    """Its own objective is no worse with more restarts: it keeps the best of them by it.

    Held to it for a single victim, whose first starts are the same however many there are.
    """
    few = subject.part(40)
    objectives = [
        subject.attempt(subject.updates.plain, replace(few, restarts=count), EVERYONE[:1]).objective
        for count in RESTARTS
    ]
    stated = [objective for objective in objectives if objective is not None]
    if len(stated) < len(objectives):
        return "not applicable: it states no objective"
    words = ", ".join(f"{value:.3g} with {count}" for count, value in zip(RESTARTS, stated, strict=True))
    for fewer, more in pairwise(stated):
        if more > fewer + SAME_OBJECTIVE * abs(fewer):
            raise ConformanceFailure(f"its objective grows with the number of restarts: {words}")
    return words


def keeps_an_honest_trace(subject: AttackSubject) -> str:
    """A trace changes nothing of what is returned, and ends there; it rises in evaluations and has valid images."""
    every = max(1, subject.quarter.evaluations // 4)
    traced = subject.attempt(subject.updates.plain, replace(subject.quarter, trace_every=every))
    if not torch.equal(traced.eight_bit, subject.starved.eight_bit):
        raise ConformanceFailure("it returns other images where a trace is asked for")
    for item in traced.found:
        steps = [point.evaluations for point in item.trace]
        if steps != sorted(set(steps)):
            raise ConformanceFailure(f"its trace does not rise in evaluations: {steps}")
        for point in item.trace:
            valid = point.images.shape == item.images.shape and bool(point.images.isfinite().all())
            if not valid or point.images.min() < 0 or point.images.max() > 1:
                raise ConformanceFailure("the images of its trace must be as those returned, finite and in [0, 1]")
        if item.trace and not torch.equal(item.trace[-1].images, item.images):
            raise ConformanceFailure("its trace ends elsewhere than at what it returns")
    points = len(traced.found[0].trace)
    return f"{points} points" if points else "not applicable: it keeps no trace"


def tells_images_apart(subject: AttackSubject) -> str:
    """On other images, or their updates, it finds those, and of the victims' own no more than a guess."""
    attempt = subject.attempt(subject.updates.of_other_images)
    if attempt.gain > AT_FLOOR:
        raise ConformanceFailure(
            f"on updates of other images it is {attempt.gain:+.1f} dB over the floor on images that it cannot know"
        )
    others = replace(attempt, images=subject.updates.other_images).gain
    if others < CLEARS:
        raise ConformanceFailure(f"on updates of other images it is {others:+.1f} dB from the floor on these")
    return f"{others:+.1f} dB on those images, {attempt.gain:+.1f} dB on the victims'"


def reads_what_it_declares(subject: AttackSubject) -> str:
    """It looks at nothing but its observations: no part that is not among its needs, and nothing besides."""
    trespasses = Trespasses()
    history = WatchedHistory(subject.updates.plain, subject.attack.needs, trespasses)
    subject.attempt(history, subject.quarter, watched_victims(EVERYONE, trespasses))
    trespasses.check()
    undeclared = [part for part, need in PARTS.items() if need not in subject.attack.needs]
    return f"nothing of {', '.join(undeclared)}" if undeclared else "it declares every part"


CHECKS: Mapping[str, AttackCheck] = {
    "returns what it should": returns_what_it_should,
    "clears the floor undefended": clears_the_floor_undefended,
    "leaky twins change nothing": leaky_twins_change_nothing,
    "falls without signal": falls_without_signal,
    "survives no update": survives_no_update,
    "tells images apart": tells_images_apart,
    "improves with budget": improves_with_budget,
    "improves with restarts": improves_with_restarts,
    "repeatable": repeatable,
    "keeps an honest trace": keeps_an_honest_trace,
    "reads what it declares": reads_what_it_declares,
    "reaches what it was made for": reaches_what_it_was_made_for,
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
    updates = updates_for(attack, network or small_network(), root)
    subject = AttackSubject(attack, updates, budget or Budget(evaluations=200), Targets(root))
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
