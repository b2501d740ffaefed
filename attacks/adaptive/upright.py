"""Which pose and which order of colours of opened images is the true one: that in which they are most like public ones.

What a keyed convolution leaves open is the same for all images under one key. The likeness of a version of them is the
mean over images of log p, where p is a kernel estimate of the density of public images. Versions are the same normalised
numbers in other places, so that densities compare as they are.

    log p(x) = log sum_a exp(20 corr(x, a) - 10 d(x, a)) + constant

corr is the correlation of the pictures, each a little blurred, so that what an inversion got wrong from pixel to pixel
counts less; d the mean squared difference of the levels (quantiles) of channels and of their differences, in units of
their variance over public images. Levels tell colours and know no pose; grey images have none.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from attacks.adaptive.grid.colours import channel_orders, with_channels_in
from attacks.adaptive.grid.network import NetworkKey
from federation.threat import Observation

_SHARPNESS = 20.0
"""Of the density along correlation; between 10 and 40 it makes little difference."""

_COLOUR_SHARPNESS = 10.0
"""Along levels; from 3 to 30 it makes little difference."""

_LEVELS = 8


@dataclass(frozen=True)
class Version:
    """All images in one of the frames and orders of channels that are left.

    Attributes:
        frame: the keys in that frame, the image's channels in that order.
        images: [N, C, H, W] in [0, 1].
        likeness: to public images, see `PublicLook.likeness`.
    """

    frame: NetworkKey
    images: Tensor
    likeness: float


def upright(frames: Sequence[NetworkKey], images: Tensor, observation: Observation) -> Version:
    """The version of images that is most like the observation's auxiliary ones; arguments as for `versions`."""
    return max(versions(frames, images, observation), key=lambda version: version.likeness)


def versions(frames: Sequence[NetworkKey], images: Tensor, observation: Observation) -> Iterator[Version]:
    """The images in every frame and order of channels.

    Args:
        frames: what was found of a key, in every frame that the ciphertext leaves open.
        images: [N, C, H, W] of the first frame, in [0, 1] by one normalisation for all channels, the mean of theirs.
        observation: has auxiliary images, and each channel's normalisation.
    """
    assert observation.auxiliary is not None, "the harness checked what the attack needs"
    public = PublicLook.of(observation.auxiliary.pixels)
    for frame in frames:
        turned = frames[0].seen_in(frame, images).double().numpy()
        connected = channel_orders(turned, frame.template)
        for order in itertools.permutations(range(images.shape[1])):
            orders = connected[:, list(order)]
            sorted_images = torch.from_numpy(with_channels_in(turned, orders)).float()
            pixels = _renormalised(sorted_images, observation)
            # what leaves [0, 1] in a wrong order speaks against it, so that likeness is taken first
            yield Version(frame.with_channels_in(orders), pixels.clamp(0, 1), public.likeness(pixels))


@dataclass(frozen=True, eq=False)
class PublicLook:
    """What public images look like.

    Attributes:
        pictures: [M, P], blurred, of mean 0 and norm 1.
        levels: [M, L], of the channels and of their differences, scaled.
        unit: what levels are divided by: the root mean square of their deviations, which no order of channels changes.
    """

    pictures: Tensor
    levels: Tensor
    unit: float

    @classmethod
    def of(cls, public: Tensor) -> PublicLook:
        """That of images [M, C, H, W] in [0, 1]."""
        levels = _levels(public)
        unit = float((levels - levels.mean(0)).square().mean().sqrt()) + 1e-6 if levels.numel() else 1.0
        return cls(_pictures(public), levels / unit, unit)

    def likeness(self, images: Tensor) -> float:
        """Mean of log p over images [N, C, H, W], in nats, up to a constant: the larger, the more alike.

        Pixels are in [0, 1]; what is beyond it in a wrong version speaks against that, and is better not clipped.
        """
        return float(self.of_each(images).mean())

    def of_each(self, images: Tensor) -> Tensor:
        """[N], log p of each image."""
        exponents = _SHARPNESS * _pictures(images) @ self.pictures.T
        if images.shape[1] > 1:
            levels = _levels(images) / self.unit
            exponents -= _COLOUR_SHARPNESS * torch.cdist(levels, self.levels).square() / levels.shape[1]
        return exponents.double().logsumexp(1)


def _pictures(images: Tensor) -> Tensor:
    flat = _blurred(images).flatten(1)
    return F.normalize(flat - flat.mean(1, keepdim=True), dim=1)


def _levels(images: Tensor) -> Tensor:
    """[N, L], quantiles of each channel and of each difference of two; none of grey images."""
    channels = images.shape[1]
    pairs = list(itertools.permutations(range(channels), 2))
    if not pairs:
        return images.new_zeros(len(images), 0)
    blurred = _blurred(images)
    differences = torch.stack([blurred[:, one] - blurred[:, other] for one, other in pairs], 1)
    ordered = np.sort(torch.cat([blurred, differences], 1).flatten(2).numpy(), axis=2)
    places = (np.arange(_LEVELS) + 0.5) / _LEVELS * ordered.shape[2]
    return torch.from_numpy(ordered[:, :, places.astype(int)]).flatten(1)


def _blurred(images: Tensor) -> Tensor:
    """Means over 3x3 pixels."""
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)


def _renormalised(images: Tensor, observation: Observation) -> Tensor:
    """Images that were opened with one normalisation for all channels, with each channel's own."""
    if images.shape[1] == 1:
        return images
    mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in (observation.mean, observation.deviation))
    return (images - mean.mean()) / deviation.mean() * deviation + mean
