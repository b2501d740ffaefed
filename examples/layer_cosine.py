"""Gradient matching layer by layer: the mean over tensors of 1 - cosine, where `cosine` takes all tensors together."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from attacks.cosine import Cosine


def layer_cosine(candidate, target):
    """Updates by name, [trials, *shape] each, to one number a trial, 0 at a perfect match."""
    cosines = [F.cosine_similarity(candidate[name].flatten(1), target[name].flatten(1), dim=1) for name in target]
    return 1 - torch.stack(cosines).mean(0)


@dataclass(frozen=True)
class LayerCosine(Cosine):
    name = "layer-cosine"

    def objective(self):
        return layer_cosine
