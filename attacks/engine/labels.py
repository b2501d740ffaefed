"""Labels that an update of a single image states outright."""

from __future__ import annotations

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
    names = [name for name, tensor in gradients.items() if tensor.dim() > 1 and tensor.shape[1] == classes]
    if not names:
        return None
    module = names[-1].rpartition(".")[0]
    layer = [gradients[name] for name in names if name.rpartition(".")[0] == module]
    biases = [tensor for tensor in layer if tensor.dim() == 2]
    if biases:
        return biases[0].argmin(1)
    if classes < 3:
        return None
    rows = layer[-1].reshape(trials, classes, -1).double()
    against = (rows @ rows.transpose(1, 2) < 0).sum(2)
    return against.argmax(1)
