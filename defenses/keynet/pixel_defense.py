"""`keynet-toeplitz`: Key-Net as published, full pixel keys on sparse Toeplitz matrices, for weights that are averaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from defenses.base import Claim, Magnitudes
from defenses.inference import Inference
from defenses.keynet.pixel_claims import score_pixel_claims
from defenses.keynet.pixel_form import PixelForm
from defenses.keynet.pixel_keys import PixelKeyPolicy, PixelKeys, draw_pixel_keys, identity_pixel_keys
from defenses.keynet.pixel_message import KeyedModel
from defenses.keynet.pixel_transform import PIXEL_ERROR, PixelTransform
from defenses.keynet.served import KeyedInference
from defenses.registry import DEFENSES
from defenses.stages import Admit, ClientCodec, Codec, KeyMaterial, KeysInForce, ServerCodec
from federation.errors import MalformedMessage, UsageError
from federation.messages import SERVER
from federation.network import Network
from federation.protocol import RoundContext
from federation.secret_root import SecretRoot
from federation.threat import SparseLayers, View
from federation.toeplitz import PixelSpace
from federation.weights import Kind, Weights


@DEFENSES.register("keynet-toeplitz")
@dataclass(frozen=True)
class KeyNetToeplitz(Codec):
    """Weights as keyed Toeplitz matrices, What_i = A_i W_i A_{i-1}^-1 (Byrne et al. 2020; Gusain 2021, eq. 3.1 put right).

    Every convolution and fully connected layer crosses the wire as a sparse matrix (CSR) whose rows and columns are
    keyed pixel by pixel; the server averages entries of equal places. The network is never run in keyed form here, so
    keys need not commute with its activations (`inference.py` runs it where they do). What stands in no matrix is keyed
    as a vector of its own, with a permutation and gains of its own; counters are sent as they are. Images are encrypted
    by keys of their owner's own, drawn by the same options (`served.py`).

    Attributes:
        gain_range: s; gains are log-uniform on [1/s, s]; 1 means permutations alone.
        alpha: permutations mixed in the keys of image and pooled maps (eq. 2.7); over 1 the first layer grows dense.
        outputs: the key of the class outputs: "identity", "permutation" or "monomial".
        largest_condition: cond(A) of a soft key at most.
        publish_key: use identity keys and say so to everyone (the leaky twin).
    """

    gain_range: float = 2.0
    alpha: int = 1
    outputs: Literal["identity", "permutation", "monomial"] = "permutation"
    largest_condition: float = 1e3
    publish_key: bool = False

    name: ClassVar[str] = "keynet-toeplitz"
    keyed: ClassVar[bool] = True
    key_holders: ClassVar[str] = "key agent and every client (one key)"
    collusion_bound: ClassVar[str] = "one client"

    @property
    def policy(self) -> PixelKeyPolicy:
        """What is drawn for which space; raises UsageError for options out of range."""
        return PixelKeyPolicy(self.gain_range, self.alpha, self.outputs, self.largest_condition)

    @property
    def inference(self) -> Inference:
        """On keyed images; without offsets."""
        return KeyedInference(self.name, self.policy, self.publish_key)

    def check(self, network: Network) -> None:
        """Raise UsageError where the network's layers cannot be laid out as matrices, or an option is out of range."""
        self.claims(network)  # laying the network out and the policy raise what is wrong

    def draw_keys(self, network: Network, receiver: str, root: SecretRoot) -> KeyMaterial:
        """One set of keys for every client, none for the server."""
        form = PixelForm.of(network)
        if self.publish_key:
            return KeyMaterial(public=identity_pixel_keys(form).to_bytes())
        if receiver == SERVER:
            return KeyMaterial()
        return KeyMaterial(secret=draw_pixel_keys(form, root, self.policy).to_bytes())

    def claims(self, network: Network) -> Mapping[str, Claim]:
        """Permuted or scaled, where a key changes the rows or columns a tensor stands in; counters are plain."""
        form = PixelForm.of(network)
        spaces, policy = form.network.spaces, self.policy
        changed: dict[str, bool] = {}
        for step in form.layers.values():
            output, source = spaces[step.space], spaces[step.source_spaces[0]]
            outward = self._changes(output, policy)
            changed[step.tensors[0]] = outward or self._changes(source, policy)
            changed |= dict.fromkeys(step.tensors[1:], outward)  # a bias meets the input's homogeneous coordinate alone
        for name, size in form.vectors.items():
            changed[name] = not self.publish_key and (size > 1 or policy.gain_range > 1)
        return {
            spec.name: Claim.TRANSFORMED
            if spec.kind is not Kind.COUNTER and changed.get(spec.name, False)
            else Claim.PLAIN
            for spec in network.layout
        }

    def _changes(self, space: PixelSpace, policy: PixelKeyPolicy) -> bool:
        permuted = policy.permutes(space) and space.size > 1
        return not self.publish_key and (permuted or policy.gains_of(space) > 1)

    def score_key_claims(
        self, claims: Mapping[str, Tensor], network: Network, keys: KeysInForce
    ) -> Mapping[str, float]:
        """See `score_pixel_claims`."""
        if self.publish_key:
            return {}
        form = PixelForm.of(network)
        true = PixelKeys.from_bytes(keys.key.secret, form)
        scaled = [space.index for space in form.network.spaces if self.policy.gains_of(space) > 1]
        return score_pixel_claims(claims, true.spaces, form.network, scaled)

    def stated_error(self, magnitudes: Magnitudes) -> float:
        """Roundings to float32 relative to the largest weight, times the condition of a soft input key.

        Permutations add none to the rounding of the plain mean.
        """
        if self.alpha > 1:
            return magnitudes.weights * PIXEL_ERROR * self.largest_condition
        return magnitudes.weights * (PIXEL_ERROR if self.gain_range > 1 else 2.0**-24)

    def leaky_twin(self) -> KeyNetToeplitz:
        """Identity keys, published."""
        return replace(self, publish_key=True)

    def client(self, name: str, material: KeyMaterial, network: Network) -> ClientCodec:
        """A client's part, with the shared keys."""
        form = PixelForm.of(network)
        keys = PixelKeys.from_bytes(material.public if self.publish_key else material.secret, form)
        return ToeplitzClient(form, PixelTransform(form, keys))

    def server(self, material: KeyMaterial, network: Network) -> ServerCodec:
        """The server's part; it has no key."""
        return ToeplitzServer(PixelForm.of(network))

    def closed_view(
        self, network: Network, before: bytes, after: Mapping[str, bytes], hidden_by: frozenset[str]
    ) -> View:
        """The keyed matrices, and what is carried beside them as matrices of one column."""
        form = PixelForm.of(network)

        def read(payload: bytes, where: str) -> dict[str, scipy.sparse.csr_array]:
            model = KeyedModel.from_bytes(payload, form, where)
            columns = {name: scipy.sparse.csr_array(vector[:, None]) for name, vector in model.vectors.items()}
            return {**model.matrices, **columns}

        read_after = {sender: read(payload, f"contribution of {sender}") for sender, payload in after.items()}
        return SparseLayers(read(before, "global message"), read_after, hidden_by)


