"""Attacks that must fail: they know all public randomness of a run and try to make its secrets from it.

Given the secret root itself they succeed, which shows that they would if the root followed from the seed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.base import Attack, Budget, History, Need, Reconstruction
from attacks.cosine import Cosine
from benchmark.victims import chosen_in_secret, secretly_jittered
from defenses.keynet.channel import ChannelTransform
from defenses.keynet.defense import KeyNet
from defenses.keynet.keys import draw_keys
from federation.datasets import Dataset
from federation.secret_root import SecretRoot
from federation.seeds import numpy_generator, seed_for, torch_generator
from federation.tasks import find_task
from federation.threat import Observation, PlainModel, Victim
from federation.training import cross_entropy_gradients
from federation.weights import Weights


def roots_from(seed: int) -> Iterator[SecretRoot]:
    """Roots as a careless run would make them from its seed."""
    yield SecretRoot(bytes(32))
    yield SecretRoot(seed.to_bytes(32, "big"))
    yield SecretRoot(seed.to_bytes(32, "little"))
    for text in (str(seed), f"seed{seed}", f"{seed}\n", f"secret root {seed}"):
        yield SecretRoot(hashlib.sha256(text.encode()).digest())
    yield SecretRoot(random.Random(seed).randbytes(32))
    yield SecretRoot(np.random.default_rng(seed).bytes(32))
    for name in ("root", "secret root", "keys", "victims"):
        yield SecretRoot(numpy_generator(name, seed).bytes(32))
        yield SecretRoot(seed_for(name, seed).to_bytes(8, "big") * 4)


@dataclass(frozen=True)
class Replay(Attack):
    """What both share: the public facts of a run, and roots to try.

    Attributes:
        task: the run's task.
        seed: the run's seed.
        root_file: the secret root itself, which no adversary has; "" for none.
    """

    task: str = "small-digits-lenet-zhu"
    seed: int = 0
    root_file: str = ""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.PLAIN_MODEL})

    def roots(self) -> list[SecretRoot]:
        return [SecretRoot.load(Path(self.root_file))] if self.root_file else list(roots_from(self.seed))


@dataclass(frozen=True)
class Lookup(Replay):
    """Guesses which images of the public data set are the victims; among its guesses the best fit to the update."""

    name: ClassVar[str] = "planted lookup"

    def reconstruct(
        self, history: History, victims: Sequence[Victim], *, generator: torch.Generator, budget: Budget
    ) -> list[Reconstruction]:
        dataset = _dataset(self.task)
        guesses = list(self._guesses(dataset, len(victims)))
        return [self._best(history[victim.observation], victim, guesses) for victim in victims]

    def _guesses(self, dataset: Dataset, count: int) -> Iterator[Tensor]:
        """Images of every victim in turn, uint8 [count, C, H, W]: raw ones, and as each root would have changed them."""
        raw = dataset.victims
        total = len(raw)
        for rows in (torch.arange(total), torch.arange(total).flip(0)):
            yield raw.images[rows[:count]]
        for parts in ((self.seed,), ("probe victims", self.task), ("probe victims", self.task, self.seed)):
            yield raw.images[torch.randperm(total, generator=torch_generator(*parts))[:count]]
            yield raw.images[torch.from_numpy(numpy_generator(*parts).permutation(total)[:count])]
        for root in self.roots():
            rows = chosen_in_secret(torch.arange(total), count, root.derive("probe victims", self.task))
            yield raw.images[rows]
            yield secretly_jittered(raw, root.derive("jitter", dataset.sha256, "victims")).images[rows]

    def _best(self, seen: Observation, victim: Victim, guesses: Sequence[Tensor]) -> Reconstruction:
        index = int(victim.identifier.rpartition("-")[2])
        candidates = torch.stack([images[index] for images in guesses]).float() / 255
        distances = [_distance(seen, victim, candidate[None]) for candidate in candidates]
        best = int(torch.tensor(distances).argmin())
        return Reconstruction(candidates[best][None], None, distances[best], len(guesses), 0.0)


@dataclass(frozen=True)
class KeyRederivation(Replay):
    """Undoes Key-Net with the keys that each root gives, then inverts gradients.

    It tells whether a root is right by the first global weights, which follow from the seed.
    """

    name: ClassVar[str] = "planted key re-derivation"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PLAIN_MODEL, Need.SCHEME})
    undoes: ClassVar[frozenset[str]] = frozenset({"keynet"})

    def reconstruct(
        self, history: History, victims: Sequence[Victim], *, generator: torch.Generator, budget: Budget
    ) -> list[Reconstruction]:
        opened = [self._opened(observation) for observation in history]
        return Cosine().reconstruct(opened, victims, generator=generator, budget=budget)

    def _opened(self, seen: Observation) -> Observation:
        view = seen.view
        assert isinstance(view, PlainModel)
        if not view.hidden_by:
            return seen
        model = find_task(self.task).build_model(_dataset(self.task), seed=seed_for("initial weights", self.seed))
        initial = model.state_dict()
        tried = [self._view_with(root, view, seen) for root in self.roots()]
        return replace(seen, view=min(tried, key=lambda opened: _off(opened.before, initial)))

    def _view_with(self, root: SecretRoot, view: PlainModel, seen: Observation) -> PlainModel:
        key_root = root.derive("federation", self.task, "keynet", self.seed).derive("stage", "keynet", 0)
        channels, policy = seen.network.channels, KeyNet(**seen.scheme.get("keynet", {})).policy
        transform = ChannelTransform(draw_keys(channels, key_root, policy), channels)
        return PlainModel(
            transform.recover(view.before), {name: transform.recover(after) for name, after in view.after.items()}
        )


@lru_cache
def _dataset(task: str) -> Dataset:
    return find_task(task).load_data()


def _off(weights: Weights, initial: dict[str, Tensor]) -> float:
    return sum(float((weights[name] - initial[name]).abs().sum()) for name in initial)


def _distance(seen: Observation, victim: Victim, pixels: Tensor) -> float:
    """1 - cosine of the update that an image would give and the observed one."""
    view = seen.view
    assert isinstance(view, PlainModel)
    update = {name: view.before[name] - view.after[victim.sender][name] for name in view.before}
    label = update["fc.bias"].argmin()[None]  # as iDLG reads it
    model = seen.network.build()
    model.load_state_dict(view.before)
    mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in (seen.mean, seen.deviation))
    gradients = cross_entropy_gradients(model, (pixels - mean) / deviation, label)
    ours, theirs = (torch.cat([tensors[name].flatten() for name in update]) for tensors in (gradients, update))
    return 1 - float(F.cosine_similarity(ours, theirs, dim=0))
