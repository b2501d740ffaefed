"""`keynet-grid`: Key-Net on pixels opened from one round's ciphertext, then gradient inversion in the attacker's frame."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from attacks.adaptive.grid.network import Matrices, NetworkKey, open_network, opened_weights
from attacks.adaptive.grid.pooled import FEWEST, SIGNAL, JoinedNetwork, dense_after, joined
from attacks.adaptive.grid.template import KeyNotFoundError
from attacks.adaptive.recovery import Recovery, WeightRecovery
from attacks.adaptive.statistics.leaks import layer_leak
from attacks.adaptive.statistics.public import PublicImages
from attacks.adaptive.upright import upright
from attacks.base import ATTACKS, Budget, History, Need, Reconstruction
from federation.network import Network
from federation.normalisation import Normalisation
from federation.threat import AGGREGATE, Observation, SparseLayers, Victim
from federation.weights import Weights, floating

STAGE = "keynet-toeplitz"

Frames = tuple[NetworkKey, ...]
"""What was found of a network's keys, in every frame that the ciphertext leaves open."""


@ATTACKS.register("keynet-grid")
@dataclass(frozen=True)
class KeyNetGrid(WeightRecovery):
    """Find the keys in where the entries stand and how they compare, open the update, invert it, and turn it upright.

    No data and one round are enough for the keys. The pose of the images and the order of their channels, which the
    ciphertext does not tell, are those in which all victims' images under one key are most like auxiliary ones. Where
    the keys of some layers are found and those of others not, what was found is claimed and the images are the prior
    guess.
    """

    name: ClassVar[str] = "keynet-grid"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SCHEME, Need.AUXILIARY})
    undoes: ClassVar[frozenset[str]] = frozenset({STAGE})
    made_for: ClassVar[frozenset[str]] = frozenset({STAGE})

    def lacks(self, observation: Observation) -> str | None:
        """See `mixed_pixels`."""
        return mixed_pixels(observation)

    def recover_hidden(self, observation: Observation, victim: Victim) -> Recovery:
        """The network's weights before and after the victim's training, in the attacker's frame."""
        view = observation.view
        if not isinstance(view, SparseLayers) or view.hidden_by != {STAGE} or victim.sender not in view.after:
            return Recovery.nothing(f"there are no keyed matrices of {victim.sender}")
        frames, reason = found_in(observation)
        if not frames:
            return Recovery.nothing(f"no key was found: {reason}")
        before, after = (
            opened_weights(observation.network, frames[0], matrices)
            for matrices in (view.before, view.after[victim.sender])
        )
        findings = _findings(observation, frames, before)
        missing = [spec.name for spec in observation.network.layout if spec.name not in before]
        if missing:
            return Recovery.nothing(f"{missing[0]} and more stay keyed: {frames[0].reason}", findings)
        return InFrame(before, after, findings)

    def reconstruct(
        self, history: History, victims: Sequence[Victim], *, generator: torch.Generator, budget: Budget
    ) -> list[Reconstruction]:
        """See `Attack.reconstruct`."""
        found = WeightRecovery.reconstruct(self, history, victims, generator=generator, budget=budget)
        groups: dict[_KeyedModel, list[int]] = {}
        for index, victim in enumerate(victims):
            observation = history[victim.observation]
            if isinstance(observation.view, SparseLayers):
                groups.setdefault(_KeyedModel.of(observation), []).append(index)
        for model, members in groups.items():
            frames, _ = _opened(model)
            observation = history[victims[members[0]].observation]
            across = _across_pooling(model, frames, history, generator) if frames else None
            if across is not None:
                for index in members:
                    found[index] = across.reconstructed(found[index], victims[index], observation)
            elif frames:
                for index, item in zip(
                    members, _upright(frames, [found[i] for i in members], observation), strict=True
                ):
                    found[index] = item
        return found


@dataclass(frozen=True)
class _AcrossPooling:
    """A network that was joined across its pooling, and the images of the updates that joined it.

    Attributes:
        opened: the network.
        images: [N, P], of the updates, normalised.
        numbers: which of them is whose, by observation and sender.
    """

    opened: JoinedNetwork
    images: Tensor
    numbers: Mapping[tuple[int, str], int]

    def reconstructed(self, item: Reconstruction, victim: Victim, observation: Observation) -> Reconstruction:
        """A victim's reconstruction, in place of one without signal."""
        number = self.numbers.get((victim.observation, victim.sender))
        claims = self.opened.frame.claims()
        if number is None:
            return replace(item, key_claims=claims)
        normalisation = Normalisation(observation.mean, observation.deviation)
        images = normalisation.invert(self.images[number].view(1, *observation.network.image_shape))
        findings = {
            **item.findings,
            "convolutions opened": float(len(self.opened.frame.layers)),
            "leaks used": float(len(self.numbers)),
            "predictability of placed features": self.opened.predictability,
        }
        note = "features of the first fully connected layer, put in order over all updates, and decoded"
        return replace(item, images=images.float(), findings=findings, key_claims=claims, note=note)


