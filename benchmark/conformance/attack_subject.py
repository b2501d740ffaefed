"""An attack under test, and what it returned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from attacks.base import Attack, Budget, History, Reconstruction
from benchmark.audit.chosen import CLIENTS
from benchmark.conformance.subject import ConformanceFailure
from benchmark.conformance.targets import Targets
from benchmark.conformance.updates import VICTIMS, Images, Updates
from benchmark.metrics import pixel
from benchmark.metrics.floors import floors
from federation.seeds import torch_generator
from federation.threat import Victim

CLEARS = 2.0
"""Decibels above the floor that an attack reaches undefended at least, on average."""

EVERYONE = tuple(Victim(f"victim-{index}", index, CLIENTS[0], 1) for index in range(VICTIMS))


@dataclass(frozen=True)
class AttackSubject:
    """An attack under test, its budget, and what it is tried on: updates of a network that it is meant for.

    Attributes:
        attack: the attack.
        updates: of a network that it is meant for.
        budget: enough of it to work undefended.
        targets: defenses in force, for attacks that were made for one.
    """

    attack: Attack
    updates: Updates
    budget: Budget
    targets: Targets

    @cached_property
    def plain(self) -> Attempt:
        """The attack on updates under no defense at all."""
        return self.attempt(self.updates.plain)

    @cached_property
    def starved(self) -> Attempt:
        """The same with a quarter of the evaluations."""
        return self.attempt(self.updates.plain, self.quarter)

    @property
    def quarter(self) -> Budget:
        """A quarter of the evaluations."""
        return self.part(4)

    def part(self, divisor: int) -> Budget:
        """One in so many of the evaluations."""
        return replace(self.budget, evaluations=max(1, self.budget.evaluations // divisor))

    def attempt(self, history: History, budget: Budget | None = None, victims: Sequence[Victim] = EVERYONE) -> Attempt:
        """Reconstruct victims, and score against truth and floors."""
        generator = torch_generator("conformance of attacks")
        found = self.attack.reconstruct(history, victims, generator=generator, budget=budget or self.budget)
        if len(found) != len(victims):
            raise ConformanceFailure(f"it returned {len(found)} reconstructions for {len(victims)} victims")
        return Attempt(tuple(found), self.updates.images)


@dataclass(frozen=True)
class Attempt:
    """What an attack returned, one reconstruction a victim."""

    found: tuple[Reconstruction, ...]
    images: Images

    @cached_property
    def gain(self) -> float:
        """Mean PSNR over the highest floor of each image, in decibels."""
        public = self.images.auxiliary
        private = self.images.private
        guesses = floors(public.pixels, public.labels, len(private), None, torch_generator("conformance floors"))
        highest = torch.stack([pixel.psnr(private, guess) for guess in guesses.values()]).amax(0)
        return float((pixel.psnr(private, self.eight_bit) - highest).mean())

    @property
    def eight_bit(self) -> Tensor:
        """The images as they would be stored, [V, C, H, W]."""
        return pixel.to_eight_bit(torch.cat([item.images for item in self.found]))

    @property
    def objective(self) -> float | None:
        """The mean of the attack's own objective; None where it states none."""
        stated = [item.objective for item in self.found]
        return None if None in stated else sum(map(float, stated)) / len(stated)  # type: ignore[arg-type]
