"""Labels that an update states outright, in its last layer: that of a single image, or how often each is in a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.engine.gradients import Gradients, trial_count


def last_layer_labels(gradients: Gradients, classes: int) -> Tensor | None:
    """The label of each trial's image, long [T], from the gradient of the classifier's last layer (batch of one).

    With cross-entropy the gradient at the logits is d = softmax - onehot: negative at the label alone. The last layer's
    bias gradient is d (Zhao et al. 2020, "iDLG", eq. 3), so the label is its smallest entry. Without a bias, the rows of
    the weight's gradient are d_i f for the same features f: the label's row is the one that points against the others.

    Args:
        gradients: one step's gradients of a mean cross-entropy, name -> [T, *parameter shape]. The last layer is the module
            of the last tensor with a leading size of K, so they must come with the layers in the model's order.
        classes: K.

    Returns:
        The labels, or None where no tensor has a leading size of K, or where two classes share a last layer without bias.
    """
    trials = trial_count(gradients)
    layer = {name: gradients[name] for name in _last_layer(gradients, classes)}
    biases = [tensor for tensor in layer.values() if tensor.dim() == 2]
    if biases:
        return biases[0].argmin(1)
    if not layer or classes < 3:
        return None
    rows = list(layer.values())[-1].reshape(trials, classes, -1).double()
    against = (rows @ rows.transpose(1, 2) < 0).sum(2)
    return against.argmax(1)


@dataclass(frozen=True)
class LabelCounts:
    """How often each class is in each trial's batch, as far as the update tells.

    Attributes:
        counts: long [T, K], each row summing to the images of the batch.
        rounding: the most by which a count was moved to be whole, [T]; the larger, the less is sure.
    """

    counts: Tensor
    rounding: Tensor

    def labels(self) -> Tensor:
        """One label an image, in the order of the classes: long [T, m]."""
        classes = torch.arange(self.counts.shape[1])
        return torch.stack([classes.repeat_interleave(row) for row in self.counts])


def label_counts(gradients: Gradients, before: Mapping[str, Tensor], scale: float, images: int) -> LabelCounts | None:
    """The labels of each trial's batch, duplicates included, from the gradient of the last linear layer.

    Over a batch the last layer's bias gradient is mean_i softmax_i - n / m, with n the counts to be found (Geng et al.
    2021, "Towards General Deep Leakage in Federated Learning", label restoration); what the mean softmax is, the update
    tells as well. A class's row of the weight gradient over its entry of the bias gradient is about the mean feature of
    its images, and the layer makes of it what the network says of them (Ma et al. 2022, "Instance-wise batch label
    restoration via gradients"). With P[j] the softmax of class j's mean feature, n solves n - P^T n = -m * bias gradient.
    Over several steps P is the mean of those of the layer before and after them.

    Args:
        gradients: mean gradients of a mean cross-entropy, name -> [T, *parameter shape], with the layers in the model's
            order.
        before: the weights at which they were taken, or the training began.
        scale: what takes gradients to the change of the weights: rate times steps.
        images: m, of a batch, or of all batches where there were several.

    Returns:
        The counts, or None where the last layer is not linear with a bias.
    """
    names = _last_linear(gradients, before)
    if names is None:
        return None
    weight_name, bias_name = names
    found = []
    for weight, bias in zip(gradients[weight_name], gradients[bias_name], strict=True):
        change = _LastLayer(weight.double(), bias.double())
        if not bool(weight.isfinite().all() and bias.isfinite().all()):
            change = _LastLayer(torch.zeros_like(change.weight), torch.zeros_like(change.bias))
        start = _LastLayer(before[weight_name].double(), before[bias_name].double())
        predicted = (start.predictions(change) + start.moved(change, -scale).predictions(change)) / 2
        found.append(_whole_counts(predicted, change.bias, images))
    return LabelCounts(torch.stack([counts for counts, _ in found]), torch.stack([moved for _, moved in found]))


@dataclass(frozen=True)
class _LastLayer:
    """Weight [K, F] and bias [K] of a layer, or their gradients."""

    weight: Tensor
    bias: Tensor

    def moved(self, change: _LastLayer, factor: float) -> _LastLayer:
        return _LastLayer(self.weight + factor * change.weight, self.bias + factor * change.bias)

    def predictions(self, change: _LastLayer) -> Tensor:
        """The softmax at the mean feature of each class, [K, K], where `change` are the layer's gradients."""
        features = _class_features(change)
        return (features @ self.weight.T + self.bias).softmax(1)


def _class_features(change: _LastLayer) -> Tensor:
    """The mean feature of each class, [K, F]; that of all where a class's own row says too little.

    Rows of classes that are not in the batch are positive combinations of all features, and rows of classes that are
    stand out by a large negative bias gradient. A small one is a difference of the two, and no mean of anything.
    """
    strength = change.bias.abs()
    overall = (change.weight * change.bias.sign()[:, None]).sum(0) / strength.sum().clamp_min(1e-300)
    reliable = strength > 0.25 * strength.max()
    ratio = change.weight / torch.where(reliable, change.bias, 1.0)[:, None]
    return torch.where(reliable[:, None], ratio, overall)


def _whole_counts(predicted: Tensor, bias: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """The whole counts, long [K], that best explain a bias gradient [K], and the most by which rounding moved one.

    Least squares of counts - predicted^T counts = -images * bias, first among real counts that sum to `images`, then
    from the nearest whole ones by moving one image at a time from one class to another while that helps. A class whose
    bias gradient is negative is in the batch, whatever the network says of the images: without it there is no negative term.
    """
    classes = len(bias)
    system = torch.eye(classes, dtype=torch.float64) - predicted.T
    ones = torch.ones(1, classes, dtype=torch.float64)
    sides = torch.cat([-images * bias, torch.tensor([float(images)], dtype=torch.float64)])
    real = torch.linalg.lstsq(torch.cat([system, ones]), sides[:, None], driver="gelsd").solution[:, 0]
    seen = _seen_classes(bias, images)
    counts = seen + _nearest_whole(real - seen, images - int(seen.sum()))
    moves = torch.eye(classes, dtype=torch.float64)[:, None] - torch.eye(classes, dtype=torch.float64)
    while True:
        residual = system @ counts + images * bias
        squares = (residual + moves @ system.T).square().sum(2).masked_fill(counts <= seen, torch.inf)
        best = int(squares.argmin())
        if not float(squares.flatten()[best]) < float(residual.square().sum()) * (1 - 1e-9):
            return counts.long(), (counts - real).abs().max()
        counts = counts + moves.flatten(0, 1)[best]


def _seen_classes(bias: Tensor, images: int) -> Tensor:
    """One for each class that is in the batch for certain, [K]; of more than there are images, those seen best."""
    negative = bias < -1e-7 * bias.abs().max()
    most = negative.sum().clamp(max=images)
    seen = torch.zeros_like(bias)
    seen[bias.argsort()[: int(most)]] = 1
    return seen


def _nearest_whole(real: Tensor, total: int) -> Tensor:
    """Whole numbers from 0 on that sum to `total`, near to these: rounded down, the rest to the largest remainders."""
    positive = real.clamp_min(0)
    scaled = (
        positive * total / positive.sum() if float(positive.sum()) > 0 else torch.full_like(real, total / len(real))
    )
    counts = scaled.floor()
    missing = total - int(counts.sum())
    counts[(scaled - counts).topk(missing).indices] += 1
    return counts


def _last_layer(gradients: Gradients, classes: int) -> list[str]:
    """The tensors of the last module that has one with a leading size of K."""
    names = [name for name, tensor in gradients.items() if tensor.dim() > 1 and tensor.shape[1] == classes]
    module = names[-1].rpartition(".")[0] if names else ""
    return [name for name in names if name.rpartition(".")[0] == module]


def _last_linear(gradients: Gradients, before: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """The names of weight [K, F] and bias [K] of the last layer; None where it has no such two."""
    last = list(gradients)[-1]
    names = _last_layer(gradients, before[last].shape[0])
    shapes = {before[name].dim(): name for name in names}
    return (shapes[2], shapes[1]) if shapes.keys() == {1, 2} and len(names) == 2 else None
