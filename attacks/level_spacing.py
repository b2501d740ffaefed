"""How far apart the levels lie to which each value of a quantised update was rounded, as its upload states."""

from __future__ import annotations

from torch import Tensor

from federation.errors import MalformedMessage
from federation.messages import raw_tensors_from_bytes
from federation.protocol import Phase
from federation.qsgd import QsgdConfig, from_bytes
from federation.threat import Observation
from federation.weights import Weights, floating, unflatten

QUANTISER = "qsgd"
"""The name of quantised updates in the description of a defense."""


def is_quantised(observation: Observation) -> bool:
    """Whether updates are known to be quantised, and nothing else was done to them: what is read then is what was rounded."""
    return set(observation.scheme) == {QUANTISER}


def level_spacing(observation: Observation, sender: str) -> Weights | None:
    """The distance of neighbouring levels, norm / s of each value's bucket; the norms stand exactly in the upload.

    Args:
        observation: with scheme and transcript.
        sender: whose update.

    Returns:
        Positive or zero, float64, by the names of the averaged tensors; None where the update is not known to be quantised
        alone, or is nobody's upload.

    Raises:
        MalformedMessage: for an upload that is not of the stated scheme.
    """
    uploads = observation.transcript.phase(Phase.UPLOAD).where(lambda envelope: envelope.sender == sender)
    if not is_quantised(observation) or not len(uploads):
        return None
    config = QsgdConfig(**observation.scheme[QUANTISER])  # type: ignore[arg-type]
    specs = floating(observation.network.layout)
    size = sum(spec.size for spec in specs)
    norms = from_bytes(_codes(uploads[0].payload), size, config).norms.double()
    return unflatten((norms / config.levels).repeat_interleave(config.bucket)[:size], specs)


def _codes(payload: bytes) -> bytes:
    """The quantised values of an upload."""
    codes: Tensor | None = raw_tensors_from_bytes(payload, "contribution").get("codes")
    if codes is None:
        raise MalformedMessage("contribution: no quantised values, called 'codes'")
    return codes.numpy().tobytes()
