"""Eq. 2.2 of Gusain 2021: where a network begins with a biased linear layer, one image's update states the image."""

from dataclasses import dataclass

import torch

from attacks.base import Attack, Need, Reconstruction


@dataclass(frozen=True)
class FirstLayer(Attack):
    name = "first-layer"
    needs = frozenset({Need.PLAIN_MODEL, Need.SINGLE_IMAGE})

    def reconstruct(self, history, victims, *, generator, budget):
        return [self.invert(history[victim.observation], victim) for victim in victims]

    def invert(self, seen, victim):
        before, after = seen.view.before, seen.view.after[victim.sender]
        weight, bias = (before[name] - after[name] for name in list(before)[:2])
        row = bias.abs().argmax()
        image = (weight[row] / bias[row]).view(1, *seen.network.image_shape)
        mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in (seen.mean, seen.deviation))
        pixels = (image * deviation + mean).clamp(0, 1)
        return Reconstruction(pixels, labels=None, objective=None, evaluations=1, seconds=0.0)
