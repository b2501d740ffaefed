"""What all gradient-matching attacks share: updates to gradients, labels, restarts, and one engine call a model."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from attacks.base import Attack, Budget, History, Need, Reconstruction, TracePoint, prior_guess
from attacks.engine.candidates import Layout
from attacks.engine.chain import single_gradient
from attacks.engine.evaluation import chunk_width
from attacks.engine.gradients import SingleGradient, repeat_for_restarts
from attacks.engine.local_steps import LocalSteps
from attacks.engine.loop import match_gradients
from attacks.engine.matches import Matches, best_restart
from attacks.engine.objectives import Objective
from attacks.engine.optimisers import Optimiser
from attacks.engine.priors import Constraint, Prior
from attacks.known_labels import KnownLabels, granted_labels, labels_in_updates
from attacks.sharing import plain_model, sharing_weights
from attacks.tracing import Recorder
from federation.normalisation import Normalisation
from federation.threat import Observation, Victim
from federation.weights import Kind

Gradients = dict[str, Tensor]

BatchNorm: TypeAlias = Literal["batch statistics", "running statistics"]
"""What batch norm normalises by: those of the batch (a network in training mode), or the weights' own (evaluation mode)."""


@dataclass(frozen=True)
class GradientMatching(Attack):
    """Find images whose gradient at the observed weights is the observed update over rate and number of steps.

    A subclass says what to minimise and how; this class turns observations into targets, runs all victims and restarts
    that share the weights at the start of the round in one call on the budget's device, and picks each victim's restart by
    its own objective. An update of several local steps is treated as their mean gradient. Labels that no oracle grants are
    read from the update where it states them, and optimised with the images where it does not.

    Attributes:
        batch_norm: what the clients' batch norm normalises by while they train; Keyhole's own train in training mode.
    """

    batch_norm: BatchNorm = "batch statistics"

    needs: ClassVar[frozenset[Need]] = frozenset({Need.PLAIN_MODEL})

    @abstractmethod
    def objective(self) -> Objective:
        """The distance of updates."""

    @abstractmethod
    def optimiser(self) -> Optimiser:
        """How to minimise it."""

    def priors(self) -> Sequence[Prior]:
        """Penalties on the images; none by default."""
        return ()

    def constraint(self, normalisation: Normalisation) -> Constraint | None:
        """Where the images must stay; nowhere in particular by default."""
        return None

    def candidate_images(self, observation: Observation, victim: Victim) -> int:
        """How many images a candidate has: as many as are to be reconstructed."""
        return victim.image_count

    def target(self, observation: Observation, victim: Victim) -> Gradients:
        """What candidates are compared with: the mean gradient of the victim's steps, by parameter name."""
        return mean_gradient(observation, victim.sender)

    def simulated(self, step: SingleGradient, observation: Observation, victim: Victim) -> SingleGradient | LocalSteps:
        """The client's training as the attack simulates it, from a single step of it: that step."""
        return step

    def known_labels(
        self, history: History, victims: Sequence[Victim], updates: Gradients, images: int
    ) -> KnownLabels | None:
        """The labels of victims that share a call, which are not optimised then: granted, or read from their updates.

        Args:
            history: what was observed.
            victims: those of the call.
            updates: their mean gradients, [V, ...] by name.
            images: of a candidate.
        """
        return granted_labels(history, victims, images) or labels_in_updates(history, victims, updates, images)

    def reconstruct(
        self, history: History, victims: Sequence[Victim], *, generator: torch.Generator, budget: Budget
    ) -> list[Reconstruction]:
        """See `Attack.reconstruct`."""
        found: dict[str, Reconstruction] = {}
        for group in sharing_weights(history, victims, self._trained_alike):
            found |= self._reconstruct_group(history, group, generator, budget)
        return [found[victim.identifier] for victim in victims]

    def _reconstruct_group(
        self, history: History, victims: Sequence[Victim], generator: torch.Generator, budget: Budget
    ) -> dict[str, Reconstruction]:
        observation, classes = history[victims[0].observation], history[victims[0].observation].network.class_count
        images = self.candidate_images(observation, victims[0])
        shape = (images, *observation.network.image_shape)
        targets = [self.target(history[victim.observation], victim) for victim in victims]
        stacked = {name: torch.stack([target[name] for target in targets]) for name in targets[0]}
        updates = {name: stacked[name] for name in _parameters(observation)}
        known = self.known_labels(history, victims, updates, images)
        update = self.simulated(self._step(observation, budget.device), observation, victims[0])
        target = repeat_for_restarts(
            {name: value.to(budget.device) for name, value in stacked.items()}, budget.restarts
        )
        normalisation = Normalisation(observation.mean, observation.deviation)
        recorder = Recorder(budget.trace_every)
        start = time.perf_counter()
        matches = match_gradients(
            update,
            target,
            shape=shape,
            classes=classes,
            normalisation=normalisation,
            objective=self.objective(),
            optimiser=self.optimiser(),
            evaluations=budget.evaluations,
            generator=generator,
            labels=None if known is None else known.one_hot.repeat_interleave(budget.restarts, dim=0),
            priors=self.priors(),
            constraint=self.constraint(normalisation),
            width=_width(update, Layout(shape, classes, known is None), target),
            trace=recorder if budget.trace_every else None,
        )
        best = best_restart(matches, len(victims), budget.restarts).to("cpu")
        seconds = (time.perf_counter() - start) / len(victims)
        return {
            victim.identifier: _reconstruction(
                history[victim.observation],
                victim,
                best,
                index,
                seconds,
                recorder.trace(matches, index * budget.restarts, budget.restarts),
                {} if known is None else known.findings[index],
            )
            for index, victim in enumerate(victims)
        }

    def _trained_alike(self, observation: Observation, victim: Victim) -> Hashable:
        """What victims of one call have in common besides their weights: how they were trained, and on how many images."""
        facts = observation.facts
        return (
            *(self.candidate_images(observation, victim), victim.image_count),
            *(facts.learning_rate, facts.batch_size, facts.steps, facts.sample_counts[victim.sender]),
        )

    def _step(self, observation: Observation, device: str) -> SingleGradient:
        """A single step of the client."""
        before = {name: tensor.to(device) for name, tensor in plain_model(observation).before.items()}
        names = set(_parameters(observation))
        return single_gradient(
            observation.network.build().to(device),
            {name: tensor for name, tensor in before.items() if name in names},
            {name: tensor for name, tensor in before.items() if name not in names},
            batch_statistics=self.batch_norm == "batch statistics",
        )


