"""Labels that need not be searched for: granted by an oracle, or read from the update itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.base import History
from attacks.engine.gradients import Gradients
from attacks.engine.labels import label_counts, last_layer_labels
from attacks.sharing import plain_model
from federation.threat import Observation, Oracle, Victim


@dataclass(frozen=True)
class KnownLabels:
    """Labels of some victims' images.

    Attributes:
        one_hot: float [V, m, K].
        findings: by victim, what the attacker can tell of how sure they are.
    """

    one_hot: Tensor
    findings: tuple[Mapping[str, float], ...]


def granted_labels(history: History, victims: Sequence[Victim], images: int) -> KnownLabels | None:
    """The labels that an oracle grants, of all victims and of each of their images; else None."""
    granted = [history[victim.observation].oracles.get(Oracle.LABELS) for victim in victims]
    labels = [each for each in granted if each is not None and len(each) == images]
    if len(labels) < len(victims):
        return None
    return _known(torch.stack(labels), history[victims[0].observation].network.class_count)


def labels_in_updates(
    history: History, victims: Sequence[Victim], updates: Gradients, images: int
) -> KnownLabels | None:
    """The labels that updates state: of a single image exactly, of more as counts of each class, in class order.

    Args:
        history: what was observed.
        victims: whose updates they are; all were trained from the same weights.
        updates: mean gradients by parameter name, [V, *parameter shape].
        images: how many labels are wanted of each. Where an update was made of more images, they are divided as those.

    Returns:
        None where the last layer tells nothing (see `attacks.engine.labels`).
    """
    first = history[victims[0].observation]
    classes = first.network.class_count
    if all(made_from(history[victim.observation], victim) == 1 for victim in victims) and images == 1:
        single = last_layer_labels(updates, classes)
        return None if single is None else _known(single[:, None], classes)
    counted = label_counts(updates, plain_model(first).before, first.facts.learning_rate * first.facts.steps, images)
    if counted is None:
        return None
    findings = tuple({"rounding of label counts": float(rounding)} for rounding in counted.rounding)
    return KnownLabels(F.one_hot(counted.labels(), classes).float(), findings)


def made_from(observation: Observation, victim: Victim) -> int:
    """How many images the update was made from."""
    facts = observation.facts
    return min(facts.steps * facts.batch_size, facts.sample_counts[victim.sender])


def _known(labels: Tensor, classes: int) -> KnownLabels:
    return KnownLabels(F.one_hot(labels, classes).float(), ({},) * len(labels))
