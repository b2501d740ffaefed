"""The input of a layer from its gradient, layer by layer, without a search (Gusain 2021, eq. 2.2; R-GAP)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.base import ATTACKS, Attack, Budget, History, Need, Reconstruction, prior_guess
from attacks.engine.gradients import SingleGradient, select_trials
from attacks.engine.labels import last_layer_labels
from attacks.engine.objectives import has_signal, squared_distance
from attacks.inversion.chain import Chain, invertible_chain
from attacks.inversion.layerwise import Effort, invert
from attacks.matching import mean_gradient
from attacks.sharing import plain_model, sharing_weights
from federation.errors import UsageError
from federation.normalisation import Normalisation
from federation.threat import Observation, Victim
from federation.weights import Kind, TensorSpec

_CHUNK_VALUES = 2**22
"""Values that the columns of one layer may have over the images of a chunk, so that they stay near the processor."""

_UNEXPLAINED = 0.1
"""Residual of a layer's equations, relative to what is known, from which the note says so."""


@ATTACKS.register("analytic")
@dataclass(frozen=True)
class Analytic(Attack):
    """Solve for what every layer read, from the last to the first; what the first one read is the image.

    The input of a fully connected layer with a bias is its weight's gradient over its bias's (Gusain 2021, eq. 2.2,
    corrected). Below it, an activation that has an inverse gives a layer's output, and the input follows from two sets of
    linear equations: that the layer makes this output of it, and the gradient of the layer's weight (Zhu and Blaschko
    2021, "R-GAP", eq. 6 and 8), by least squares. For single images and networks that are chains of convolutions, sigmoid,
    tanh or ReLU, average pooling and fully connected layers; what a ReLU or a pool after an activation swallows is missing
    from the equations, so that it can fall short there. Its objective is the squared distance of the reconstruction's own
    gradient to the observed one, over the latter's squared norm; where that is 1 or more, nothing has been found.

    An iteration of least squares in every layer costs what a gradient evaluation does, and is counted as one.

    Attributes:
        tolerance: of least squares in hidden layers, whose errors all layers below magnify (relative, squared).
        image_tolerance: of least squares in the first layer.
        sweeps: how often a layer is linearised anew where pooling mixes what an activation made.
    """

    tolerance: float = 1e-10
    image_tolerance: float = 1e-8
    sweeps: int = 8

    name: ClassVar[str] = "analytic"
    reference: ClassVar[str] = "Gusain 2021, eq. 2.2; Zhu and Blaschko, R-GAP, ICLR 2021"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PLAIN_MODEL, Need.SINGLE_STEP, Need.SINGLE_IMAGE})

    def __post_init__(self) -> None:
        if not (0 < self.tolerance < 1 and 0 < self.image_tolerance < 1 and self.sweeps >= 1):
            raise UsageError(
                f"attack 'analytic': tolerances {self.tolerance} and {self.image_tolerance} must lie between 0 and 1, "
                f"and {self.sweeps} sweeps be 1 or more"
            )

    def lacks(self, observation: Observation) -> str | None:
        """A network that it can take apart: the first operation that it cannot undo, by the name of its node."""
        try:
            invertible_chain(observation.network)
        except UsageError as error:
            return f"a network that can be inverted layer by layer: {error}"
        update = {spec.name: torch.zeros(1, *spec.shape) for spec in _parameters(observation)}
        if last_layer_labels(update, observation.network.class_count) is None:
            return "a last layer whose gradient tells the label"
        return None

    def reconstruct(
        self, history: History, victims: Sequence[Victim], *, generator: torch.Generator, budget: Budget
    ) -> list[Reconstruction]:
        """See `Attack.reconstruct`. Nothing is drawn: every restart would be the same, and only one is made."""
        found: dict[str, Reconstruction] = {}
        for group in sharing_weights(history, victims):
            found |= self._reconstruct_group(history, group, budget)
        return [found[victim.identifier] for victim in victims]

    def _reconstruct_group(
        self, history: History, victims: Sequence[Victim], budget: Budget
    ) -> dict[str, Reconstruction]:
        observation = history[victims[0].observation]
        start = time.perf_counter()
        updates = [mean_gradient(history[victim.observation], victim.sender) for victim in victims]
        stacked = {name: torch.stack([update[name] for update in updates]) for name in updates[0]}
        (tried,) = has_signal(stacked).nonzero(as_tuple=True)
        trials = _Trials(observation, budget.device)
        solved: dict[int, _Solved] = {}
        for chunk in tried.split(_width(trials.chain)):
            if len(chunk):
                gradients = {name: value.to(budget.device) for name, value in select_trials(stacked, chunk).items()}
                solved |= zip(chunk.tolist(), trials.solve(gradients, self._effort(budget)), strict=True)
        seconds = (time.perf_counter() - start) / len(victims)
        return {
            victim.identifier: replace(
                _claimed(history[victim.observation], victim, solved.get(place)), seconds=seconds
            )
            for place, victim in enumerate(victims)
        }

    def _effort(self, budget: Budget) -> Effort:
        """What is left of the budget once the reconstruction's own gradient was evaluated."""
        return Effort(budget.evaluations - 1, self.tolerance, self.image_tolerance, self.sweeps)


