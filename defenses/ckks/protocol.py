"""FedAvg under CKKS: clients share the secret key, the server adds ciphertexts and holds nothing.

Each client scales its weights by n_k / n, rounds them to a grid, adds a slot that counts it, and sends fresh symmetric
encryptions; the server adds coefficients modulo a public prime. A client decrypts the sum and rounds the noise away, so
that what it recovers is a function of the clients' weights alone.

That rounding is also what keeps the key. CKKS as it stands is not secure against whoever sees a ciphertext (c0, c1)
and all that it decrypts to (IND-CPA-D; Li and Micciancio, Eurocrypt 2021): with its noise that is c0 + c1 s, and one
linear equation gives the secret key s. Here the server never receives a decryption, but a model that a client releases
is one, in clear, of a ciphertext that the server holds. Rounded to the grid, it is the exact sum except with
probability 2^-136 a value (see `grid`), and tells no more than that sum does. This holds for a server that adds what
clients sent, each once. One that adds one of them many times, or noise of its own, can push the noise to half a unit
and learn from how what is released was rounded; nothing here protects against it, and nothing but the count of
contributions shows that a sum is the right one.

What one client sent is never decrypted by the others' software, but any client holds the key: against a client that
taps another's upload the transport has to protect.

Parameters: sums ask for no levels, so one prime is enough. Measured at scale 2^40, bytes a value and largest error over
one ciphertext: N = 8192 in TenSEAL's own serialisation (60 bits, and a special prime) 32.0 bytes, 7.7e-9 with a public
key and 6.6e-10 symmetric; N = 4096 with 54 bits 30.1 bytes, compressed to a length that varies by chance, 3.3e-9 and
4.7e-10; N = 4096 with 56 bits, two values in a complex slot and seven bytes a coefficient, as here, 14.0 bytes and
5.1e-10 before rounding to the grid, which leaves 3.0e-8 a client.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch

from defenses.base import Claim, Magnitudes
from defenses.ckks.grid import LARGEST, UNIT, from_slots, to_slots
from defenses.ckks.message import CkksMessage
from defenses.ckks.ring import LARGEST_SUM, add
from defenses.registry import DEFENSES
from defenses.stages import Admit, ClientCodec, Codec, KeyMaterial, ServerCodec
from federation.errors import MalformedMessage, MissingExtra, TrainingError, UsageError
from federation.messages import SERVER
from federation.network import Network
from federation.protocol import RoundContext
from federation.secret_root import SecretRoot
from federation.weights import Kind, Layout, Weights, counters, flatten, floating, unflatten

if TYPE_CHECKING:
    from defenses.ckks.scheme import Scheme

SEED_BYTES = 64
"""Of the secret key's seed."""


@DEFENSES.register("ckks")
@dataclass(frozen=True)
class Ckks(Codec):
    """Homomorphic encryption of the weights (CKKS 2017, by TenSEAL), exact on a grid; the key is with the clients.

    Attributes:
        minimum_parties: a client sends nothing to a cohort of fewer.
        publish_key: hand the secret key to everyone (the leaky twin).
    """

    minimum_parties: int = 2
    publish_key: bool = False

    name: ClassVar[str] = "ckks"
    keyed: ClassVar[bool] = True
    key_holders: ClassVar[str] = "every client (one secret key)"
    collusion_bound: ClassVar[str] = "one client"

    def __post_init__(self) -> None:
        try:
            importlib.import_module("tenseal.sealapi")
        except ImportError as error:
            raise MissingExtra(f"ckks needs the extra: pip install 'keyhole[ckks]' ({error})") from error

    def draw_keys(self, network: Network, receiver: str, root: SecretRoot) -> KeyMaterial:
        """The seed of the secret key to clients alone; the server needs nothing but the public parameters."""
        seed = root.stream(SEED_BYTES)
        if self.publish_key:
            return KeyMaterial(public=seed)
        return KeyMaterial(secret=b"" if receiver == SERVER else seed)

    def opens(self, material: KeyMaterial) -> bool:
        """Only the secret key opens anything."""
        return bool(self._seed(material))

    def claims(self, network: Network) -> Mapping[str, Claim]:
        """Everything is hidden but counters, which are no secret; nothing is under a published key."""
        weights = Claim.PLAIN if self.publish_key else Claim.HIDDEN
        return {spec.name: Claim.PLAIN if spec.kind is Kind.COUNTER else weights for spec in network.layout}

    def stated_error(self, magnitudes: Magnitudes) -> float:
        """Half a unit of the grid a client, and the roundings of this mean and of the plain one to float32."""
        return magnitudes.clients * UNIT / 2 + magnitudes.weights * 2.0**-23

    def leaky_twin(self) -> Ckks:
        """The same protocol with the secret key published."""
        return replace(self, publish_key=True)

    def client(self, name: str, material: KeyMaterial, network: Network) -> ClientCodec:
        """A client's part, with the secret key; raises MalformedMessage for anything but a seed."""
        seed = self._seed(material)
        if len(seed) != SEED_BYTES:
            raise MalformedMessage(f"key message to {name}: a CKKS key has {SEED_BYTES} bytes, not {len(seed)}")
        return CkksClient(name, seed, network.layout, self.minimum_parties)

    def server(self, material: KeyMaterial, network: Network) -> ServerCodec:
        """The server's part; it holds no key."""
        return CkksServer(network.layout)

    def _seed(self, material: KeyMaterial) -> bytes:
        return material.public if self.publish_key else material.secret


