"""Attacks that first recover a party's weights and then invert its update: what they share."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch

from attacks.adaptive.partly_known import observed_in_part
from attacks.base import (
    Attack,
    Budget,
    History,
    Reconstruction,
    build_attack,
    missing_need,
    prior_guess,
    restricted,
)
from federation.errors import UsageError
from federation.threat import Observation, PlainModel, Victim
from federation.weights import Weights, floating

Option: TypeAlias = float | int | bool | str


@dataclass(frozen=True)
class Recovery:
    """What was recovered of one party's weights in one round.

    Attributes:
        before: the weights that the party trained from; None where nothing was recovered.
        after: its averaged weights at the end of its training, NaN where a value was not recovered; None where none was.
        findings: figures by name.
        note: in words, what a reader of the row should know: where nothing was recovered, why.
    """

    before: Weights | None
    after: Weights | None
    findings: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    @classmethod
    def nothing(cls, reason: str, findings: Mapping[str, float] | None = None) -> Recovery:
        """No weights, for this reason."""
        return cls(None, None, findings or {}, reason)

    def adding(self, findings: Mapping[str, float], note: str) -> Recovery:
        """The same with further findings and a further remark."""
        return replace(self, findings={**self.findings, **findings}, note=_joined(self.note, note))

    def model_after(self) -> Weights | None:
        """The party's whole model at the end, values that were not recovered as before; None where nothing was."""
        if self.before is None or self.after is None:
            return None
        known = {name: torch.where(tensor.isnan(), self.before[name], tensor) for name, tensor in self.after.items()}
        return {**self.before, **known}

    @property
    def partial(self) -> bool:
        """Whether some values were recovered and others not."""
        return self.after is not None and any(bool(tensor.isnan().any()) for tensor in self.after.values())

    def observed(self, observation: Observation, sender: str) -> Observation | None:
        """What a gradient inversion starts from, as if it had been observed; None where nothing was recovered."""
        if self.before is None or self.after is None:
            return None
        if self.partial:
            return observed_in_part(observation, self.before, self.after, sender)
        return replace(observation, view=PlainModel(self.before, {sender: {**self.before, **self.after}}))


@dataclass(frozen=True)
class WeightRecovery(Attack):
    """Recover weights, hand them to a gradient inversion as if they had been sent in clear, and claim them.

    A subclass says how weights that are hidden are recovered. Where none are, the images are the prior guess and the
    note says why. What is read in clear is inverted as it is: on undefended updates these attacks are the inner one.

    Attributes:
        inner: the attack that inverts the recovered update; the name of a registered one.
        inner_options: its options by name (kept as sorted pairs).
    """

    inner: str = "cosine"
    inner_options: Mapping[str, Option] | tuple[tuple[str, Option], ...] = ()

    def __post_init__(self) -> None:
        if ".py:" in self.inner:
            raise UsageError(
                f"attack {self.name!r}: inner is {self.inner!r}; it must be the name of a registered attack"
            )
        object.__setattr__(self, "inner_options", tuple(sorted(dict(self.inner_options).items())))
        if isinstance(self.inverter, WeightRecovery):
            raise UsageError(f"attack {self.name!r}: inner is {self.inner!r}, which recovers weights itself")

    @property
    def inverter(self) -> Attack:
        """The inner attack; raises UsageError where there is none of that name, or with these options."""
        return build_attack(self.inner, dict(self.inner_options))

    @abstractmethod
    def recover_hidden(self, observation: Observation, victim: Victim) -> Recovery:
        """The victim's weights before and after its training, where they are not read in clear."""

    def recover(self, observation: Observation, victim: Victim) -> Recovery:
        """The victim's weights before and after its training, from what was observed."""
        view = observation.view
        if isinstance(view, PlainModel) and not view.hidden_by and victim.sender in view.after:
            return read_in_clear(observation, view.before, view.after[victim.sender])
        return self.recover_hidden(observation, victim)

    def reconstruct(
        self, history: History, victims: Sequence[Victim], *, generator: torch.Generator, budget: Budget
    ) -> list[Reconstruction]:
        """See `Attack.reconstruct`; the inner attack is called once, with all victims whose weights were recovered."""
        inverter = self.inverter
        attempts = [
            self._attempt(restricted(history[victim.observation], self.needs), victim, inverter) for victim in victims
        ]
        clear = [attempt for attempt in attempts if attempt.clear is not None]
        inverted = iter(
            inverter.reconstruct(
                [attempt.clear for attempt in clear if attempt.clear is not None],
                [replace(attempt.victim, observation=position) for position, attempt in enumerate(clear)],
                generator=generator,
                budget=budget,
            )
            if clear
            else ()
        )
        return [attempt.claimed(attempt.guess() if attempt.clear is None else next(inverted)) for attempt in attempts]

    def _attempt(self, observation: Observation, victim: Victim, inverter: Attack) -> _Attempt:
        start = time.perf_counter()
        recovery = self.recover(observation, victim)
        seconds = time.perf_counter() - start
        clear = recovery.observed(observation, victim.sender)
        missing = None if clear is None else missing_need(inverter, clear)
        if missing is not None:
            clear, recovery = None, recovery.adding({}, f"{self.inner} {missing}")
        return _Attempt(observation, victim, recovery, seconds, clear and restricted(clear, inverter.needs))


@dataclass(frozen=True)
class _Attempt:
    """One victim's recovery, and the observation that the inner attack gets of it (None where it cannot start)."""

    observation: Observation
    victim: Victim
    recovery: Recovery
    seconds: float
    clear: Observation | None

    def guess(self) -> Reconstruction:
        return prior_guess(self.observation, self.victim)

    def claimed(self, item: Reconstruction) -> Reconstruction:
        """The reconstruction together with what was recovered on the way to it."""
        return replace(
            item,
            labels=None if self.recovery.partial else item.labels,  # one may stand for several that look alike
            recovered_weights=self.recovery.after,
            findings={**item.findings, **self.recovery.findings},
            seconds=item.seconds + self.seconds,
            note=_joined(item.note, self.recovery.note),
        )


def read_in_clear(observation: Observation, before: Weights, after: Weights) -> Recovery:
    """The recovery of weights that nothing hides."""
    return Recovery(before, {spec.name: after[spec.name] for spec in floating(observation.network.layout)})


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
