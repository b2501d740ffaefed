"""Attacks that find channel keys, undo them and invert what is left: what they share.

Weights that were keyed alike are in one frame. What is found of a frame's keys, from any of the history's observations,
opens all of them that are in it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch

from attacks.adaptive.monomial import ClaimedKeys
from attacks.adaptive.recovery import Recovery, WeightRecovery
from attacks.base import Budget, History, Need, Reconstruction, restricted
from federation.channels import ChannelSpace
from federation.threat import AGGREGATE, Observation, PlainModel, Victim
from federation.weights import Kind, Weights

STAGE = "keynet"
"""The name of channel keys in the description of a defense and in what hides a view."""

_OTHER_FRAME = 0.5
"""An update that moves the weights by more of their own norm than this was keyed otherwise than they."""


@dataclass(frozen=True)
class KeyRules:
    """The public options of channel keys that decide what they do to weights.

    Attributes:
        kind: "monomial" keys move and scale channels; others mix them.
        gain_range: s; gains are log-uniform on [1/s, s].
        outputs: what is done to the class outputs.
        rotation: rounds after which keys change; None: never.
        per_client: whether every client has keys of its own.
    """

    kind: str
    gain_range: float
    outputs: Literal["identity", "permutation", "monomial"]
    rotation: int | None
    per_client: bool

    @classmethod
    def known_to(cls, observation: Observation) -> KeyRules | None:
        """The rules as the observation describes them; None where it describes another defense or none."""
        options = observation.scheme.get(STAGE)
        if options is None:
            return None
        rotation, outputs = options["rotation"], options["outputs"]
        assert outputs in ("identity", "permutation", "monomial"), "the scheme's own options"
        return cls(
            kind=str(options["kind"]),
            gain_range=float(str(options["gain_range"])),
            outputs=outputs,
            rotation=None if rotation is None else int(str(rotation)),
            per_client=bool(options["per_client"]),
        )

    @property
    def factors(self) -> int:
        """How many keys are applied one after the other, at most: where keys change, a veil upon the first."""
        return 1 if self.rotation is None and not self.per_client else 2

    def scales(self, space: ChannelSpace) -> bool:
        """Whether the channels of a space have gains."""
        return self.gain_range > 1 and (
            space.role == "hidden" or (space.role == "output" and self.outputs == "monomial")
        )

    def frame(self, observation: Observation) -> Hashable:
        """The same for observations of which it is public that they were keyed alike."""
        epoch = 0 if self.rotation is None else observation.round // self.rotation
        return epoch, tuple(in_frame(observation)) if self.per_client else ()


@dataclass(frozen=True)
class Found:
    """What was found of a frame.

    Attributes:
        keys: the keys; None where none were found.
        findings: figures by name.
        note: in words, what a reader of the row should know: where there are no keys, why.
    """

    keys: ClaimedKeys | None
    findings: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class FrameRecovery(WeightRecovery):
    """Find the keys of every frame, undo them, and hand what is left to a gradient inversion.

    A subclass says how keys are found. An adversary to whom no scheme is known inverts what it reads as it is.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.PLAIN_MODEL, Need.SCHEME})
    undoes: ClassVar[frozenset[str]] = frozenset({STAGE})
    made_for: ClassVar[frozenset[str]] = frozenset({STAGE})

    @abstractmethod
    def find(self, frame: Sequence[Observation], rules: KeyRules) -> Found:
        """The keys of one frame, from the observations in it."""

    def reconstruct(
        self, history: History, victims: Sequence[Victim], *, generator: torch.Generator, budget: Budget
    ) -> list[Reconstruction]:
        """See `Attack.reconstruct`."""
        seen = [restricted(observation, self.needs) for observation in history]
        found = self._found(seen)
        opened = [_opened(observation, what) for observation, what in zip(seen, found, strict=True)]
        items = super().reconstruct(opened, victims, generator=generator, budget=budget)
        return [
            _claimed(item, found[victim.observation], seen[victim.observation])
            for item, victim in zip(items, victims, strict=True)
        ]

    def recover_hidden(self, observation: Observation, victim: Victim) -> Recovery:
        """Nothing: what could be opened has been."""
        view = observation.view
        hidden = isinstance(view, PlainModel) and bool(view.hidden_by)
        return Recovery.nothing(
            "" if hidden else f"{victim.sender}'s update was keyed otherwise than the model before it"
        )

    def _found(self, seen: Sequence[Observation]) -> list[Found | None]:
        """What was found of each observation's frame; None where nothing was looked for."""
        frames: dict[Hashable, list[int]] = {}
        for index, observation in enumerate(seen):
            if is_keyed(observation) and (rules := KeyRules.known_to(observation)) is not None:
                frames.setdefault(rules.frame(observation), []).append(index)
        found: list[Found | None] = [None] * len(seen)
        for indices in frames.values():
            rules = KeyRules.known_to(seen[indices[0]])
            assert rules is not None, "only such observations were gathered"
            what = self.find([seen[index] for index in indices], rules)
            for index in indices:
                found[index] = what
        return found


def is_keyed(observation: Observation) -> bool:
    """Whether what is read is under channel keys and nothing else."""
    view = observation.view
    return isinstance(view, PlainModel) and view.hidden_by == {STAGE}


def in_frame(observation: Observation) -> dict[str, Weights]:
    """By client, the weights at the end of its training that were keyed as the weights before them."""
    view = observation.view
    assert isinstance(view, PlainModel), "the harness checked what these attacks need"
    parameters = [spec.name for spec in observation.network.layout if spec.kind is Kind.PARAMETER]

    def near(after: Weights) -> bool:
        moved = sum(float((after[name] - view.before[name]).double().square().sum()) for name in parameters)
        return moved <= _OTHER_FRAME**2 * sum(float(view.before[name].double().square().sum()) for name in parameters)

    return {name: after for name, after in view.after.items() if name != AGGREGATE and near(after)}


def _opened(observation: Observation, found: Found | None) -> Observation:
    """The observation as if its weights had been sent without keys, as far as these were found."""
    view, network = observation.view, observation.network
    assert isinstance(view, PlainModel), "the harness checked what these attacks need"
    if found is None:  # in clear, or of an unknown scheme: read as it is
        return replace(observation, view=PlainModel(view.before, view.after))
    if found.keys is None:
        return observation
    keys = found.keys
    after = {name: keys.undo(weights, network.channels) for name, weights in in_frame(observation).items()}
    return replace(observation, view=PlainModel(keys.undo(view.before, network.channels), after))


def _claimed(item: Reconstruction, found: Found | None, observation: Observation) -> Reconstruction:
    """The reconstruction with what was found of the keys. Channels whose places are not known are nobody's."""
    if found is None:
        return item if not is_keyed(observation) else replace(item, recovered_weights=None)
    keys = found.keys or ClaimedKeys({}, {})
    spaces = observation.network.channels.spaces
    placed = {space.index for space in spaces if space.role == "input"} | keys.places.keys()
    labelled = all(space.index in placed for space in spaces if space.role == "output")
    return replace(
        item,
        labels=item.labels if labelled else None,
        recovered_weights=item.recovered_weights if len(placed) == len(spaces) else None,
        findings={**item.findings, **found.findings},
        key_claims=keys.tensors(),
        note="; ".join(part for part in (item.note, found.note) if part),
    )
