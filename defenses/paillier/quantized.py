"""Quantised updates under Paillier: FedPAQ's message (Reisizadeh 2020), summed without being opened.

What is encrypted is not the weights but the levels of a quantised difference to the round's global weights: small
integers, which take slots as narrow as the levels and the cohort need. A round:

1. every client scales its difference by n_k / n and seals the power of two that bounds each tensor; the server hands the
   sealed bounds round, and the cohort takes the largest of each;
2. every client rounds its difference to levels of the agreed bounds, at random and without bias (`levels`), adds a tag
   to each ciphertext (`tags`) and encrypts; the server multiplies ciphertexts;
3. the sum means something beside the weights that it adds to. These need not be added up, so they need no Paillier: the
   first client of the cohort sends them sealed (`sealed`), four bytes a value, and the server passes them on. A client
   that skipped rounds has all it takes.

The global message is base and sum, which every client adds up. Against the server this hides what `protocol` hides, and
the bounds too: how far a client moved a tensor stays between clients. What the tags do not stop there, they do not stop
here; and the first client of a cohort can pass off another base, as any client can send another update.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from defenses.base import Magnitudes
from defenses.paillier.codec import power_of_two_exponent
from defenses.paillier.levels import PackedLevels
from defenses.paillier.protocol import Paillier
from defenses.paillier.quantized_client import BASE, BOUNDS, QuantisedPaillierClient
from defenses.paillier.quantized_server import QuantisedPaillierServer
from defenses.registry import DEFENSES
from defenses.stages import ClientCodec, KeyMaterial, ServerCodec
from federation.errors import UsageError
from federation.network import Network
from federation.protocol import Exchange, Moment
from federation.qsgd import LARGEST_LEVELS


@DEFENSES.register("paillier-quantized")
@dataclass(frozen=True)
class PaillierQuantized(Paillier):
    """QSGD with the max-norm of each tensor, common to the cohort, under packed Paillier encryption.

    Attributes:
        key_bits, minimum_parties, publish_key: see `Paillier`.
        levels: s, quantisation levels per sign.
    """

    levels: int = 127

    name: ClassVar[str] = "paillier-quantized"
    quantises_updates: ClassVar[bool] = True
    exchanges: ClassVar[tuple[Exchange, ...]] = tuple(Exchange(phase, Moment.BEFORE_UPLOAD) for phase in (BOUNDS, BASE))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.levels <= LARGEST_LEVELS:
            raise UsageError(f"paillier-quantized has between 1 and {LARGEST_LEVELS} levels, not {self.levels}")

    def stated_error(self, magnitudes: Magnitudes) -> float:
        """A level a client, of a bound of at most twice the largest difference, and one rounding."""
        packing = PackedLevels(self.key_bits, magnitudes.clients, self.levels)
        return packing.stated_error(power_of_two_exponent(magnitudes.update)) + magnitudes.weights * 2.0**-23

    def leaky_twin(self) -> PaillierQuantized:
        """The keys published, and so many levels that the rounding noise is gone."""
        return replace(self, publish_key=True, levels=LARGEST_LEVELS)

    def client(self, name: str, material: KeyMaterial, network: Network) -> ClientCodec:
        """A client's part, with the private key; raises MalformedMessage where it does not fit the public modulus."""
        keys = self._client_keys(name, material)
        return QuantisedPaillierClient(name, keys, network.layout, self.levels, self.minimum_parties)

    def server(self, material: KeyMaterial, network: Network) -> ServerCodec:
        """The server's part, with the modulus alone; before it has arrived, the server can add nothing."""
        public_key = self._public_key(material.public) if material.public else None
        return QuantisedPaillierServer(public_key, network.layout, self.levels)
