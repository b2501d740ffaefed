"""Cells: one attack by one adversary on one snapshot of one training, whatever becomes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import get_args

from attacks.base import READS_UPDATES, Attack, missing_need
from benchmark.artefacts import Plan, digest, source_digest
from benchmark.attack_runs import AttackRun, run_attack, run_prior_guess
from benchmark.controls import earned_shortcut_of
from benchmark.experiment import AttackSpec
from benchmark.key_scores import key_scores
from benchmark.metrics.trunk import TrunkUnavailableError, load_trunk
from benchmark.observations import ObservedRounds
from benchmark.recovered_weights import shares_recovered
from benchmark.regimes import Regime
from benchmark.scoring import perceptual_metrics, score_run
from benchmark.store import EVALUATOR_VERSION, ROUNDS_SO_FAR, CellRow, ImageRow, Outcome, Role, VictimKind
from benchmark.training_plan import TrainingPlan
from defenses.base import MalformedKeyClaim
from federation.errors import DataError
from federation.files import write_text
from federation.seeds import seed_for
from federation.threat import (
    Adversary,
    Ciphertext,
    KeyedImage,
    Knowledge,
    Nothing,
    Observation,
    Oracle,
    PlainModel,
    SparseLayers,
    Victim,
    View,
)


@dataclass(frozen=True)
class Cell(Plan):
    """Everything that decides a cell.

    Attributes:
        plan: the training that it attacks.
        adversary: who looks.
        attack_spec: which attack, with options and budget.
        victims: which victims, among those of the training.
        snapshot: rounds of training before the attacked message.
        oracles: privileges granted.
        role: an attack on a defense, or a positive control that stands beside others.
    """

    plan: TrainingPlan
    adversary: Adversary
    attack_spec: AttackSpec
    victims: Regime
    snapshot: int
    oracles: tuple[Oracle, ...] = ()
    role: Role = "attack"

    @cached_property
    def identifier(self) -> str:
        """The content address: the training's, the attack, and the code that runs and scores it."""
        return digest(
            "cell",
            self.plan.identifier,
            self.adversary.name,
            self.attack_spec.model_dump(mode="json"),
            source_digest(type(self.attack)),
            self.kind,
            *([self.victims.label] if isinstance(self.plan.victims.probe, tuple) else []),
            self.snapshot,
            [str(oracle) for oracle in self.oracles],
            self.plan.workspace.code.cells,
            _trunk_digest(self.plan.workspace.lpips_trunk),
            EVALUATOR_VERSION,
        )

    @cached_property
    def attack(self) -> Attack:
        """The attack itself."""
        return self.attack_spec.build()

    @property
    def kind(self) -> VictimKind:
        """Which kind of victim."""
        return self.victims.kind

    @property
    def regime(self) -> str:
        """The victim's regime, as tables name it, and that the history spans rounds where it does."""
        label = self.victims.label
        return f"{label}, {ROUNDS_SO_FAR}" if self.plan.victims.history == "so-far" else label


@dataclass(frozen=True)
class CellResult:
    """The rows of a cell."""

    cell: CellRow
    images: tuple[ImageRow, ...]


def run_cell(cell: Cell, control: str) -> CellResult:
    """Run and score a cell, or load it where it was finished before.

    Args:
        cell: what to run.
        control: the identifier of its positive control, "" for none.
    """
    file = cell.plan.workspace.artefacts / "cells" / f"{cell.identifier}.json"
    if not file.exists():
        result = _evaluated(cell)
        content = {"cell": vars(result.cell), "images": [vars(row) for row in result.images]}
        write_text(file, json.dumps(content))
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = CellResult(CellRow(**content["cell"]), tuple(ImageRow(**row) for row in content["images"]))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{file}: not a readable cell ({error}); remove it to have it made anew") from error
    # which cell is whose control depends on the experiment, not on the cell
    return CellResult(replace(found.cell, control=control, role=cell.role), found.images)


def _evaluated(cell: Cell) -> CellResult:
    history = ObservedRounds(cell.plan, cell.adversary, cell.victims, cell.snapshot, cell.oracles)
    victims = history.victims()
    outcome, detail = _outcome(cell, history[victims[0].observation], victims)
    if outcome not in ("measured", "ciphertext"):
        return CellResult(_row(cell, outcome, detail, None), ())
    if outcome == "ciphertext":
        run = run_prior_guess(history, victims)
    else:
        seed = seed_for("attack", cell.plan.seed, cell.snapshot, cell.kind)
        run = run_attack(cell.attack_spec, history, victims, cell.plan.workspace, seed)
    if run.crash:
        return CellResult(_row(cell, "crashed", run.crash, None), ())
    try:
        scored = [*shares_recovered(run, history, victims), *key_scores(run, history, victims)]
    except MalformedKeyClaim as error:
        return CellResult(_row(cell, "crashed", f"key claims: {error}", None), ())
    images = score_run(cell.identifier, run, cell.plan, history, victims, cell.kind)
    return CellResult(_row(cell, outcome, detail, run, scored), tuple(images))


