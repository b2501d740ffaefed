"""Narrowing an experiment: the same with fewer, or by name other, tasks, defenses, attacks, adversaries and seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol, TypeVar

from benchmark.experiment import AttackSpec, DefenseSpec, Experiment, FederationSpec, validated
from benchmark.validation import validated_part


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Spec = TypeVar("Spec", bound=_Named)


def narrowed(
    experiment: Experiment,
    *,
    tasks: Sequence[str] = (),
    defenses: Sequence[str] = (),
    attacks: Sequence[str] = (),
    adversaries: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> Experiment:
    """The experiment with these alone; what is left empty stays as it is.

    A task, attack or defense that the experiment does not list takes the place of one that it does: a task with the
    settings of the first, an attack with the first one's budget. `plain` stays: it is everyone's positive control.

    Raises:
        UsageError: where a name is unknown.
    """
    federations = tuple(_pick_tasks(experiment.federations, tasks)) if tasks else experiment.federations
    if defenses:
        wanted = tuple(dict.fromkeys(["plain", *defenses]))
        federations = tuple(
            spec.model_copy(update={"defenses": tuple(_pick(spec.defenses, wanted, _defense_from))})
            for spec in federations
        )
    attack_from = partial(_attack_from, experiment)
    chosen = tuple(_pick(experiment.attacks, attacks, attack_from)) if attacks else experiment.attacks
    names = {spec.name for spec in chosen}
    federations = tuple(
        spec.model_copy(update={"attacks": tuple(attack for attack in spec.attacks if attack.name in names)})
        for spec in federations
    )
    return validated(
        {
            **experiment.model_dump(mode="json"),
            "federations": [spec.model_dump(mode="json") for spec in federations],
            "attacks": [spec.model_dump(mode="json") for spec in chosen],
            "adversaries": list(adversaries or experiment.adversaries),
            "seeds": list(seeds or experiment.seeds),
        },
        f"experiment {experiment.name}",
    )


def _pick_tasks(present: Sequence[FederationSpec], wanted: Sequence[str]) -> Iterator[FederationSpec]:
    for name in wanted:
        matching = [spec for spec in present if spec.task == name]
        yield from matching or [present[0].model_copy(update={"task": name})]


def _pick(present: Sequence[Spec], wanted: Sequence[str], make: Callable[[str], Spec]) -> Iterator[Spec]:
    by_name = {spec.name: spec for spec in present}
    for name in wanted:
        yield by_name[name] if name in by_name else make(name)


def _defense_from(name: str) -> DefenseSpec:
    return validated_part(DefenseSpec, {"name": name})


def _attack_from(experiment: Experiment, name: str) -> AttackSpec:
    budget = experiment.attacks[0] if experiment.attacks else AttackSpec.model_construct(evaluations=300, restarts=1)
    return validated_part(AttackSpec, {"name": name, "evaluations": budget.evaluations, "restarts": budget.restarts})
