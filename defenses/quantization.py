"""Quantised updates: FedPAQ's message (Reisizadeh 2020) with QSGD's unbiased quantizer (Alistarh 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from defenses.base import Claim, Magnitudes, uniform_claim
from defenses.plain import OpenServer, PlainClient
from defenses.registry import DEFENSES
from defenses.stages import Admit, ClientCodec, Codec, KeyMaterial, ServerCodec
from federation.errors import MalformedMessage
from federation.messages import raw_tensors_from_bytes, tensors_from_bytes, tensors_to_bytes
from federation.network import Network
from federation.protocol import RoundContext
from federation.qsgd import LARGEST_LEVELS, Coding, QsgdConfig, dequantise, from_bytes, quantise, to_bytes
from federation.weights import Layout, Weights, counters, difference, flatten, floating, unflatten

_CODES = "codes"


@DEFENSES.register("qsgd")
@dataclass(frozen=True)
class Quantization(Codec):
    """The difference to the round's global weights, quantised and bit-packed, up; float32 weights down.

    Attributes:
        levels: s, quantisation levels per sign.
        norm: the norm that scales a bucket, "l2" (the paper's) or "max".
        bucket: values that share one norm.
        coding: how levels are written, "packed" or "elias" (the paper's entropy coding).
    """

    levels: int = 127
    norm: Literal["l2", "max"] = "max"
    bucket: int = 512
    coding: Coding = "packed"

    name: ClassVar[str] = "qsgd"
    quantises_updates: ClassVar[bool] = True

    @property
    def config(self) -> QsgdConfig:
        """The quantizer's own configuration."""
        return QsgdConfig(levels=self.levels, norm=self.norm, bucket=self.bucket, coding=self.coding)

    def claims(self, network: Network) -> Mapping[str, Claim]:
        """Everything is in plain, up to rounding: quantisation is no secret."""
        return uniform_claim(network.layout, Claim.PLAIN)

    def stated_error(self, magnitudes: Magnitudes) -> float:
        """One level of a bucket, norm / s, where the norm is at most that of `bucket` values of the update."""
        largest_norm = 1.0 if self.norm == "max" else float(self.bucket) ** 0.5
        return magnitudes.update * largest_norm / self.levels + magnitudes.weights * 2.0**-23

    def leaky_twin(self) -> Quantization:
        """So many levels that the rounding noise is gone."""
        return replace(self, levels=LARGEST_LEVELS, norm="max")

    def client(self, name: str, material: KeyMaterial, network: Network) -> ClientCodec:
        """A client's part; no key is needed."""
        return QuantizationClient(network.layout, self.config)

    def server(self, material: KeyMaterial, network: Network) -> ServerCodec:
        """The server's part; no key is needed."""
        return QuantizationServer(network.layout, self.config)


class QuantizationClient(PlainClient):
    """The client's part of `Quantization`; global messages are those of `Plain`."""

    def __init__(self, layout: Layout, config: QsgdConfig) -> None:
        super().__init__(layout)
        self._config = config

    def encode(self, weights: Weights, base: Weights, context: RoundContext) -> bytes:
        """The quantised difference, and the counters as they are."""
        update = flatten(difference(weights, base), floating(self._layout)).float()
        quantised = quantise(update, self._config, context.generator)
        packed = torch.frombuffer(bytearray(to_bytes(quantised, self._config)), dtype=torch.uint8)
        return tensors_to_bytes({_CODES: packed} | {spec.name: weights[spec.name] for spec in counters(self._layout)})

    def decode_upload(self, payload: bytes, base: Weights, share: float) -> Weights:
        """See `ClientCodec.decode_upload`."""
        return _decode(payload, base, self._layout, self._config, "contribution")


class QuantizationServer(OpenServer):
    """The server's part of `Quantization`."""

    def __init__(self, layout: Layout, config: QsgdConfig) -> None:
        super().__init__(layout)
        self._config = config

    def combine(self, uploads: Mapping[str, bytes], base: bytes, context: RoundContext, admit: Admit) -> bytes:
        """The weighted mean of the dequantised weights."""
        base_weights = tensors_from_bytes(base, self._layout, "global message")
        contributions = {
            sender: _decode(payload, base_weights, self._layout, self._config, f"contribution of {sender}")
            for sender, payload in uploads.items()
        }
        return self.mean(contributions, context, admit)


def _decode(payload: bytes, base: Weights, layout: Layout, config: QsgdConfig, where: str) -> Weights:
    """Base plus the dequantised update; raises MalformedMessage."""
    tensors = raw_tensors_from_bytes(payload, where)
    packed: Tensor | None = tensors.pop(_CODES, None)
    if packed is None or packed.dtype != torch.uint8 or packed.dim() != 1:
        raise MalformedMessage(f"{where}: no packed codes, a vector of bytes, called {_CODES!r}")
    specs = floating(layout)
    exact = tensors_from_bytes(tensors_to_bytes(tensors), counters(layout), where)
    quantised = from_bytes(packed.numpy().tobytes(), sum(spec.size for spec in specs), config)
    update = unflatten(dequantise(quantised, config).double(), specs)
    moved = {spec.name: (base[spec.name].double() + update[spec.name].double()).to(spec.dtype) for spec in specs}
    return {spec.name: (moved | exact)[spec.name] for spec in layout}
