"""Defenses in force with small keys, to try those attacks on that were made for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeAlias

from torch import nn

from attacks.base import Attack, Need
from benchmark.audit.stand_in import smallest_stand_in
from benchmark.conformance.images import updates_for
from benchmark.conformance.updates import Updates, small_network
from defenses.base import Defense
from defenses.keynet.defense import KeyNet
from defenses.keynet.pixel_defense import KeyNetToeplitz
from defenses.paillier.pride.defense import PaillierPride
from defenses.plain import Plain
from defenses.registry import DEFENSES, build_defense
from defenses.stack import Stack
from federation.models import build_model
from federation.models.base import seeded_initialisation
from federation.network import Network
from federation.secret_root import SecretRoot
from federation.threat import Observation, Oracle
from federation.weights import flatten, floating, weights_of


class ShortPride(PaillierPride):
    """PriDe with a key that is too short for anything but checks of attacks, which do not break keys."""

    smallest_bits: ClassVar[int] = 512


@dataclass(frozen=True)
class Target:
    """A defense in force and the network that it protects.

    Attributes:
        label: what is particular about it, in words.
        defense: the defense.
        network: builds the network.
    """

    label: str
    defense: Callable[[], Defense]
    network: Callable[[], Network]


def rectified_network() -> Network:
    """A small network with ReLU: two convolutions and a linear layer on 14 x 14 pixels."""

    def build() -> nn.Module:
        with seeded_initialisation(0):
            return nn.Sequential(
                *(nn.Conv2d(1, 12, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU()),
                *(nn.Flatten(), nn.Linear(12 * 7 * 7, 10)),
            )

    return Network(build, (1, 14, 14), 10)


def wide_network() -> Network:
    """DLG's network on 20 x 20 pixels: every map is larger than the windows that move over it."""
    shape = (1, 20, 20)
    return Network(lambda: build_model("lenet-zhu", shape, 10, seed=0), shape, 10)


def dense_network() -> Network:
    """Two fully connected layers with a sigmoid between them, drawn as wide as DLG's network, on 14 x 14 pixels."""

    def build() -> nn.Module:
        with seeded_initialisation(0):
            network = nn.Sequential(nn.Flatten(), nn.Linear(14 * 14, 24), nn.Sigmoid(), nn.Linear(24, 10))
            for parameter in network.parameters():
                nn.init.uniform_(parameter, -0.5, 0.5)
        return network

    return Network(build, (1, 14, 14), 10)


def logistic_network() -> Network:
    """Logistic regression on 14 x 14 pixels."""
    return Network(lambda: build_model("logistic", (1, 14, 14), 10, seed=0), (1, 14, 14), 10)


def _keynet(label: str, network: Callable[[], Network], **options: object) -> Target:
    return Target(label, lambda: Stack("keynet", [KeyNet(**options), Plain()]), network)  # type: ignore[arg-type]


def _toeplitz(label: str, network: Callable[[], Network], **options: object) -> Target:
    return Target(label, lambda: Stack("keynet-toeplitz", [KeyNetToeplitz(**options)]), network)  # type: ignore[arg-type]


def _pride(label: str, **options: object) -> Target:
    return Target(label, lambda: ShortPride(key_bits=512, **options), logistic_network)  # type: ignore[arg-type]


TARGETS: Mapping[str, tuple[Target, ...]] = {
    "keynet": (
        _keynet("gains, ReLU", rectified_network),
        _keynet("permutations alone, sigmoid", small_network, gain_range=1.0),
        _keynet("gains, sigmoid", small_network),
        _keynet("gains, fully connected", dense_network),
        _keynet("soft keys, ReLU", rectified_network, kind="soft"),
        _keynet("orthogonal keys, ReLU", rectified_network, kind="orthogonal"),
    ),
    "keynet-toeplitz": (
        _toeplitz("gains, sigmoid", wide_network),
        _toeplitz("gains, fully connected", dense_network),
        _toeplitz("mixed pixels, sigmoid", wide_network, alpha=2),
    ),
    "paillier-pride": (
        _pride("six parties' form"),
        _pride("not re-randomised", randomised=False),
        _pride("two parties' form", form="two-party", cloud_half=True, randomised=False),
    ),
    "paillier": (Target("keys with the clients", lambda: build_defense("paillier"), smallest_stand_in),),
}
"""What there is to try for each scheme that an attack may be made for, by the scheme's name."""

Played: TypeAlias = tuple[Updates, list[Observation]]


@dataclass
class Targets:
    """Rounds under defenses in force; each is played once.

    Attributes:
        root: where keys come from.
    """

    root: SecretRoot
    _played: dict[tuple[type[Updates], str, str], Played] = field(default_factory=dict)

    def of(self, attack: Attack) -> list[Target]:
        """What an attack is to be tried on; a scheme of another package is tried as it is registered."""
        found = []
        for scheme in sorted(attack.made_for):
            known = TARGETS.get(scheme, ())
            if not known and scheme in DEFENSES.names():
                known = (Target("as registered", lambda scheme=scheme: build_defense(scheme), small_network),)  # type: ignore[misc]
            found += [replace(target, label=f"{scheme}: {target.label}") for target in known]
        return found

    def played(self, target: Target, attack: Attack) -> Played:
        """The rounds, with those oracles that an attack needs."""
        updates = updates_for(attack, target.network(), self.root)
        address = (type(updates), target.label, target.network.__name__)
        if address not in self._played:
            self._played[address] = updates, updates.under(target.defense())
        updates, history = self._played[address]
        if Need.INITIAL_MODEL in attack.needs:
            initial = flatten(weights_of(updates.network.build()), floating(updates.network.layout))
            history = [replace(observation, oracles={Oracle.INITIAL_MODEL: initial}) for observation in history]
        return updates, history
