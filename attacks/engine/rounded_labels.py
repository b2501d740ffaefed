"""The label of a single image from a last layer whose gradient was rounded, so that no one entry can be trusted."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.engine.gradients import Gradients


def labels_of_rounded(gradients: Gradients, classes: int) -> Tensor | None:
    """The label of each trial's image, long [T], from all values of each class's row of the last layer.

    With d = softmax - onehot the weight's gradient is d_i f for features f, the bias's d_i, and d is negative at the label
    alone (Zhao et al. 2020, "iDLG", eq. 3). The sum of row i, its bias included, is d_i (1 + sum of f). Rounding without
    bias keeps its mean, and hundreds of values average the noise out. Features are taken to be positive on the whole, which
    they are behind ReLU and sigmoids.

    Args:
        gradients: of one step, name -> [T, *parameter shape], the layers in the model's order; the last layer is the module
            of the last tensor with a leading size of K.
        classes: K.

    Returns:
        The labels; None where there is no last layer of K rows.
    """
    names = [name for name, tensor in gradients.items() if tensor.dim() > 1 and tensor.shape[1] == classes]
    if not names:
        return None
    module = names[-1].rpartition(".")[0]
    layer = [gradients[name] for name in names if name.rpartition(".")[0] == module]
    rows = [tensor.reshape(len(tensor), classes, -1) for tensor in layer]
    return torch.cat(rows, dim=2).sum(2).argmin(1)