class CkksClient(ClientCodec):
    """The client's part: it alone encrypts and decrypts."""

    def __init__(self, name: str, seed: bytes, layout: Layout, minimum_parties: int) -> None:
        self._name = name
        self._seed = seed
        self._layout = layout
        self._minimum_parties = minimum_parties

    def encode_initial(self, weights: Weights, context: RoundContext) -> bytes:
        """The whole model as one contribution."""
        return self._encrypt(weights, share=1.0)

    def encode(self, weights: Weights, base: Weights, context: RoundContext) -> bytes:
        """Fresh encryptions of the weights times n_k / n; raises UsageError in a cohort of the wrong size."""
        if len(context.cohort) < self._minimum_parties:
            raise UsageError(
                f"{self._name} takes part in no round of {len(context.cohort)} (minimum_parties is "
                f"{self._minimum_parties}): the sum would be its own update"
            )
        if len(context.cohort) > LARGEST_SUM:
            raise UsageError(f"ckks adds {LARGEST_SUM} contributions at most, not {len(context.cohort)}")
        return self._encrypt(weights, context.share(self._name))

    def decode(self, payload: bytes) -> Weights:
        """Decrypt a global message; raises MalformedMessage where it is not a sum under this key."""
        message = CkksMessage.from_bytes(payload, self._layout, "global message")
        return self._decrypt(message, "global message", divide_by=1.0)

    def decode_upload(self, payload: bytes, base: Weights, share: float) -> Weights:
        """Decrypt one client's contribution, as whoever has the key and taps the wire can."""
        message = CkksMessage.from_bytes(payload, self._layout, "contribution")
        return self._decrypt(message, "contribution", divide_by=share)

    @cached_property
    def _scheme(self) -> Scheme:
        # imported late: without TenSEAL, Keyhole goes without this defense
        from defenses.ckks.scheme import Scheme

        return Scheme(self._seed)

    def _encrypt(self, weights: Weights, share: float) -> bytes:
        for spec in floating(self._layout):
            largest = float(weights[spec.name].abs().amax()) if spec.size else 0.0
            if not largest <= LARGEST:
                raise TrainingError(f"tensor {spec.name!r} holds {largest:g}; ckks carries values within +-{LARGEST:g}")
        slots = to_slots(flatten(weights, floating(self._layout)).numpy() * share)
        exact = {spec.name: weights[spec.name] for spec in counters(self._layout)}
        return CkksMessage(self._scheme.encrypt(slots), 1, exact).to_bytes()

    def _decrypt(self, message: CkksMessage, where: str, divide_by: float) -> Weights:
        specs = floating(self._layout)
        count = sum(spec.size for spec in specs)
        values = from_slots(self._scheme.decrypt(message.words), count, message.contributions, where) / divide_by
        weights = unflatten(torch.from_numpy(values), specs) | message.counters
        return {spec.name: weights[spec.name] for spec in self._layout}


class CkksServer(ServerCodec):
    """The server's part: it adds ciphertexts, and could open none."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def combine(self, uploads: Mapping[str, bytes], base: bytes, context: RoundContext, admit: Admit) -> bytes:
        """The sum of the cohort's ciphertexts: of what the clients scaled by n_k / n."""
        messages = {
            sender: CkksMessage.from_bytes(payload, self._layout, f"contribution of {sender}")
            for sender, payload in uploads.items()
        }
        for sender, message in messages.items():
            if message.contributions != 1:
                raise MalformedMessage(f"contribution of {sender}: the sum of {message.contributions}, not its own")
        largest = {
            spec.name: torch.stack([message.counters[spec.name] for message in messages.values()]).amax(dim=0)
            for spec in counters(self._layout)
        }
        return CkksMessage(add(message.words for message in messages.values()), len(messages), largest).to_bytes()

    def remap(self, payload: bytes, change: Callable[[Weights], Weights]) -> bytes:
        """Refused: the server cannot change what it cannot open."""
        raise UsageError("ckks: the server cannot re-key weights that it cannot open; use one key for all clients")
