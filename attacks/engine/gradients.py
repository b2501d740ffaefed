"""From candidate images and labels to the update that a client would have shared."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, replace_all_batch_norm_modules_, vmap
from torch.nn import functional as F

from federation.errors import UsageError

Gradients = Mapping[str, Tensor]
"""Parameter name -> [T, *parameter shape]: one update per trial."""


class CandidateUpdate(Protocol):
    """The client's training as the attacker simulates it, differentiable with respect to images and labels."""

    def __call__(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Updates [T, *parameter shape] by name, of images [T, m, C, H, W] (normalised) and soft labels [T, m, K]."""
        ...


class SingleGradient:
    """The gradient of the mean cross-entropy of one batch at shared weights: one local step.

    Args:
        model: any classifier; it is copied, so that neither its mode nor its buffers change.
        parameters: the shared weights, by the model's names, each [*parameter shape].
        buffers: running statistics and the like; the model's own where None.
        observed: the names to differentiate; all of `parameters` where None.
        batch_statistics: normalise by the statistics of each trial's own batch (a client in training mode) instead of
            the running ones. Dropout is off either way: the attacker cannot know its mask.

    Attributes:
        weights: the shared weights that are differentiated, by name.
        steps: how many local steps are simulated: 1.

    Raises:
        UsageError: for a name that the model lacks, or a parameter of the model that is missing.
    """

    steps = 1

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor] | None = None,
        *,
        observed: Iterable[str] | None = None,
        batch_statistics: bool = False,
    ) -> None:
        own = {name for name, _ in model.named_parameters()}
        if own != set(parameters):
            raise UsageError(
                f"the weights do not fit the model: missing {sorted(own - set(parameters))}, "
                f"unknown {sorted(set(parameters) - own)}"
            )
        names = set(own) if observed is None else set(observed)
        if names - own:
            raise UsageError(f"the update names {sorted(names - own)}, which are not parameters of the model")
        self._model = copy.deepcopy(model).eval()
        if batch_statistics:
            replace_all_batch_norm_modules_(self._model)
        kept_buffers = {name for name, _ in self._model.named_buffers()}
        fixed = {name: value.detach() for name, value in (buffers or {}).items() if name in kept_buffers}
        self.weights = {name: value.detach() for name, value in parameters.items() if name in names}
        self._fixed = fixed | {name: value.detach() for name, value in parameters.items() if name not in names}

    def __call__(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Gradients [T, *parameter shape] by name, of images [T, m, C, H, W] and soft labels [T, m, K]."""
        return vmap(grad(self._loss), in_dims=(None, 0, 0))(self.weights, images, labels)

    def at(self, weights: Gradients, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The same at weights of each trial's own, [T, *parameter shape] by name."""
        return vmap(grad(self._loss))(dict(weights), images, labels)

    def _loss(self, observed: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        logits = functional_call(self._model, {**self._fixed, **observed}, (images,))
        return F.cross_entropy(logits, labels)


def repeat_for_restarts(gradients: Gradients, restarts: int) -> dict[str, Tensor]:
    """Each victim's update `restarts` times in a row: [V, ...] -> [V * restarts, ...]."""
    return {name: value.repeat_interleave(restarts, dim=0) for name, value in gradients.items()}


def select_trials(gradients: Gradients, trials: Tensor) -> dict[str, Tensor]:
    """The updates of the trials with the given indices [n]."""
    return {name: value[trials] for name, value in gradients.items()}


def trial_count(gradients: Gradients) -> int:
    """T, the leading size that all tensors share; raises UsageError where there are none or they differ."""
    sizes = {value.shape[0] if value.dim() else None for value in gradients.values()}
    if len(sizes) != 1 or None in sizes:
        raise UsageError("the target update needs tensors [T, ...] that share their leading size T")
    return int(torch.as_tensor(sizes.pop()))