def _outcome(cell: Cell, observation: Observation, victims: list[Victim]) -> tuple[Outcome, str]:
    """What becomes of the cell before anything runs, and why; ("measured", "") where the attack shall run."""
    view, attack = observation.view, cell.attack
    if isinstance(view, Nothing):
        return "not applicable", view.reason
    unfit = _not_made_for(cell, view) or missing_need(attack, observation, apart_from=READS_UPDATES)
    if unfit is not None:
        return "not applicable", unfit
    if isinstance(view, Ciphertext) and attack.needs & READS_UPDATES:
        audit = earned_shortcut_of(cell.plan)
        if not audit.passed:
            return "not evaluated", f"the ciphertext shortcut was refused: {audit.reason}"
        return "ciphertext", f"{view.scheme} ciphertext without a key: {audit.reason}"
    missing = missing_need(attack, observation)
    if missing is not None:
        return "not applicable", missing
    updates = view.after if isinstance(view, PlainModel | SparseLayers) else None
    if updates is not None and victims[0].sender not in updates and not attack.reads_aggregate:
        return "not applicable", "this position reads no individual update"
    unknown = view.hidden_by - attack.undoes if isinstance(view, PlainModel | SparseLayers | KeyedImage) else None
    if unknown and cell.adversary.knowledge is Knowledge.ADAPTIVE:
        return "not evaluated", f"{attack.name} does not know how to undo {', '.join(sorted(unknown))}"
    return "measured", ""


def _not_made_for(cell: Cell, view: View) -> str | None:
    """Why an attack on particular schemes has nothing to do here: what it reads is hidden by another; else None."""
    made_for = cell.attack.made_for
    in_clear = isinstance(view, PlainModel | KeyedImage) and not view.hidden_by
    if in_clear or not made_for or made_for & set(cell.plan.defense.scheme()):
        return None
    return f"made for {', '.join(sorted(made_for))}"


def _row(
    cell: Cell, outcome: Outcome, detail: str, run: AttackRun | None, scored: Sequence[Mapping[str, float]] = ()
) -> CellRow:
    """The row of a cell; `scored` are further findings by victim, which the truth was needed for."""
    assert outcome in get_args(Outcome), "outcomes are the schema's"
    plan, reconstructions = cell.plan, run.reconstructions if run else ()
    objectives = [item.objective for item in reconstructions if item.objective is not None]
    by_victim = [*(item.findings for item in reconstructions), *scored]
    findings = {}
    for name in sorted({name for found in by_victim for name in found}):
        values = [found[name] for found in by_victim if name in found]
        findings[name] = sum(values) / len(values)
    notes = sorted({item.note for item in reconstructions if item.note})
    return CellRow(
        cell=cell.identifier,
        training=plan.identifier,
        task=plan.task,
        algorithm=plan.algorithm.label,
        defense=plan.defense_spec.name,
        position=str(cell.adversary.position),
        knowledge=str(cell.adversary.knowledge),
        attack=cell.attack.name,
        snapshot=cell.snapshot,
        regime=cell.regime,
        victim_kind=cell.kind,
        seed=plan.seed,
        outcome=outcome,
        detail="; ".join([detail, *notes]) if detail else "; ".join(notes),
        oracles=", ".join(str(oracle) for oracle in cell.oracles),
        control="",
        role=cell.role,
        objective=sum(objectives) / len(objectives) if objectives else None,
        evaluations=sum(item.evaluations for item in reconstructions),
        seconds=sum(item.seconds for item in reconstructions),
        findings=json.dumps(findings, sort_keys=True),
        lpips_reason=perceptual_metrics(plan.workspace.lpips_trunk).lpips_reason if run else "",
    )


@lru_cache(maxsize=1)
def _trunk_digest(trunk: Path | None) -> str:
    """Which weights LPIPS is computed with, looked up once a process."""
    try:
        return load_trunk(trunk, download=False).sha256
    except TrunkUnavailableError:
        return "none"