class ToeplitzClient(ClientCodec):
    """The client's part of `KeyNetToeplitz`."""

    def __init__(self, form: PixelForm, transform: PixelTransform) -> None:
        self._form, self._transform = form, transform

    def encode_initial(self, weights: Weights, context: RoundContext) -> bytes:
        """The keyed model."""
        return self._transform.protect(weights).to_bytes()

    def encode(self, weights: Weights, base: Weights, context: RoundContext) -> bytes:
        """The keyed model."""
        return self._transform.protect(weights).to_bytes()

    def decode(self, payload: bytes) -> Weights:
        """See `ClientCodec.decode`."""
        return self._recovered(payload, "global message")

    def decode_upload(self, payload: bytes, base: Weights, share: float) -> Weights:
        """See `ClientCodec.decode_upload`."""
        return self._recovered(payload, "contribution")

    def _recovered(self, payload: bytes, where: str) -> Weights:
        return self._transform.recover(KeyedModel.from_bytes(payload, self._form, where), where)


class ToeplitzServer(ServerCodec):
    """The server's part of `KeyNetToeplitz`: it averages entries, and need not know what they mean."""

    def __init__(self, form: PixelForm) -> None:
        self._form = form

    def combine(self, uploads: Mapping[str, bytes], base: bytes, context: RoundContext, admit: Admit) -> bytes:
        """The weighted mean, entry by entry; raises MalformedMessage where a contribution's places are others'."""
        places = KeyedModel.from_bytes(base, self._form, "global message").matrices
        models = {
            sender: KeyedModel.from_bytes(payload, self._form, f"contribution of {sender}")
            for sender, payload in uploads.items()
        }
        for sender, model in models.items():
            for name, matrix in model.matrices.items():
                same = all(np.array_equal(getattr(matrix, part), getattr(places[name], part)) for part in _PLACES)
                if not same:
                    raise MalformedMessage(
                        f"contribution of {sender}: the entries of layer {name!r} stand in other places than the global "
                        "model's; all clients need one key"
                    )
        shares = {sender: context.share(sender) for sender in models}
        matrices = {
            name: scipy.sparse.csr_array(
                (_mean(shares, {sender: model.matrices[name].data for sender, model in models.items()}),
                 matrix.indices, matrix.indptr),
                shape=matrix.shape,
            )
            for name, matrix in places.items()
        }  # fmt: skip
        vectors = {
            name: _mean(shares, {sender: model.vectors[name] for sender, model in models.items()})
            for name in self._form.vectors
        }
        counters = {
            name: torch.stack([model.counters[name] for model in models.values()]).amax(dim=0)
            for name in self._form.counter_names
        }
        return KeyedModel(matrices, vectors, counters).to_bytes()

    def remap(self, payload: bytes, change: Callable[[Weights], Weights]) -> bytes:
        """Refused: the server cannot change weights that it cannot open."""
        raise UsageError(
            "keynet-toeplitz: the server cannot re-key weights that it cannot open; use one key for all clients"
        )


_PLACES = ("indptr", "indices")


def _mean(shares: Mapping[str, float], values: Mapping[str, np.ndarray]) -> np.ndarray:
    total = sum(share * values[sender].astype(np.float64) for sender, share in shares.items())
    return np.asarray(total, dtype=np.float32)
