"""`keynet-image`: keyed images opened by what the served network's first layer tells, and turned upright."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from attacks.adaptive.grid.gains import LayerKey
from attacks.adaptive.grid.network import NetworkKey, template_of
from attacks.adaptive.grid.template import ConvolutionTemplate, Floats, KeyNotFoundError
from attacks.adaptive.keynet_grid import STAGE, mixed_pixels
from attacks.adaptive.keynet_image import RecoveredImages, recover_images
from attacks.adaptive.upright import upright
from attacks.base import ATTACKS, Attack, Budget, History, Need, Reconstruction, prior_guess
from federation.normalisation import Normalisation
from federation.threat import KeyedImage, Observation, Victim
from federation.toeplitz import Linear, toeplitz_of


@ATTACKS.register("keynet-image")
@dataclass(frozen=True)
class KeyNetImage(Attack):
    """Read the key of the images off the keyed layer that takes them, undo it, and turn the images upright.

    The pose of the images and the order of their channels, which the layer does not tell, are those in which all images
    under one key are most like auxiliary ones. An image that is read in clear is returned as it is.
    """

    name: ClassVar[str] = "keynet-image"
    reference: ClassVar[str] = "Byrne, DeCann and Bloom 2020"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.KEYED_IMAGES, Need.AUXILIARY, Need.SCHEME})
    undoes: ClassVar[frozenset[str]] = frozenset({STAGE})
    made_for: ClassVar[frozenset[str]] = frozenset({STAGE})

    def lacks(self, observation: Observation) -> str | None:
        """See `mixed_pixels`."""
        return mixed_pixels(observation)

    def reconstruct(
        self, history: History, victims: Sequence[Victim], *, generator: torch.Generator, budget: Budget
    ) -> list[Reconstruction]:
        """See `Attack.reconstruct`; no gradient is evaluated."""
        found: dict[int, Reconstruction] = {}
        groups: dict[bytes, list[int]] = {}
        for index, victim in enumerate(victims):
            observation = history[victim.observation]
            if _view(observation).hidden_by:
                groups.setdefault(_network_digest(observation), []).append(index)
            else:
                found[index] = Reconstruction(_pixels(observation), None, 0.0, evaluations=0, seconds=0.0)
        for members in groups.values():
            observations = [history[victims[index].observation] for index in members]
            start = time.perf_counter()
            try:
                opened = _opened(observations)
            except KeyNotFoundError as error:
                note = f"no key was found: {error}"
                opened = [
                    replace(prior_guess(observation, victims[index]), note=note)
                    for index, observation in zip(members, observations, strict=True)
                ]
            seconds = (time.perf_counter() - start) / len(members)
            found |= {index: replace(item, seconds=seconds) for index, item in zip(members, opened, strict=True)}
        return [found[index] for index in range(len(victims))]


def _view(observation: Observation) -> KeyedImage:
    view = observation.view
    assert isinstance(view, KeyedImage), "the harness checked what this attack needs"
    return view


def _network_digest(observation: Observation) -> bytes:
    """Of the layers, which tell one key from another."""
    digest = hashlib.sha256()
    for matrix in _view(observation).layers.values():
        for part in (matrix.data, matrix.indices, matrix.indptr):
            digest.update(part.tobytes())
    return digest.digest()


def _pixels(observation: Observation) -> Tensor:
    """[1, C, H, W] in [0, 1], of an image that is read in clear, with a homogeneous 1 behind it or not."""
    shape = observation.network.image_shape
    values = _view(observation).image[: int(np.prod(shape))].view(1, *shape)
    if values.dtype == torch.uint8:  # a picture, whose contrast and brightness were not sent
        return torch.from_numpy(_as_bright_as_public(values.numpy() / 255, observation)).float()
    return Normalisation(observation.mean, observation.deviation).invert(values)


def _opened(observations: Sequence[Observation]) -> list[Reconstruction]:
    """Images under one key; raises KeyNotFoundError where the layer does not tell it."""
    first, images = observations[0], torch.stack([_view(observation).image for observation in observations]).numpy()
    step, template = _first_layer(first)
    pictures = images.dtype == np.uint8
    found = recover_images(_view(first).layers[step.node], images, template, grey_levels=pictures)
    exact = not pictures and not found.key.offsets
    pixels = _pixels_by(found.key, images, first) if exact else _as_bright_as_public(found.images, first)
    frames = [_frame(step, found.key.in_pose(pose), pose) for pose in found.poses]
    best = upright(frames, torch.from_numpy(pixels).float(), first)
    findings = {**_findings(found), "likeness to auxiliary images": best.likeness}
    # otherwise the colours of the sets of pixels that a stride keeps apart were put together before, and not in the key
    claims = best.frame.claims() if exact or template.inputs == 1 else {}
    return [
        Reconstruction(
            image[None], None, found.key.residual, evaluations=0, seconds=0.0, findings=findings, key_claims=claims
        )
        for image in best.images.clamp(0, 1)
    ]


def _first_layer(observation: Observation) -> tuple[Linear, ConvolutionTemplate]:
    """The layer that takes the images; raises KeyNotFoundError where it is no convolution."""
    traced = toeplitz_of(observation.network)
    step = next((step for step in traced.linear if step.source_spaces[0] == 0), None)
    template = None if step is None or not step.tensors else template_of(observation.network, traced, step)
    if step is None or template is None:
        raise KeyNotFoundError("no ungrouped convolution reads the images")
    return step, template


def _frame(step: Linear, key: LayerKey, pose: int) -> NetworkKey:
    """What is known of the network where nothing but its first layer was opened."""
    return NetworkKey({step.layer: key}, {0: key.source}, step.layer, image=0, pose=pose)


def _pixels_by(key: LayerKey, images: Floats, observation: Observation) -> Floats:
    """Keyed images as pixels [N, C, H, W], by one normalisation for all channels, the mean of theirs.

    The key's gains are known up to their middle, so that contrast and brightness are as well. Where no window has the
    pixel it is as the mean of all.
    """
    values = np.nan_to_num(images[:, key.places.columns] / key.columns)  # [N, pixels, channels]
    maps = np.swapaxes(values, 1, 2).reshape(len(images), key.template.inputs, *key.template.source)
    return np.asarray(maps * np.mean(observation.deviation) + np.mean(observation.mean))


def _as_bright_as_public(images: Floats, observation: Observation) -> Floats:
    """Images, each from 0 to 1 because nothing tells its contrast and brightness, with those of public ones on average."""
    assert observation.auxiliary is not None, "the harness checked what this attack needs"
    public = observation.auxiliary.pixels
    low, high = (float(values.mean()) for values in (public.amin((1, 2, 3)), public.amax((1, 2, 3))))
    return low + images * (high - low)


def _findings(found: RecoveredImages) -> Mapping[str, float]:
    gains = found.key.columns[np.isfinite(found.key.columns)]
    return {
        "share of pixels placed": float(np.mean(found.key.places.columns >= 0)),
        "largest ratio of gains": float(gains.max() / gains.min()),
        "key residual": found.key.residual,
        "poses left open": float(len(found.poses)),
    }
