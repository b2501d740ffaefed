"""What a comparison of Paillier speeds found: figures, ratios, and the tables that show them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import gmpy2

from benchmark.speed.measure import Table, machine, machine_line, seconds_as_text

LIBRARIES = ("gmpy2", "phe", "numpy")


@dataclass(frozen=True)
class Operation:
    """One operation: CPU seconds on one thread, ours and those of `phe`."""

    name: str
    ours_per_value: float
    phe_per_value: float
    ours_per_ciphertext: float
    phe_per_ciphertext: float

    @property
    def ratio_per_value(self) -> float:
        """How many times as long `phe` takes, value by value."""
        return self.phe_per_value / self.ours_per_value

    @property
    def ratio_per_ciphertext(self) -> float:
        """How many times as long `phe` takes on the same packed integers."""
        return self.phe_per_ciphertext / self.ours_per_ciphertext


@dataclass(frozen=True)
class Spread:
    """An operation on one and on two threads: wall-clock seconds a ciphertext."""

    name: str
    one_thread: float
    two_threads: float

    @property
    def ratio(self) -> float:
        """How many times as fast two threads are."""
        return self.one_thread / self.two_threads


@dataclass(frozen=True)
class PaillierSpeed:
    """All that a run measured; seconds, bytes and counts."""

    key_bits: int
    clients: int
    values: int
    ciphertexts: int
    phe_values: int
    repeats: int
    bytes_per_value: float
    set_up: dict[str, float]
    table_bytes: dict[str, int]
    operations: tuple[Operation, ...]
    spreads: tuple[Spread, ...]
    machine: dict[str, Any] = field(default_factory=lambda: machine(LIBRARIES) | {"gmp": gmpy2.mp_version()})

    def as_json(self) -> dict[str, Any]:
        """Figures and ratios for programs."""
        found = asdict(self)
        for entry, operation in zip(found["operations"], self.operations, strict=True):
            entry["ratio_per_value"] = operation.ratio_per_value
            entry["ratio_per_ciphertext"] = operation.ratio_per_ciphertext
        for entry, spread in zip(found["spreads"], self.spreads, strict=True):
            entry["ratio"] = spread.ratio
        return found

    def tables(self) -> list[Table]:
        """Figures and ratios for people."""
        phe_notes = (
            f"medians of {self.repeats} interleaved repeats, CPU time of one thread; phe on {self.phe_values} values "
            f"(and as many packed integers) a repeat, Keyhole on {self.values} values in {self.ciphertexts} ciphertexts",
            f"{self.bytes_per_value:.2f} bytes a value for {self.clients} clients, tags included "
            f"(phe: {2 * self.key_bits // 8})",
            "checked in this run: phe decrypts our ciphertexts, we decrypt phe's, sums are exact",
            f"{machine_line(self.machine)}, {self.machine['gmp']}",
        )
        return [
            Table(
                f"Paillier, {self.key_bits}-bit key, against phe with gmpy2",
                ("operation", "per value", "phe", "ratio", "per ciphertext", "phe packed", "ratio packed"),
                tuple(_row(operation) for operation in self.operations),
                phe_notes,
            ),
            Table(
                "One thread against two (wall clock, per ciphertext)",
                ("operation", "1 thread", "2 threads", "ratio"),
                tuple(
                    (s.name, seconds_as_text(s.one_thread), seconds_as_text(s.two_threads), f"{s.ratio:.2f}x")
                    for s in self.spreads
                ),
                ("other work on the cores takes the gain away: see the load above",),
            ),
            Table(
                "Set-up, once a key (CPU time)",
                ("step", "time", "memory"),
                tuple(
                    (name, seconds_as_text(seconds), _megabytes(self.table_bytes.get(name)))
                    for name, seconds in self.set_up.items()
                ),
            ),
        ]


def _row(operation: Operation) -> tuple[str, ...]:
    return (
        operation.name,
        seconds_as_text(operation.ours_per_value),
        seconds_as_text(operation.phe_per_value),
        f"{operation.ratio_per_value:,.0f}x",
        seconds_as_text(operation.ours_per_ciphertext),
        seconds_as_text(operation.phe_per_ciphertext),
        f"{operation.ratio_per_ciphertext:.1f}x",
    )


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.0f} MB"
