"""What a defense costs: bytes on the wire and peak memory."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

from federation.messages import KEY_AGENT, SERVER, Envelope, Transcript
from federation.protocol import Phase

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class Traffic:
    """Bytes of real envelopes, per client and round. Key messages are counted apart."""

    def __init__(self) -> None:
        self._up = 0
        self._down = 0
        self._visits = 0

    def add(self, transcript: Transcript) -> None:
        """Count one round."""
        counted = [envelope for envelope in transcript if envelope.phase != Phase.KEYS]
        self._up += sum(envelope.size for envelope in counted if envelope.sender not in (SERVER, KEY_AGENT))
        self._down += sum(envelope.size for envelope in counted if _goes_to_client(envelope))
        self._visits += len({envelope.receiver for envelope in counted if envelope.phase == Phase.BROADCAST})

    @property
    def up_per_client_and_round(self) -> int:
        """Bytes that a client sends in a round, on average, rounded up."""
        return -(-self._up // self._visits)

    @property
    def down_per_client_and_round(self) -> int:
        """Bytes that a client receives in a round, on average, rounded up."""
        return -(-self._down // self._visits)


def _goes_to_client(envelope: Envelope) -> bool:
    return envelope.receiver not in (SERVER, KEY_AGENT)


def reset_peak_memory() -> None:
    """Start a new measurement of this process's peak memory, where the system can (Linux)."""
    with contextlib.suppress(OSError):  # sandboxes may forbid it; the peak is then that of the process so far
        if _CLEAR.exists():
            _CLEAR.write_text("5")


def peak_memory() -> int:
    """Peak resident memory of this process in bytes, since the last reset where the system can reset it."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024
