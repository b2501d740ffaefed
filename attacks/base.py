"""What an attack is: what it needs, what it knows how to undo, and what it hands back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from federation.errors import UsageError
from federation.messages import Transcript
from federation.options import build_with_options
from federation.registry import Registry, load_class_from_file
from federation.threat import Ciphertext, KeyedImage, Nothing, Observation, Oracle, PlainModel, SparseLayers, Victim

ATTACKS: Registry[type[Attack]] = Registry("attack", "keyhole.attacks")

History: TypeAlias = Sequence[Observation]
"""Observations over rounds, in order; the harness loads each from disk when it is looked at."""


class Need(StrEnum):
    """What an attack may require of every observation."""

    PLAIN_MODEL = "an update that can be evaluated as a model"
    SPARSE_LAYERS = "sparse keyed layers"
    KEYED_IMAGES = "keyed images and the keyed layers that read them"
    SINGLE_STEP = "updates of a single local step"
    SINGLE_IMAGE = "updates made from a single image"
    AUXILIARY = "auxiliary images"
    TRANSCRIPT = "the envelopes themselves"
    HELD = "the state of the parties that the position holds"
    SCHEME = "the public description of the defense"
    OWN_UPDATE = "the update of a client that the position holds"
    INITIAL_MODEL = "the initial weights"


@dataclass(frozen=True)
class Budget:
    """How much an attack may compute, per victim, and where.

    Attributes:
        evaluations: gradient evaluations for each restart.
        restarts: independent starts; the attack picks among them by its own objective.
        device: where it may compute, as torch calls it. What it is given stands on the processor, its generator too.
        trace_every: evaluations from one point of the trace to the next; 0 for no trace. What an attack returns does
            not depend on it otherwise.
    """

    evaluations: int
    restarts: int = 1
    device: str = "cpu"
    trace_every: int = 0


@dataclass(frozen=True)
class TracePoint:
    """Where the search for one victim's images stood; of several restarts, in the one that was chosen.

    Attributes:
        evaluations: gradient evaluations of that restart so far.
        objective: the attack's own objective there.
        images: float [image_count, C, H, W] in [0, 1] there. The referee scores them; an attack has no truth.
    """

    evaluations: int
    objective: float
    images: Tensor


@dataclass(frozen=True)
class Reconstruction:
    """What an attack claims about one victim.

    Attributes:
        images: float [image_count, C, H, W] in [0, 1].
        labels: int64 [image_count] as the attack believes them, or None.
        objective: the attack's own final objective (lower is better to it), or None where it had no signal.
        evaluations: gradient evaluations spent on this victim.
        seconds: wall-clock seconds spent on this victim (the call's, shared out).
        recovered_weights: true weights that it claims to have recovered, by name.
        findings: further figures by name.
        key_claims: what it claims about keys, by name; the defense scores them. Of keys that move and scale the entries
            of a space: "places.SPACE", integers, which entry stands at each place of what is read (-1: not known), and
            "gains.SPACE", the factor at each of those places (NaN: not known).
        note: in words, what a reader of the row should know (such as that there was no signal).
        trace: the search by rising evaluations, where the budget asks for it and the attack can tell; it ends at what
            is returned.
    """

    images: Tensor
    labels: Tensor | None
    objective: float | None
    evaluations: int
    seconds: float
    recovered_weights: Mapping[str, Tensor] | None = None
    findings: Mapping[str, float] = field(default_factory=dict)
    key_claims: Mapping[str, Tensor] = field(default_factory=dict)
    note: str = ""
    trace: tuple[TracePoint, ...] = ()


class Attack(ABC):
    """An attack: options fixed at construction, one call that reconstructs all victims of a cell.

    A subclass is a frozen dataclass whose fields are its options, decorated with `@ATTACKS.register("name")`.

    Attributes:
        name: as in the registry and in every table.
        reference: the paper that it implements.
        needs: what every observation must offer; the harness checks it before it runs the attack, and hands the attack
            nothing of an observation's optional parts that is not named here.
        undoes: the keyed schemes that it knows how to undo without their key; with any other in place the attack is
            oblivious to it.
        made_for: the schemes, by stage name, that it reads where an update is hidden; empty for any.
        figures_only: whether it reports figures and reconstructs nothing where an update is hidden. It has no positive
            control then: that it finds no image says nothing of the defense.
        reads_aggregate: whether it can do with the released global model alone, where the position reads no update of
            the victim's own.
    """

    name: ClassVar[str]
    reference: ClassVar[str] = ""
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PLAIN_MODEL})
    undoes: ClassVar[frozenset[str]] = frozenset()
    made_for: ClassVar[frozenset[str]] = frozenset()
    figures_only: ClassVar[bool] = False
    reads_aggregate: ClassVar[bool] = False

    @abstractmethod
    def reconstruct(
        self, history: History, victims: Sequence[Victim], *, generator: torch.Generator, budget: Budget
    ) -> list[Reconstruction]:
        """Reconstruct every victim.

        Args:
            history: what the adversary observed.
            victims: which updates or images to reconstruct; all of a cell at once.
            generator: the only source of randomness.
            budget: gradient evaluations and restarts.

        Returns:
            One reconstruction a victim, in the order given.
        """

    def lacks(self, observation: Observation) -> str | None:
        """What the attack finds wanting in an observation apart from its needs, in words; None where it can begin.

        The harness writes "needs ..." in the row then, and does not run the attack. The view may be of any kind.
        """
        return None


READS_UPDATES = frozenset({Need.PLAIN_MODEL, Need.SPARSE_LAYERS})
"""Needs of which ciphertext meets none."""


def missing_need(
    attack: type[Attack] | Attack, observation: Observation, *, apart_from: frozenset[Need] = frozenset()
) -> str | None:
    """The first need of `attack`, apart from some, that `observation` does not meet, in words, or None.

    An attack reads updates, or keyed images if it declares so; never both.
    """
    facts, view = observation.facts, observation.view
    if isinstance(view, KeyedImage) and Need.KEYED_IMAGES not in attack.needs:
        return "needs updates (it reads images)"
    always = dict.fromkeys([Need.TRANSCRIPT, Need.HELD, Need.SCHEME], True)
    met = always | {
        Need.PLAIN_MODEL: isinstance(view, PlainModel),
        Need.SPARSE_LAYERS: isinstance(view, SparseLayers),
        Need.KEYED_IMAGES: isinstance(view, KeyedImage),
        Need.SINGLE_STEP: facts.steps == 1,
        Need.SINGLE_IMAGE: facts.steps == 1 and facts.batch_size == 1,
        Need.AUXILIARY: observation.auxiliary is not None,
        Need.OWN_UPDATE: bool(observation.own_updates),
        Need.INITIAL_MODEL: Oracle.INITIAL_MODEL in observation.oracles,
    }
    unmet = sorted(need.value for need in attack.needs - apart_from if not met[need])
    if not unmet:
        lacking = attack.lacks(observation) if isinstance(attack, Attack) else None
        return None if lacking is None else f"needs {lacking}"
    seen = {Ciphertext: "ciphertext", Nothing: "nothing"}.get(type(view), "something else")
    return f"needs {unmet[0]}" + (f" (it reads {seen})" if "model" in unmet[0] or "layers" in unmet[0] else "")


def restricted(observation: Observation, needs: frozenset[Need]) -> Observation:
    """The observation with only those of its optional parts that an attack declared that it needs.

    What an attack cannot see cannot change what it does, so that one run of it serves every adversary to whom the rest
    looks the same.
    """
    return replace(
        observation,
        transcript=observation.transcript if Need.TRANSCRIPT in needs else Transcript(),
        held=observation.held if Need.HELD in needs else {},
        scheme=observation.scheme if Need.SCHEME in needs else {},
        auxiliary=observation.auxiliary if Need.AUXILIARY in needs else None,
        own_updates=observation.own_updates if Need.OWN_UPDATE in needs else {},
    )


def prior_guess(observation: Observation, victim: Victim) -> Reconstruction:
    """What remains without any signal: the mean auxiliary image where there is one, else uniform grey."""
    if observation.auxiliary is not None:
        # from the 8-bit values themselves, so that it is the mean-image floor to the last bit
        image = ((observation.auxiliary.pixels.double() * 255).round() / 255).mean(dim=0)
    else:
        image = torch.full(observation.network.image_shape, 0.5)
    images = image.expand(victim.image_count, *image.shape).clone()
    return Reconstruction(images, None, None, evaluations=0, seconds=0.0, note="no signal: the prior guess")


def build_attack(reference: str, options: Mapping[str, object] | None = None) -> Attack:
    """The attack that `reference` names, with its options checked.

    Args:
        reference: a registered name, or `path/to/file.py:ClassName`.
        options: values for the attack's fields.

    Raises:
        UsageError: for unknown names (with near matches) and options that do not exist or fit.
    """
    attack_class: Any = load_class_from_file(reference) if ".py:" in reference else ATTACKS.get(reference)
    if not isinstance(attack_class, type) or not issubclass(attack_class, Attack):
        raise UsageError(f"{reference} is not an attack: it does not derive from attacks.base.Attack")
    lacking = sorted(attack_class.__abstractmethods__ | ({"name"} - set(dir(attack_class))))
    if lacking:
        raise UsageError(f"{reference} is not a whole attack: it lacks {', '.join(lacking)}")
    built: Attack = build_with_options(attack_class, options or {}, f"attack {reference!r}")
    return built
