"""Channel keys by division, for whoever knows the weights of which the keyed ones are seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.adaptive.keyed_frames import STAGE, Found, FrameRecovery, KeyRules, is_keyed
from attacks.adaptive.monomial import ClaimedKeys, per_channel
from attacks.base import ATTACKS, Need
from federation.channels import ChannelMap
from federation.threat import Observation, Oracle, PlainModel
from federation.weights import Weights, floating, unflatten

MISMATCH = 1e-4
"""Largest distance of a keyed row's direction from the one that it is matched with; float32 stays far under it."""


def keys_by_division(known: Weights, keyed: Weights, channel_map: ChannelMap) -> ClaimedKeys | None:
    """The monomial keys that lead from some weights to others; None where none do.

    From the image's channels on, whose key is the identity: once the key of what a kernel reads is undone, each of its
    rows is a row of the known kernel times a gain. Directions tell which, lengths tell the gain.

    Args:
        known: the weights.
        keyed: those weights under keys.
        channel_map: the channel spaces of their network.
    """
    images = [space for space in channel_map.spaces if space.role == "input"]
    gains = {space.index: torch.ones(space.size, dtype=torch.float64) for space in images}
    places = {space.index: torch.arange(space.size) for space in images}
    kernels = [name for name, axes in channel_map.axes.items() if axes.in_spaces]
    while pending := [name for name in kernels if not gains.keys() >= {*channel_map.axes[name].out_spaces}]:
        name = next((name for name in pending if gains.keys() >= {*channel_map.axes[name].in_spaces}), None)
        if name is None:
            return None
        axes = channel_map.axes[name]
        reading = ClaimedKeys(gains, places).undo({name: keyed[name]}, channel_map)[name]
        sizes = [channel_map.spaces[space].size for space in axes.out_spaces]
        rows, seen = (per_channel(values.double(), axes).split(sizes) for values in (known[name], reading))
        for space, part, seen_part in zip(axes.out_spaces, rows, seen, strict=True):
            if space in gains:
                continue
            key = _row_key(part, seen_part)
            if key is None:
                return None
            gains[space], places[space] = key
    return ClaimedKeys(gains, places)


def _row_key(known: Tensor, keyed: Tensor) -> tuple[Tensor, Tensor] | None:
    """Gains and places that make the rows of one kernel those of the other; None where no monomial key does."""
    true, seen = known.flatten(1), keyed.flatten(1)
    lengths, seen_lengths = true.norm(dim=1), seen.norm(dim=1)
    if not bool((lengths > 0).all() and (seen_lengths > 0).all()):
        return None
    directions, seen_directions = true / lengths[:, None], seen / seen_lengths[:, None]
    places = (seen_directions @ directions.T).argmax(1)
    distance = (seen_directions - directions[places]).norm(dim=1).max()
    if len(places.unique()) < len(places) or not float(distance) < MISMATCH:
        return None
    return seen_lengths / lengths[places], places


@ATTACKS.register("known-initialisation")
@dataclass(frozen=True)
class KnownInitialisation(FrameRecovery):
    """Divide the keyed initial model by the initial model, undo the keys so found, and invert the plain update.

    No honest adversary of these positions knows the initial model: it is an oracle, which stands for a public seed or a
    model that was released before. Keys found in the round in which it is sent hold for as long as keys last.
    """

    name: ClassVar[str] = "known-initialisation"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PLAIN_MODEL, Need.SCHEME, Need.INITIAL_MODEL})

    def lacks(self, observation: Observation) -> str | None:
        """Keys that mix channels do not come by division."""
        rules = KeyRules.known_to(observation)
        if rules is None or not is_keyed(observation) or rules.kind == "monomial":
            return None
        return f"keys that mix no channels (these are {rules.kind})"

    def find(self, frame: Sequence[Observation], rules: KeyRules) -> Found:
        """The keys, from the first observation that starts from the known model."""
        lacking = self.lacks(frame[0])
        if lacking is not None:
            return Found(None, note=f"needs {lacking}")
        for observation in frame:
            view, known = observation.view, _initial_model(observation)
            assert isinstance(view, PlainModel), "the harness checked what this attack needs"
            if known and (keys := keys_by_division(known, view.before, observation.network.channels)) is not None:
                return Found(keys)
        return Found(None, note=f"no round under these {STAGE} keys begins with the known model")


def _initial_model(observation: Observation) -> Weights:
    values = observation.oracles.get(Oracle.INITIAL_MODEL)
    return {} if values is None else unflatten(values, floating(observation.network.layout))
