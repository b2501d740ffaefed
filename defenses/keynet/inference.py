"""Encrypted inference: a keyed network on keyed images gives the classes of the plain one (Byrne et al. 2020, section 3).

With an image x sent as A_0 [x; 1] and layer i as What_i = A_i W_i A_{i-1}^-1, every product yields A_i [y_i; 1]: whoever
runs the network holds neither images nor weights, and only the key of the results opens the results. What stands
between the matrices has to commute with the keys: ReLU with positive monomial ones, other activations with permutations,
sums with any linear key that both terms have. Offsets commute with nothing; they go where matrices alone read them: the
image. A concatenation of parts with keys A_1, A_2 has a key A of its own: it is the matrix A diag(A_1, A_2)^-1,
whose parts share one homogeneous coordinate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from torch import Tensor, nn

from defenses.keynet.space_key import SpaceKey, homogeneous
from federation.channel_map import POSITIVELY_HOMOGENEOUS
from federation.errors import UsageError
from federation.toeplitz import Concatenation, Elementwise, Linear, Opaque, Step, Sum, ToeplitzNetwork
from federation.toeplitz.layout import Floats

_LINEAR = frozenset({"scale", "sum"})


def encrypt_images(images: Tensor, key: SpaceKey) -> Floats:
    """Keyed images, A_0 [x; 1] for each.

    Args:
        images: [N, C, H, W], as the plain network reads them.
        key: the key of the image space.

    Returns:
        float64 [N, C*H*W + 1].

    Raises:
        UsageError: where the key is of another size.
    """
    flat = images.detach().cpu().double().flatten(1).numpy()
    if flat.shape[1] != key.size:
        raise UsageError(f"images of {flat.shape[1]} values do not fit a key of {key.size}")
    with_one = np.hstack([flat, np.ones((len(flat), 1))])
    return np.asarray((key.matrix @ with_one.T).T)


def decrypt_outputs(outputs: Floats, key: SpaceKey) -> Tensor:
    """The plain results, float64 [N, results], from keyed ones [N, results + 1]; `key` is that of the output space."""
    if outputs.shape[1] != key.size + 1:
        raise UsageError(f"results of {outputs.shape[1] - 1} values do not fit a key of {key.size}")
    return torch.from_numpy(np.asarray((key.inverse @ outputs.T).T)[:, :-1].copy())


def check_keys(network: ToeplitzNetwork, keys: Sequence[SpaceKey]) -> None:
    """Raise UsageError, naming the node, for the first step that does not commute with the keys of its spaces.

    Args:
        network: the network's steps.
        keys: one key a space.
    """
    sizes = [space.size for space in network.spaces]
    if [key.size for key in keys] != sizes:
        raise UsageError(f"keys of {[key.size for key in keys]} entries do not fit the network's spaces, {sizes}")
    for step in network.steps:
        reason = _obstacle(step, keys[step.space])
        if reason is not None:
            raise step.refusal(reason)


def _obstacle(step: Step, key: SpaceKey) -> str | None:
    """Why the step does not commute with the key of its result, and what would do."""
    if isinstance(step, Opaque):
        if "max_pool" in step.operation:
            return f"{step.operation}: pixel keys split its windows; use average pooling, or channel keys (keynet)"
        return (
            f"no pixel key can be carried through {step.operation}; use convolutions, linear layers, batch norm, average "
            "pooling, elementwise activations, sums and concatenations of channels, or run this part on opened results"
        )
    if isinstance(step, Linear | Concatenation):
        return None
    operation = step.operation if isinstance(step, Elementwise) else "sum"
    if operation == "identity":
        return None
    if key.has_offsets:
        return (
            f"{operation}: offsets do not commute with it; use a key without offsets there (offset_range 0), or put a "
            "linear layer before it"
        )
    if operation in _LINEAR:
        return None
    if not key.is_monomial:
        return f"{operation}: a key that mixes entries (alpha > 1, orthogonal) does not commute with it; alpha 1 only"
    if operation not in POSITIVELY_HOMOGENEOUS and not key.is_permutation:
        return f"{operation}: gains do not commute with it; permutation keys only (gain_range 1)"
    return None


@dataclass(frozen=True)
class KeyedNetwork:
    """A network in keyed form: it runs on keyed images, and holds no key.

    Attributes:
        network: the steps.
        matrices: What of every linear step, pooling and batch normalisation among them, and of every concatenation, by the
            step's node.
    """

    network: ToeplitzNetwork
    matrices: Mapping[str, scipy.sparse.csr_array]

    @classmethod
    def of(cls, network: ToeplitzNetwork, weights: Mapping[str, Tensor], keys: Sequence[SpaceKey]) -> KeyedNetwork:
        """Key a network's weights.

        Args:
            network: the network's steps.
            weights: its tensors; batch normalisation is keyed as it stands in evaluation mode.
            keys: one key a space.

        Raises:
            UsageError: where a step does not commute with the keys; names the node.
        """
        check_keys(network, keys)
        return cls(
            network,
            {
                step.node: scipy.sparse.csr_array(
                    keys[step.space].matrix
                    @ step.layout.matrix(step.fill(weights))
                    @ keys[step.source_spaces[0]].inverse
                )
                for step in network.linear
            }
            | {
                step.node: scipy.sparse.csr_array(
                    keys[step.space].matrix @ _parts_opened([keys[space] for space in step.source_spaces])
                )
                for step in network.steps
                if isinstance(step, Concatenation)
            },
        )

    @property
    def entries(self) -> int:
        """Stored entries of all matrices."""
        return sum(int(matrix.nnz) for matrix in self.matrices.values())

    def run(self, images: Floats) -> Floats:
        """The keyed results of keyed images.

        Args:
            images: [N, C*H*W + 1], from `encrypt_images`.

        Returns:
            float64 [N, results + 1].
        """
        # entries along the first axis, images along the second: what a sparse product reads in order
        values = {self.network.image: np.ascontiguousarray(images.T, np.float64)}
        for step in self.network.steps:
            values[step.node] = self._result(step, [values[source] for source in step.sources])
        return np.asarray(values[self.network.result].T)

    def _result(self, step: Step, sources: list[Floats]) -> Floats:
        if isinstance(step, Linear):
            return np.asarray(self.matrices[step.node] @ sources[0])
        if isinstance(step, Concatenation):
            return np.asarray(self.matrices[step.node] @ np.vstack([*(part[:-1] for part in sources), sources[0][-1:]]))
        result = sources[0].copy()
        if isinstance(step, Elementwise):  # the homogeneous coordinate is no value of the feature map
            result[:-1] = step.function(torch.from_numpy(sources[0][:-1])).numpy()
        elif isinstance(step, Sum):
            result[:-1] += step.sign * sources[1][:-1]
        else:
            raise step.refusal("it cannot be run in keyed form")
        return result


def _parts_opened(keys: Sequence[SpaceKey]) -> scipy.sparse.csr_array:
    """The inverse keys of concatenated parts: what takes their keyed entries and a single 1 to the plain ones."""
    linear = scipy.sparse.block_diag([key.inverse[:-1, :-1] for key in keys], format="csr")
    return homogeneous(linear, np.concatenate([key.inverse[:-1, [-1]].toarray().ravel() for key in keys]))


@dataclass(frozen=True)
class EncryptedExamples:
    """Images beside what the keyed network sees of them: the data of Gusain's figures 4.2 and 4.3.

    Attributes:
        plain: [N, C, H, W] the images.
        encrypted: [N, C, H, W] the keyed images as pictures: each stretched to [0, 1].
        plain_classes, encrypted_classes: int64 [N], by the plain network, and by the keyed one with its results opened.
    """

    plain: Tensor
    encrypted: Tensor
    plain_classes: Tensor
    encrypted_classes: Tensor


def encrypted_examples(
    model: nn.Module, network: ToeplitzNetwork, keys: Sequence[SpaceKey], images: Tensor
) -> EncryptedExamples:
    """Classify images in plain and in keyed form.

    Args:
        model: the network; it is run in evaluation mode and left as it was.
        network: its steps.
        keys: one key a space.
        images: [N, C, H, W], as the network reads them.

    Raises:
        UsageError: where a step does not commute with the keys; names the node.
    """
    keyed = KeyedNetwork.of(network, model.state_dict(), keys)
    sent = encrypt_images(images, keys[0])
    opened = decrypt_outputs(keyed.run(sent), keys[network.result_space])
    was_training = model.training
    with torch.no_grad():
        plain_classes = model.eval()(images).argmax(1)
    model.train(was_training)
    pictures = torch.from_numpy(sent[:, :-1].copy())
    low, high = pictures.amin(1, keepdim=True), pictures.amax(1, keepdim=True)
    stretched = (pictures - low) / (high - low).clamp(min=torch.finfo(torch.float64).tiny)
    return EncryptedExamples(images, stretched.to(images.dtype).reshape(images.shape), plain_classes, opened.argmax(1))
