"""Channel keys undone up to the order of channels, from nothing but updates: no data, no key, no second party."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from attacks.adaptive.gain_estimate import MOST_UNKNOWNS, estimate_gains
from attacks.adaptive.keyed_frames import Found, FrameRecovery, KeyRules, in_frame, is_keyed
from attacks.adaptive.monomial import ClaimedKeys
from attacks.adaptive.rescaling import KeyedUpdate, RescalingEquations, conserves
from attacks.base import ATTACKS
from federation.channels import ChannelSpace
from federation.threat import Observation, PlainModel

UNSURE = 0.05
"""Expected error of log gains, and share of the updates that gains do not explain, from which the note warns."""


@ATTACKS.register("keynet-gauge")
@dataclass(frozen=True)
class KeyNetGauge(FrameRecovery):
    """Solve for the gains by the rescaling identity (see `rescaling`), undo them, and invert what is left.

    What is left differs from the network in the order of its channels alone, and so is the network under other names:
    permutations without gains are inverted as they stand. All updates of the history that were keyed alike are used,
    those of other clients included. Which class is which is not known where the outputs are permuted.
    """

    name: ClassVar[str] = "keynet-gauge"

    def lacks(self, observation: Observation) -> str | None:
        """Keys that mix channels, and networks none of whose keyed channels can be rescaled, are beyond it."""
        rules = KeyRules.known_to(observation)
        if rules is None or not is_keyed(observation):
            return None
        if rules.kind != "monomial":
            return f"keys that mix no channels (these are {rules.kind})"
        scaled = _scaled(observation, rules)
        if scaled and not any(map(conserves, scaled)):
            passed = sorted(set().union(*(space.activations for space in scaled)))
            return f"channels that can be rescaled, as behind ReLU (here {', '.join(passed) or 'the outputs'})"
        if sum(space.size for space in scaled) > MOST_UNKNOWNS:
            return f"at most {MOST_UNKNOWNS} channels with gains"
        return None

    def find(self, frame: Sequence[Observation], rules: KeyRules) -> Found:
        """The gains, with their expected error; none where there are none."""
        lacking = self.lacks(frame[0])
        if lacking is not None:
            return Found(None, note=f"needs {lacking}")
        spaces = frame[0].network.channels.spaces
        known = {space.index: torch.arange(space.size) for space in spaces if space.role == "output"}
        places = known if rules.outputs == "identity" else {}
        scaled = _scaled(frame[0], rules)
        if not scaled:
            return Found(ClaimedKeys({}, places), note="permutations alone: the keyed network, inverted as it stands")
        updates = [update for observation in frame for update in _updates(observation)]
        if not updates:
            return Found(None, note="no update was keyed as the model before it")
        equations = RescalingEquations(frame[0].network, updates, frozenset(space.index for space in scaled))
        estimate = estimate_gains(equations, rules.gain_range, rules.factors)
        return Found(
            ClaimedKeys(estimate.gains, places),
            findings={
                "updates used": float(estimate.updates),
                "expected error of log gains": estimate.error,
                "residual of the rescaling identity": estimate.residual,
            },
            note=_warning(estimate.error, estimate.residual),
        )


def _scaled(observation: Observation, rules: KeyRules) -> list[ChannelSpace]:
    return [space for space in observation.network.channels.spaces if rules.scales(space)]


def _updates(observation: Observation) -> list[KeyedUpdate]:
    view = observation.view
    assert isinstance(view, PlainModel), "the harness checked what this attack needs"
    return [KeyedUpdate(view.before, after) for after in in_frame(observation).values()]


def _warning(error: float, residual: float) -> str:
    if residual > UNSURE:
        return "the updates do not obey the rescaling identity (several large steps, or noise): gains are a guess"
    return "too few updates to be sure of the gains" if error > UNSURE else ""
