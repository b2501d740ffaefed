"""What is kept of an attack's run, whatever tensors it hands over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from attacks.base import Attack, Reconstruction, prior_guess
from benchmark.attack_runs import run_attack
from benchmark.experiment import AttackSpec
from benchmark.harness import training_plans
from benchmark.observations import ObservedRounds
from federation.threat import ADVERSARIES


class SharesLabels(Attack):
    """Hands over labels that are views of one tensor, some of them the same view."""

    name: ClassVar[str] = "shares-labels"

    def reconstruct(self, history: Any, victims: Any, *, generator: Any, budget: Any) -> list[Reconstruction]:
        order = torch.arange(10)
        return [
            Reconstruction(
                prior_guess(history[victim.observation], victim).images,
                labels=order[3][None],
                objective=None,
                evaluations=0,
                seconds=0.0,
            )
            for victim in victims
        ]


def test_labels_that_share_memory_are_kept_like_others(tiny_run: Any, tmp_path: Path) -> None:
    plan = next(iter(training_plans(tiny_run.experiment, tiny_run.workspace)))
    history = ObservedRounds(plan, ADVERSARIES.get("server/oblivious"), plan.victims.probes[0], 0)
    spec = AttackSpec(name=f"{Path(__file__)}:SharesLabels", evaluations=1)
    elsewhere = replace(tiny_run.workspace, directory=tmp_path)  # others count the runs of the one that they share
    run = run_attack(spec, history, history.victims(), elsewhere, seed=0)
    assert not run.crash
    assert [item.labels.tolist() for item in run.reconstructions if item.labels is not None] == [[3]] * 3