@dataclass(frozen=True)
class _Solved:
    """One image [C, H, W] in [0, 1] with its label, what it leaves of the update, and how it was come by."""

    image: Tensor
    label: int
    objective: float
    evaluations: int
    residuals: Mapping[str, float]


class _Trials:
    """Updates of single images that were made from the weights of one observation."""

    def __init__(self, observation: Observation, device: str) -> None:
        before = {name: tensor.to(device) for name, tensor in plain_model(observation).before.items()}
        self.chain = invertible_chain(observation.network)
        self._weights = {spec.name: before.pop(spec.name) for spec in _parameters(observation)}
        self._classes = observation.network.class_count
        self._normalisation = Normalisation(observation.mean, observation.deviation)
        self._step = SingleGradient(
            observation.network.build().to(device), self._weights, before, batch_statistics=True
        )

    def solve(self, gradients: Mapping[str, Tensor], effort: Effort) -> list[_Solved]:
        """One solution for each of the gradients, [T, ...] by name."""
        labels = last_layer_labels(gradients, self._classes)
        assert labels is not None, "the chain ends in linear layers"
        inverted = invert(self.chain, self._weights, gradients, effort)
        images = self._normalisation.invert(inverted.images.nan_to_num())
        one_hot = F.one_hot(labels, self._classes).to(images)[:, None]
        own = self._step(self._normalisation.apply(images)[:, None], one_hot)
        size = squared_distance({name: torch.zeros_like(value) for name, value in gradients.items()}, gradients)
        objective = squared_distance(own, gradients) / size
        residuals = {layer: residual.nan_to_num(nan=math.inf) for layer, residual in inverted.residuals.items()}
        return [
            _Solved(
                images[trial].cpu(),
                int(labels[trial]),
                float(objective[trial]),
                int(inverted.iterations[trial]) + 1,
                {f"residual.{layer}": float(residual[trial]) for layer, residual in residuals.items()},
            )
            for trial in range(len(images))
        ]


def _claimed(observation: Observation, victim: Victim, solved: _Solved | None) -> Reconstruction:
    """The solution, or the prior guess where it explains none of the update."""
    if solved is None:
        return prior_guess(observation, victim)
    if not solved.objective < 1:
        guess = prior_guess(observation, victim)
        return replace(guess, evaluations=solved.evaluations, findings=solved.residuals)
    return Reconstruction(
        images=solved.image[None],
        labels=torch.tensor([solved.label]),
        objective=solved.objective,
        evaluations=solved.evaluations,
        seconds=0.0,
        findings=solved.residuals,
        note=_where_it_fell_short(solved.residuals),
    )


def _where_it_fell_short(residuals: Mapping[str, float]) -> str:
    """The first layer, in the order of solution, whose equations have no common solution; "" where all have one."""
    for finding, residual in residuals.items():
        if residual >= _UNEXPLAINED:
            return f"the equations of {finding.removeprefix('residual.')} leave {residual:.0%} of what is known over"
    return ""


def _parameters(observation: Observation) -> list[TensorSpec]:
    return [spec for spec in observation.network.layout if spec.kind is Kind.PARAMETER]


def _width(chain: Chain) -> int:
    """How many images to solve for at once: from the sizes of the network alone."""
    return max(1, _CHUNK_VALUES // max(layer.column_values for layer in chain.layers))
