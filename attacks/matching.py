"""What all gradient-matching attacks share: updates to gradients, labels, restarts, and one engine call a model."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.base import Attack, Budget, History, Need, Reconstruction, prior_guess
from attacks.engine.gradients import SingleGradient, repeat_for_restarts
from attacks.engine.labels import last_layer_labels
from attacks.engine.loop import match_gradients
from attacks.engine.matches import Matches, best_restart
from attacks.engine.objectives import Objective
from attacks.engine.optimisers import Optimiser
from attacks.engine.priors import Constraint, Prior
from federation.normalisation import Normalisation
from federation.threat import Observation, Oracle, PlainModel, Victim
from federation.weights import Kind, Weights

Gradients = dict[str, Tensor]


class GradientMatching(Attack):
    """Find images whose gradient at the observed weights is the observed update over rate and number of steps.

    A subclass says what to minimise and how; this class turns observations into targets, runs all victims and restarts
    that share the weights at the start of the round in one call on the budget's device, and picks each victim's restart by
    its own objective. An update of several local steps is treated as their mean gradient.
    """

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

    def reconstruct(
        self, history: History, victims: Sequence[Victim], *, generator: torch.Generator, budget: Budget
    ) -> list[Reconstruction]:
        """See `Attack.reconstruct`."""
        found: dict[str, Reconstruction] = {}
        for group in _sharing_weights(history, victims):
            found |= self._reconstruct_group(history, group, generator, budget)
        return [found[victim.identifier] for victim in victims]

    def _reconstruct_group(
        self, history: History, victims: Sequence[Victim], generator: torch.Generator, budget: Budget
    ) -> dict[str, Reconstruction]:
        observation, count = history[victims[0].observation], victims[0].image_count
        classes = observation.network.class_count
        gradients = [_gradient(history[victim.observation], victim.sender) for victim in victims]
        target = {name: torch.stack([gradient[name] for gradient in gradients]) for name in gradients[0]}
        labels = _known_labels(history, victims, target, classes)
        normalisation = Normalisation(observation.mean, observation.deviation)
        start = time.perf_counter()
        matches = match_gradients(
            _simulated_step(observation, budget.device),
            repeat_for_restarts({name: value.to(budget.device) for name, value in target.items()}, budget.restarts),
            shape=(count, *observation.network.image_shape),
            classes=classes,
            normalisation=normalisation,
            objective=self.objective(),
            optimiser=self.optimiser(),
            evaluations=budget.evaluations,
            generator=generator,
            labels=None if labels is None else labels.repeat_interleave(budget.restarts, dim=0),
            priors=self.priors(),
            constraint=self.constraint(normalisation),
        )
        best = best_restart(matches, len(victims), budget.restarts).to("cpu")
        seconds = (time.perf_counter() - start) / len(victims)
        return {
            victim.identifier: _reconstruction(history[victim.observation], victim, best, index, seconds)
            for index, victim in enumerate(victims)
        }


def _sharing_weights(history: History, victims: Sequence[Victim]) -> list[list[Victim]]:
    """The victims, grouped by equal weights at the start of the round and equal image counts."""
    groups: list[tuple[Weights, list[Victim]]] = []
    for victim in victims:
        before = _model_of(history[victim.observation]).before
        for known, group in groups:
            same_count = group[0].image_count == victim.image_count
            if same_count and all(torch.equal(before[name], known[name]) for name in known):
                group.append(victim)
                break
        else:
            groups.append((before, [victim]))
    return [group for _, group in groups]


def _model_of(observation: Observation) -> PlainModel:
    view = observation.view
    assert isinstance(view, PlainModel), "the harness checked what this attack needs"
    return view


def _parameters(observation: Observation) -> list[str]:
    return [spec.name for spec in observation.network.layout if spec.kind is Kind.PARAMETER]


def _gradient(observation: Observation, sender: str) -> Gradients:
    """The mean gradient over the local steps: (before - after) / (rate * steps), by parameter name."""
    model, facts = _model_of(observation), observation.facts
    scale = 1 / (facts.learning_rate * facts.steps)
    return {name: (model.before[name] - model.after[sender][name]) * scale for name in _parameters(observation)}


def _simulated_step(observation: Observation, device: str) -> SingleGradient:
    before = {name: tensor.to(device) for name, tensor in _model_of(observation).before.items()}
    names = set(_parameters(observation))
    # clients train in training mode, where batch norm uses the statistics of the batch
    return SingleGradient(
        observation.network.build().to(device),
        {name: tensor for name, tensor in before.items() if name in names},
        {name: tensor for name, tensor in before.items() if name not in names},
        batch_statistics=True,
    )


def _known_labels(history: History, victims: Sequence[Victim], target: Gradients, classes: int) -> Tensor | None:
    """One-hot labels [V, m, K]: granted by an oracle, or read from the update of a single image; else None."""
    granted = [history[victim.observation].oracles.get(Oracle.LABELS) for victim in victims]
    known = [labels for labels in granted if labels is not None]
    if len(known) == len(victims):
        return F.one_hot(torch.stack(known), classes).float()
    if not all(_made_from_one_image(history[victim.observation], victim) for victim in victims):
        return None
    labels = last_layer_labels(target, classes)
    return None if labels is None else F.one_hot(labels, classes).float()[:, None]


def _made_from_one_image(observation: Observation, victim: Victim) -> bool:
    facts = observation.facts
    return min(facts.steps * facts.batch_size, facts.sample_counts[victim.sender]) == 1


def _reconstruction(
    observation: Observation, victim: Victim, best: Matches, index: int, seconds: float
) -> Reconstruction:
    if not bool(best.signal[index]):
        return prior_guess(observation, victim)
    objective = float(best.objective[index])
    note = "met values that were not finite and stopped there" if bool(best.failed[index]) else ""
    return Reconstruction(
        images=best.images[index],
        labels=best.labels[index].argmax(dim=1),
        objective=objective if math.isfinite(objective) else None,
        evaluations=int(best.evaluations[index]),
        seconds=seconds,
        note=note,
    )