def _parameters(observation: Observation) -> list[str]:
    return [spec.name for spec in observation.network.layout if spec.kind is Kind.PARAMETER]


def mean_gradient(observation: Observation, sender: str) -> Gradients:
    """The mean gradient over the local steps: (before - after) / (rate * steps), by parameter name."""
    model, facts = plain_model(observation), observation.facts
    scale = 1 / (facts.learning_rate * facts.steps)
    return {name: (model.before[name] - model.after[sender][name]) * scale for name in _parameters(observation)}


def _width(update: SingleGradient | LocalSteps, layout: Layout, target: Gradients) -> int | None:
    """How many trials to evaluate at once; the engine's own choice for a single step, less where more are unrolled."""
    if update.steps == 1:
        return None
    some = next(iter(target.values()))
    return max(1, chunk_width(len(some) * update.steps, layout, target, some.device) // update.steps)


def _reconstruction(
    observation: Observation,
    victim: Victim,
    best: Matches,
    index: int,
    seconds: float,
    trace: tuple[TracePoint, ...],
    findings: Mapping[str, float],
) -> Reconstruction:
    if not bool(best.signal[index]):
        return prior_guess(observation, victim)
    objective = float(best.objective[index])
    note = "met values that were not finite and stopped there" if bool(best.failed[index]) else ""
    return Reconstruction(
        images=best.images[index][: victim.image_count],
        labels=best.labels[index].argmax(dim=1)[: victim.image_count],
        objective=objective if math.isfinite(objective) else None,
        evaluations=int(best.evaluations[index]),
        seconds=seconds,
        note=note,
        findings=findings,
        trace=tuple(replace(point, images=point.images[: victim.image_count]) for point in trace),
    )
