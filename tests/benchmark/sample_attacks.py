"""Attacks that behave well or badly in one way each; experiments name them as `sample_attacks.py:Class`."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attacks.base import Attack, Budget, History, Need, Reconstruction
from federation.threat import Observation, PlainModel, Victim


class Sample(Attack):
    """Guesses grey; subclasses change one thing."""

    name = "grey"

    def reconstruct(
        self, history: History, victims: Sequence[Victim], *, generator: torch.Generator, budget: Budget
    ) -> list[Reconstruction]:
        return [self.guess(history[victim.observation], victim, generator) for victim in victims]

    def guess(self, seen: Observation, victim: Victim, generator: torch.Generator, **parts: Any) -> Reconstruction:
        images = torch.full((victim.image_count, *seen.network.image_shape), 0.5)
        return Reconstruction(
            **{"images": images, "labels": None, "objective": 1.0, "evaluations": 0, "seconds": 0.0, **parts}
        )


class Crashes(Sample):
    """Fails with a message of its own."""

    name = "crashes"

    def guess(self, seen: Observation, victim: Victim, generator: torch.Generator, **parts: Any) -> Reconstruction:
        raise ZeroDivisionError("the moon is full")


class LacksFile(Sample):
    """Fails with an operating-system error that is not the run's business."""

    name = "lacks file"

    def guess(self, seen: Observation, victim: Victim, generator: torch.Generator, **parts: Any) -> Reconstruction:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "weights.bin")


class FillsDisk(Sample):
    """Meets a full disk, which is the run's business."""

    name = "fills disk"

    def guess(self, seen: Observation, victim: Victim, generator: torch.Generator, **parts: Any) -> Reconstruction:
        raise OSError(errno.ENOSPC, "No space left on device")


class Returns(Sample):
    """Returns the images that `images` makes."""

    def images(self, count: int, shape: tuple[int, ...]) -> Tensor:
        raise NotImplementedError

    def guess(self, seen: Observation, victim: Victim, generator: torch.Generator, **parts: Any) -> Reconstruction:
        images = self.images(victim.image_count, seen.network.image_shape)
        return super().guess(seen, victim, generator, images=images)


class OneTooMany(Returns):
    """Returns one image more than it was asked for."""

    name = "one too many"

    def images(self, count: int, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(count + 1, *shape)


class TooBright(Returns):
    """Returns pixels above 1."""

    name = "too bright"

    def images(self, count: int, shape: tuple[int, ...]) -> Tensor:
        return torch.full((count, *shape), 1.5)


class NotANumber(Returns):
    """Returns pixels that are no numbers."""

    name = "not a number"

    def images(self, count: int, shape: tuple[int, ...]) -> Tensor:
        return torch.full((count, *shape), float("nan"))


class OddObjective(Sample):
    """States an objective that is no number."""

    name = "odd objective"

    def guess(self, seen: Observation, victim: Victim, generator: torch.Generator, **parts: Any) -> Reconstruction:
        return super().guess(seen, victim, generator, objective="low")


class TensorObjective(Sample):
    """States its objective and a finding as tensors of one number."""

    name = "tensor objective"

    def guess(self, seen: Observation, victim: Victim, generator: torch.Generator, **parts: Any) -> Reconstruction:
        return super().guess(
            seen, victim, generator, objective=torch.tensor(2.5), findings={"half": torch.tensor(0.5)}, note="a note"
        )


class Counting(Sample):
    """Reports as findings what it can see of an observation's optional parts."""

    name = "sees nothing"

    def guess(self, seen: Observation, victim: Victim, generator: torch.Generator, **parts: Any) -> Reconstruction:
        findings = {
            "auxiliary": 0 if seen.auxiliary is None else len(seen.auxiliary.labels),
            "envelopes": len(seen.transcript),
            "held": len(seen.held),
            "scheme": len(seen.scheme),
            "draw": float(torch.rand((), generator=generator)),
        }
        return super().guess(seen, victim, generator, findings=findings)


class SeesAll(Counting):
    """The same, with every optional part declared."""

    name = "sees all"
    needs = frozenset({Need.TRANSCRIPT, Need.HELD, Need.SCHEME})


class NeedsAuxiliary(Counting):
    """Cannot do without public images."""

    name = "needs auxiliary"
    needs = frozenset({Need.PLAIN_MODEL, Need.AUXILIARY})


class NeedsOneImage(Sample):
    """Inverts updates of a single image alone."""

    name = "needs one image"
    needs = frozenset({Need.PLAIN_MODEL, Need.SINGLE_IMAGE})


class NeedsSparse(Sample):
    """Reads sparse keyed layers alone."""

    name = "needs sparse layers"
    needs = frozenset({Need.SPARSE_LAYERS})


class NeedsOwnUpdate(Counting):
    """Starts from the update of a client that its position holds."""

    name = "needs own update"
    needs = frozenset({Need.PLAIN_MODEL, Need.OWN_UPDATE})


class ForACipher(Sample):
    """Made for a scheme that nothing here uses."""

    name = "for a cipher"
    made_for = frozenset({"a cipher"})


class FiguresOnly(Sample):
    """Reports a figure and no image worth looking at."""

    name = "figures only"
    figures_only = True


class ClaimsWhatItReads(Sample):
    """Claims the victim's weights as it reads them."""

    name = "claims what it reads"

    def guess(self, seen: Observation, victim: Victim, generator: torch.Generator, **parts: Any) -> Reconstruction:
        assert isinstance(seen.view, PlainModel)
        return super().guess(seen, victim, generator, recovered_weights=seen.view.after[victim.sender])


class ClaimsNoKeys(Sample):
    """Claims keys of a space that no network here has."""

    name = "claims no keys"
    undoes = frozenset({"keynet"})

    def guess(self, seen: Observation, victim: Victim, generator: torch.Generator, **parts: Any) -> Reconstruction:
        return super().guess(seen, victim, generator, key_claims={"gains.99": torch.ones(3)})