def _across_pooling(
    model: _KeyedModel, frames: Frames, history: History, generator: torch.Generator
) -> _AcrossPooling | None:
    """The network joined over all updates of single images from this model; None where that cannot be."""
    dense = dense_after(model.network, frames[0])
    if dense is None:
        return None
    updates: dict[tuple[int, str], Matrices] = {}
    for number, observation in enumerate(history):
        view, facts = observation.view, observation.facts
        if not isinstance(view, SparseLayers) or facts.steps * facts.batch_size != 1:
            continue
        if _KeyedModel.of(observation) != model:
            continue
        updates |= {
            (number, sender): after
            for sender, after in view.after.items()
            if sender != AGGREGATE and layer_leak(model.network, dense, model.matrices, after) is not None
        }
    if len(updates) < FEWEST:
        return None
    first = history[next(iter(updates))[0]]
    assert first.auxiliary is not None, "the harness checked what this attack needs"
    public = PublicImages.of(first.auxiliary, Normalisation(first.mean, first.deviation), generator)
    opened = joined(
        model.network,
        frames,
        model.matrices,
        list(updates.values()),
        public,
        gain_range=float(str(first.scheme.get(STAGE, {}).get("gain_range", 1))),
        seed=int(torch.randint(2**31, (1,), generator=generator)),
    )
    if opened is None or opened.predictability < SIGNAL:
        return None
    images = torch.from_numpy(opened.decoded(public))
    return _AcrossPooling(opened, images, {key: place for place, key in enumerate(updates)})


@dataclass(frozen=True)
class InFrame(Recovery):
    """Weights in a frame in which the order of the image's channels is not known."""

    def observed(self, observation: Observation, sender: str) -> Observation | None:
        """As observed, with one normalisation for all channels: the mean of theirs."""
        seen = Recovery.observed(self, observation, sender)
        if seen is None:
            return None
        mean, deviation = (
            (sum(values) / len(values),) * len(values) for values in (observation.mean, observation.deviation)
        )
        return replace(seen, mean=mean, deviation=deviation)


def mixed_pixels(observation: Observation) -> str | None:
    """What is wanting where the scheme says that keys mix pixels: entries stand everywhere then, and there is no grid."""
    alpha = observation.scheme.get(STAGE, {}).get("alpha", 1)
    hidden = STAGE in getattr(observation.view, "hidden_by", ())
    return f"keys that mix no pixels (here alpha is {alpha})" if hidden and alpha != 1 else None


def found_in(observation: Observation) -> tuple[Frames, str]:
    """The keys that an observation of keyed matrices gives away, in every frame; none, and why."""
    return _opened(_KeyedModel.of(observation))


@dataclass(frozen=True)
class _KeyedModel:
    """The model that a round began with; equal where all bytes of it are.

    Attributes:
        network: the architecture.
        unit_gains: whether the scheme's public options say that gains are 1.
        digest: of the matrices.
        matrices: by layer.
    """

    network: Network
    unit_gains: bool
    digest: bytes
    matrices: Matrices = field(compare=False, repr=False)

    @classmethod
    def of(cls, observation: Observation) -> _KeyedModel:
        view = observation.view
        assert isinstance(view, SparseLayers), "looked at before"
        digest = hashlib.sha256()
        for name in sorted(view.before):
            matrix = view.before[name]
            for part in (matrix.data, matrix.indices, matrix.indptr):
                digest.update(part.tobytes())
        unit_gains = observation.scheme.get(STAGE, {}).get("gain_range") == 1
        return cls(observation.network, unit_gains, digest.digest(), view.before)


@lru_cache(maxsize=4)
def _opened(model: _KeyedModel) -> tuple[Frames, str]:
    """Kept for the other victims of the same round."""
    try:
        return tuple(open_network(model.network, model.matrices, unit_gains=model.unit_gains)), ""
    except KeyNotFoundError as error:
        return (), str(error)


def _findings(observation: Observation, frames: Frames, before: Weights) -> dict[str, float]:
    layers = {**frames[0].layers, **frames[0].islands}
    total = sum(spec.size for spec in floating(observation.network.layout))
    return {
        "share of weights opened": sum(tensor.numel() for tensor in before.values()) / total,
        "convolutions opened": float(len(layers)),
        "poses left open": float(len(frames)),
        "key residual": max(layer.residual for layer in layers.values()),
    }


def _upright(frames: Frames, found: Sequence[Reconstruction], observation: Observation) -> list[Reconstruction]:
    """Reconstructions under one key, all in the frame in which they are most like public images."""
    inverted = [item for item in found if item.recovered_weights is not None]
    if not inverted:
        return [replace(item, key_claims=frames[0].claims()) for item in found]
    images = torch.cat([item.images for item in inverted])
    best = upright(frames, images, observation)
    parts = iter(best.images.split([len(item.images) for item in inverted]))
    claims = best.frame.claims()
    return [
        replace(item, key_claims=claims)
        if item.recovered_weights is None
        else replace(
            item,
            images=next(parts),
            labels=None,  # classes are numbered as they come
            recovered_weights=None,  # they are an equivalent network's, not the true ones
            key_claims=claims,
            findings={**item.findings, "likeness to auxiliary images": best.likeness},
        )
        for item in found
    ]
