"""`keynet-statistics`: images of many updates under one pixel key, put in order by what images are like.

The library function is `attacks.adaptive.statistics.matching.match_pixels`:

    match_pixels(leaks, labels, auxiliary, *, normalisation, gain_range=1.0, classes_in_order=False, generator)
        -> PixelMatch(places, gains, predictability, class_order)
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from attacks.adaptive import keyed_frames
from attacks.adaptive.recovery import Recovery, WeightRecovery
from attacks.adaptive.statistics.leaks import Leak, dense_first, image_leak
from attacks.adaptive.statistics.matching import PixelMatch, match_pixels
from attacks.base import ATTACKS, Budget, History, Need, Reconstruction, prior_guess, restricted
from federation.normalisation import Normalisation
from federation.threat import AGGREGATE, Ciphertext, Nothing, Observation, PlainModel, SparseLayers, Victim
from federation.toeplitz import toeplitz_of

PIXEL_KEYS, CHANNEL_KEYS = "keynet-toeplitz", keyed_frames.STAGE

SIGNAL = 0.4
"""Predictability of placed pixels under which they are not in place: digits have 0.8 and more, pixels at random under 0."""

FEWEST = 8
"""Leaks under which nothing is tried."""


@ATTACKS.register("keynet-statistics")
@dataclass(frozen=True)
class KeyNetStatistics(WeightRecovery):
    """Divide the first layer's update by its bias's, which is the keyed image, and match pixels over all such images.

    For networks that begin with a fully connected layer, updates of one image each, and keys that do not mix pixels. All
    updates of the history under one key are joined. Channel keys leave the image alone, so that one update is enough.
    """

    name: ClassVar[str] = "keynet-statistics"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SCHEME, Need.AUXILIARY, Need.SINGLE_IMAGE})
    undoes: ClassVar[frozenset[str]] = frozenset({PIXEL_KEYS, CHANNEL_KEYS})
    made_for: ClassVar[frozenset[str]] = frozenset({PIXEL_KEYS, CHANNEL_KEYS})

    def lacks(self, observation: Observation) -> str | None:
        """Other networks, soft keys, and what cannot be read are beyond it; what is read in clear never is."""
        view = observation.view
        if isinstance(view, Ciphertext | Nothing):
            return "updates that can be read (it reads ciphertext)" if isinstance(view, Ciphertext) else "updates"
        if not view.hidden_by:
            return None
        alpha = int(str(observation.scheme.get(PIXEL_KEYS, {}).get("alpha", 1)))
        if alpha > 1:
            return f"keys of one permutation (these mix {alpha}: alpha)"
        return None if dense_first(observation.network) else "a network that begins with a fully connected layer"

    def recover_hidden(self, observation: Observation, victim: Victim) -> Recovery:
        """Nothing: it is images that are recovered, see `reconstruct`."""
        return Recovery.nothing("")

    def reconstruct(
        self, history: History, victims: Sequence[Victim], *, generator: torch.Generator, budget: Budget
    ) -> list[Reconstruction]:
        """See `Attack.reconstruct`; what is read in clear is the inner attack's."""
        seen = [restricted(observation, self.needs) for observation in history]
        hidden = [index for index, victim in enumerate(victims) if _is_hidden(seen[victim.observation])]
        clear = [index for index in range(len(victims)) if index not in hidden]
        found: dict[int, Reconstruction] = {}
        if clear:
            items = super().reconstruct(
                history, [victims[index] for index in clear], generator=generator, budget=budget
            )
            found |= zip(clear, items, strict=True)
        frames: dict[Hashable, list[int]] = {}
        for index in hidden:
            frames.setdefault(_frame(seen[victims[index].observation], victims[index].sender), []).append(index)
        for frame, members in frames.items():
            items = self._matched(frame, seen, [victims[index] for index in members], generator)
            found |= zip(members, items, strict=True)
        return [found[index] for index in range(len(victims))]

    def _matched(
        self, frame: Hashable, seen: Sequence[Observation], victims: Sequence[Victim], generator: torch.Generator
    ) -> list[Reconstruction]:
        """The images of victims under one key."""
        start = time.perf_counter()
        first = seen[victims[0].observation]
        lacking = self.lacks(first)
        if lacking is not None:
            return [_without_signal(seen, victim, f"needs {lacking}") for victim in victims]
        leaks = _leaks(frame, seen)
        if CHANNEL_KEYS in first.scheme and PIXEL_KEYS not in first.scheme:
            match = None
        elif len(leaks) < FEWEST:
            reason = f"{len(leaks)} leaks under this key; {FEWEST} or more are due"
            return [_without_signal(seen, victim, reason) for victim in victims]
        else:
            match = _match(first, list(leaks.values()), generator)
            if match.predictability < SIGNAL:
                reason = f"pixels of {len(leaks)} leaks do not foretell each other as placed"
                findings = _findings(leaks, match)
                return [_without_signal(seen, victim, reason, findings) for victim in victims]
        seconds = (time.perf_counter() - start) / len(victims)
        return [
            replace(_reconstructed(seen, victim, leaks, match), seconds=seconds)
            if (victim.observation, victim.sender) in leaks
            else _without_signal(seen, victim, f"the update of {victim.sender} moves nothing")
            for victim in victims
        ]


