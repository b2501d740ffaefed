"""Checks that Keyhole makes on itself and on defenses before it believes a result."""

from __future__ import annotations

import json
from collections.abc import Sequence

from attacks.base import Attack, Need
from benchmark.artefacts import digest
from benchmark.audit import AuditResult, earned_shortcut
from benchmark.experiment import DefenseSpec
from benchmark.store import UNDEFENDED
from benchmark.training_plan import TrainingPlan
from federation.errors import DataError
from federation.files import write_text
from federation.threat import ADVERSARIES, Adversary

CONTROL_ADVERSARY: Adversary = ADVERSARIES.get("server/oblivious")
"""Who looks in a positive control: where nothing is hidden, nobody needs to know more."""

_BEYOND_THE_WIRE = frozenset({Need.OWN_UPDATE, Need.AUXILIARY})


def control_adversary(attack: Attack, adversary: Adversary) -> Adversary:
    """Who looks in the positive control of a cell: the same adversary where the attack needs more than the wire gives."""
    return adversary if attack.needs & _BEYOND_THE_WIRE else CONTROL_ADVERSARY


def with_undefended(defenses: Sequence[DefenseSpec]) -> tuple[DefenseSpec, ...]:
    """The defenses with `plain` among them: the undefended update is everyone's positive control."""
    if any(defense.name == UNDEFENDED for defense in defenses):
        return tuple(defenses)
    return (DefenseSpec(name=UNDEFENDED), *defenses)


def earned_shortcut_of(plan: TrainingPlan) -> AuditResult:
    """Whether the plan's defense may be scored as ciphertext without an attack; audited once a run."""
    name = digest(
        "audit",
        plan.task,
        plan.defense_spec.model_dump(mode="json"),
        plan.workspace.code.trainings,
        plan.stage_digests(),
    )
    file = plan.workspace.artefacts / "audits" / f"{name}.json"
    if not file.exists():
        root = plan.workspace.root.derive("audit", plan.task, plan.defense_spec.name)
        write_text(file, json.dumps(vars(earned_shortcut(plan.defense, plan.network, root))))
    try:
        return AuditResult(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{file}: not a readable audit ({error}); remove it to have it made anew") from error
