"""The check of attacks on defenses in force: each undoes what it was made for, or says that it cannot."""

from __future__ import annotations

from dataclasses import dataclass, replace

from attacks.base import missing_need
from benchmark.conformance.attack_subject import CLEARS, AttackSubject
from benchmark.conformance.subject import ConformanceFailure
from benchmark.conformance.targets import Target


def reaches_what_it_was_made_for(subject: AttackSubject) -> str:
    """Of the defenses that it was made for, in force, it undoes one at least; where it cannot it says so in words."""
    targets = subject.targets.of(subject.attack)
    if not targets:
        return "not applicable: it was made for no defense that there is a target of"
    outcomes = {target.label: _outcome(subject, target) for target in targets}
    reached = [label for label, outcome in outcomes.items() if outcome.reached]
    words = "; ".join(f"{label}: {outcome.words}" for label, outcome in outcomes.items())
    silent = [label for label, outcome in outcomes.items() if not outcome.reached and not outcome.said]
    if silent:
        raise ConformanceFailure(f"it fails and does not say so on {silent[0]} ({outcomes[silent[0]].words})")
    if not reached:
        raise ConformanceFailure(f"it reaches nothing that it was made for ({words})")
    return words


@dataclass(frozen=True)
class _Outcome:
    """What became of an attack on a target: whether it reached it, whether it said that it did not, and how."""

    reached: bool
    said: bool
    words: str


def _outcome(subject: AttackSubject, target: Target) -> _Outcome:
    updates, history = subject.targets.played(target, subject.attack)
    missing = missing_need(subject.attack, history[0])
    if missing is not None:
        return _Outcome(False, True, missing)
    attempt = replace(subject, updates=updates).attempt(history)
    notes = [item.note for item in attempt.found]
    if subject.attack.figures_only:
        figures = {name: value for item in attempt.found for name, value in item.findings.items()}
        return _Outcome(bool(figures), all(notes), ", ".join(f"{name} {value:.3g}" for name, value in figures.items()))
    guessed = all(item.objective is None for item in attempt.found)
    words = f"{attempt.gain:+.1f} dB" + (f", {notes[0]}" if notes[0] else "")
    return _Outcome(attempt.gain >= CLEARS, guessed and all(notes), words)
