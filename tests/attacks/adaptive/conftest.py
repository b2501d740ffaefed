"""Rounds played under real defenses, and what each position observes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from phe.paillier import PaillierPrivateKey
from torch import Tensor

from attacks.base import Need
from defenses.base import Defense
from defenses.paillier import keys
from defenses.paillier.pride.defense import PaillierPride
from defenses.registry import build_defense
from federation.messages import Transcript, client_name
from federation.protocol import Phase
from federation.rounds import Federation
from federation.secret_root import SecretRoot
from federation.threat import Observation, Position, Victim, parties_of, readable
from federation.weights import Weights

ROOT = SecretRoot(b"keys of the tests of attacks...." * 2)
MEAN = 0.3
"""By which the hand-made clients normalise pixels."""

VICTIM, COLLUDER = client_name(0), client_name(1)


class ShortPride(PaillierPride):
    """With a key that is too short for anything but tests."""

    smallest_bits = 512


@dataclass(frozen=True)
class Round:
    """One round of hand-made updates: the victim is the first client, which takes one step on one picture."""

    defense: Defense
    transcript: Transcript
    held: Callable[[str], bytes]
    before: Weights
    trained: Mapping[str, Weights]
    counts: Mapping[str, int]
    client: Any

    def observed(self, position: Position, own: tuple[str, ...] = ()) -> Observation:
        """What a position observes; `own` are the clients whose updates it knows as their owner."""
        transcript = readable(self.transcript, position, COLLUDER)
        held = {name: state for name in parties_of(position, COLLUDER) if (state := self.held(name))}
        view = self.defense.view(transcript, position, held, network=self.client.network, sample_counts=self.counts)
        clear = self.in_clear()
        return replace(
            clear,
            transcript=transcript,
            held=held,
            view=view,
            scheme=self.defense.scheme(),
            own_updates={name: self.trained[name] for name in own},
        )

    def in_clear(self) -> Observation:
        """The victim's true update, under no defense."""
        observation: Observation = self.client.observed(self.before, self.trained[VICTIM])
        return replace(observation, facts=replace(observation.facts, sample_counts=self.counts))


@pytest.fixture(scope="session")
def pride() -> Callable[..., Defense]:
    """The protocol as written, with a short key; takes its options."""
    return lambda **options: ShortPride(key_bits=512, **options)


@pytest.fixture(scope="session")
def play(logistic_client: Any, pictures: Tensor) -> Callable[..., Round]:
    """Plays a round; every call with the same arguments returns the same one."""
    played: dict[tuple[object, ...], Round] = {}

    def once(defense: Defense | str = "plain", counts: tuple[int, ...] = (1, 3), zeros: bool = False) -> Round:
        address = (str(defense), counts, zeros)
        if address not in played:
            built = build_defense(defense) if isinstance(defense, str) else defense
            played[address] = _played(built, logistic_client, pictures, counts, zeros)
        return played[address]

    return once


def _played(defense: Defense, client: Any, pictures: Tensor, counts: tuple[int, ...], zeros: bool) -> Round:
    cohort = {client_name(index): count for index, count in enumerate(counts)}
    federation = Federation(defense.parties(client.network, list(cohort), ROOT), cohort, seed=0)
    start = client.start()
    if zeros:
        start = {name: torch.zeros_like(tensor) for name, tensor in start.items()}

    def train(party: Any, weights: Weights) -> Weights:
        index = int(party.name.removeprefix("client-"))
        pixels = pictures[index : index + 1] if index == 0 else pictures[index : index + counts[index]]
        if zeros:  # pixels at the mean, which leave the weights that read them as they are
            pixels = pixels.clone()
            pixels[:, :, :2] = MEAN
        labels = torch.arange(len(pixels)) % client.network.class_count
        return client.trained(weights, [(pixels, (labels + index + 2) % client.network.class_count)])

    opening = federation.start(start).transcript
    record = federation.run_round(0, list(cohort), train)
    release = federation.release(0, list(cohort))
    transcript = Transcript([*opening.phase(Phase.KEYS), *record.transcript, *release])
    return Round(
        defense, transcript, federation.parties.held, record.references[VICTIM], record.trained, cohort, client
    )


@pytest.fixture(scope="session")
def victim() -> Victim:
    return Victim("v", 0, VICTIM, 1)


@pytest.fixture(scope="session")
def short_key() -> PaillierPrivateKey:
    """A key pair of 512 bits."""
    return keys.generate_keypair(512, ROOT.derive("a short key").reader(), allow_small=True)


class Untouchable:
    """Stands for a part of an observation that must not be looked at."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError("an attack looked at what it did not declare")


@pytest.fixture(scope="session")
def hiding() -> Callable[[Observation, frozenset[Need]], Observation]:
    """The observation, with every optional part that is not among an attack's needs untouchable."""

    def hide(observation: Observation, needs: frozenset[Need]) -> Observation:
        parts = {
            "transcript": Need.TRANSCRIPT,
            "held": Need.HELD,
            "scheme": Need.SCHEME,
            "auxiliary": Need.AUXILIARY,
            "own_updates": Need.OWN_UPDATE,
        }
        changes: dict[str, Any] = {part: Untouchable() for part, need in parts.items() if need not in needs}
        return replace(observation, **changes)

    return hide