def _is_hidden(observation: Observation) -> bool:
    view = observation.view
    return not isinstance(view, PlainModel) or bool(view.hidden_by)


def _frame(observation: Observation, sender: str) -> Hashable:
    """The same for updates of which it is public that the image was keyed alike."""
    options = {**observation.scheme.get(CHANNEL_KEYS, {}), **observation.scheme.get(PIXEL_KEYS, {})}
    rotation = options.get("rotation")
    epoch = 0 if rotation is None else observation.round // int(str(rotation))
    return epoch, sender if options.get("per_client") else ""


def _leaks(frame: Hashable, seen: Sequence[Observation]) -> dict[tuple[int, str], Leak]:
    """The leaks of a frame by observation and sender."""
    found = {}
    for number, observation in enumerate(seen):
        view = observation.view
        if isinstance(view, SparseLayers):
            senders = list(view.after)
        elif isinstance(view, PlainModel) and view.hidden_by:
            senders = list(keyed_frames.in_frame(observation))
        else:
            continue
        for sender in senders:
            if sender == AGGREGATE or _frame(observation, sender) != frame:
                continue
            leak = image_leak(observation.network, view, sender)
            if leak is not None:
                found[number, sender] = leak
    return found


def _match(observation: Observation, leaks: Sequence[Leak], generator: torch.Generator) -> PixelMatch:
    assert observation.auxiliary is not None, "the harness checked what this attack needs"
    options = observation.scheme[PIXEL_KEYS]
    return match_pixels(
        torch.from_numpy(np.stack([leak.image for leak in leaks])),
        torch.tensor([leak.label for leak in leaks]),
        observation.auxiliary,
        normalisation=_normalisation(observation),
        gain_range=float(str(options["gain_range"])),
        classes_in_order=options["outputs"] == "identity",
        generator=generator,
    )


def _normalisation(observation: Observation) -> Normalisation:
    return Normalisation(observation.mean, observation.deviation)


def _findings(leaks: dict[tuple[int, str], Leak], match: PixelMatch | None) -> dict[str, float]:
    found = {"leaks used": float(len(leaks)), "rounds used": float(len({number for number, _ in leaks}))}
    return found if match is None else found | {"predictability of placed pixels": match.predictability}


def _reconstructed(
    seen: Sequence[Observation], victim: Victim, leaks: dict[tuple[int, str], Leak], match: PixelMatch | None
) -> Reconstruction:
    observation, leak = seen[victim.observation], leaks[victim.observation, victim.sender]
    keyed, shape = torch.from_numpy(leak.image)[None], observation.network.image_shape
    if match is None:
        images, claims = _normalisation(observation).invert(keyed.view(1, *shape)), {}
    else:
        images = match.images(keyed, _normalisation(observation), shape)
        image = next(space.index for space in toeplitz_of(observation.network).spaces if space.role == "input")
        # the leak is A^-T x, so that its gains are the key's reciprocals
        claims = {f"places.{image}": match.places, f"gains.{image}": 1 / match.gains}
    order = None if match is None else match.class_order
    return Reconstruction(
        images.float(),
        labels=None if order is None else order[leak.label][None],
        objective=None,
        evaluations=0,
        seconds=0.0,
        findings=_findings(leaks, match),
        key_claims=claims,
    )


def _without_signal(
    seen: Sequence[Observation], victim: Victim, reason: str, findings: dict[str, float] | None = None
) -> Reconstruction:
    guess = prior_guess(seen[victim.observation], victim)
    return replace(guess, note=f"{guess.note}; {reason}", findings=findings or {})
