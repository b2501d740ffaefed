"""What a comparison of Key-Net speeds found: figures, ratios, and the tables that show them."""

from __future__ import annotations

import importlib.metadata
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmark.speed.measure import Table, machine, machine_line, seconds_as_text
from defenses.keynet.defense import KeyNet
from defenses.keynet.pixel_defense import KeyNetToeplitz

LIBRARIES = ("torch", "numpy", "scipy")

LEAST_PRODUCTS = 5.0
"""Target on Toeplitz matrices: SciPy's bare products take at least so many times as long as encrypting and decrypting."""

MOST_COPIES = 4.0
"""Target in channel mode: encrypting and decrypting take as long as this many plain copies of the weights, at most."""


@dataclass(frozen=True)
class Facts:
    """What of a network under its keys does not depend on the machine.

    Attributes:
        network: its name.
        defense: the name of the defense, which says what is keyed: kernels, or Toeplitz matrices.
        keys: "permutations" or "gains" (permutations and gains).
        values: weights of the network, counters aside.
        entries: keyed numbers; as many as `values` where nothing grows.
        wire_bytes: of one keyed model.
        condition: the largest cond(A).
        error: of the recovered weights at most, as measured.
        stated_error: the same, as the defense states it.
    """

    network: str
    defense: str
    keys: str
    values: int
    entries: int
    wire_bytes: int
    condition: float
    error: float
    stated_error: float

    @property
    def name(self) -> str:
        """How the case is called in tables."""
        return f"{self.network}, {self.defense}, {self.keys}"

    @property
    def moved_bytes(self) -> int:
        """Bytes read and written at least: each way, the weights and the keyed numbers, in float32."""
        return 2 * 4 * (self.values + self.entries)


@dataclass(frozen=True)
class Timing:
    """Seconds of one case.

    Attributes:
        case: its name.
        encrypt, decrypt: ours, from weights to a keyed model and back, checks included.
        keying: ours for the products' part of that alone, there and back, where the defense has such a step.
        products: SciPy's products there and back, on matrices that are ready, in float32.
        oracle: `SparseKeying` there and back, where it can do the same.
        copy: a plain copy of the weights into new memory.
        moving: what moving the bytes that must move takes at the memory bandwidth.
    """

    case: str
    encrypt: float
    decrypt: float
    keying: float | None
    products: float
    oracle: float | None
    copy: float
    moving: float

    @property
    def both(self) -> float:
        """Encrypting and decrypting."""
        return self.encrypt + self.decrypt

    def ratios(self) -> dict[str, float | None]:
        """How many times as long SciPy takes as we do, and how many times as long we take as the memory."""
        return {
            "products_over_both": _over(self.products, self.both),
            "products_over_keying": _over(self.products, self.keying),
            "oracle_over_both": _over(self.oracle, self.both),
            "oracle_over_keying": _over(self.oracle, self.keying),
            "both_over_copy": _over(self.both, self.copy),
            "both_over_moving": _over(self.both, self.moving),
        }


@dataclass(frozen=True)
class Pass:
    """All timings with one number of threads.

    Attributes:
        threads: that PyTorch, and with it Keyhole, may use. SciPy's products use one.
        clock: "CPU time" or "wall clock".
        bandwidth: bytes a second that a large copy reads and writes.
        timings: one a case.
    """

    threads: int
    clock: str
    bandwidth: float
    timings: tuple[Timing, ...]

    @property
    def title(self) -> str:
        """Threads and clock in words."""
        return f"{self.threads} thread{'s' * (self.threads > 1)} ({self.clock})"


@dataclass(frozen=True)
class KeyNetSpeed:
    """All that a run measured; seconds, bytes and counts."""

    repeats: int
    copy_bytes: int
    cases: tuple[Facts, ...]
    passes: tuple[Pass, ...]
    machine: dict[str, Any] = field(
        default_factory=lambda: machine(LIBRARIES) | {"numba": importlib.metadata.version("numba")}
    )

    def as_json(self) -> dict[str, Any]:
        """Figures and ratios for programs."""
        found = asdict(self)
        for entries, one in zip(found["passes"], self.passes, strict=True):
            for entry, timing in zip(entries["timings"], one.timings, strict=True):
                entry |= timing.ratios()
        for entry, facts in zip(found["cases"], self.cases, strict=True):
            entry |= {"name": facts.name, "moved_bytes": facts.moved_bytes}
        return found | {"targets": {"products_over_both": LEAST_PRODUCTS, "both_over_copy": MOST_COPIES}}

    def tables(self) -> list[Table]:
        """Figures and ratios for people."""
        return [
            *(self._against_scipy(one) for one in self.passes),
            *(self._against_memory(one) for one in self.passes),
            self._sizes(),
        ]

    def _against_scipy(self, one: Pass) -> Table:
        return Table(
            f"Key-Net against SciPy's sparse products, {one.title}",
            (
                *("network, defense, keys", "encrypt", "decrypt", "both", "keying"),
                *("products", "/ both", "/ keying", "SparseKeying", "/ both", "/ keying"),
            ),
            tuple(_scipy_row(timing) for timing in one.timings),
            (
                "both: weights to keyed model and back with all checks; keying: of that, what the products do",
                "products: A W A^-1 and back in float32, keys and matrices ready; SparseKeying: from values to entries "
                "and back with the products in float64",
                *(
                    f"target on Toeplitz matrices, products / {what} of {LEAST_PRODUCTS:g} or more: {min(found):.1f} at worst"
                    for what in ("both", "keying")
                    if (found := self._of(one, KeyNetToeplitz.name, f"products_over_{what}"))
                ),
            ),
        )

    def _against_memory(self, one: Pass) -> Table:
        moved = {facts.name: facts.moved_bytes for facts in self.cases}
        return Table(
            f"Key-Net against the bytes that must move, {one.title}",
            ("network, defense, keys", "both", "plain copy", "/ copy", "must move", "at bandwidth", "/ bandwidth"),
            tuple(_memory_row(timing, moved[timing.case]) for timing in one.timings),
            (
                f"bandwidth: {one.bandwidth / 1e9:.1f} GB/s, read and written by a copy of "
                f"{_megabytes(self.copy_bytes)} into memory that is there; a plain copy is into new memory",
                "must move: each way, the weights and the keyed numbers once, no tables of places",
                *(
                    f"target in channel mode, both / copy of {MOST_COPIES:g} or less: {max(found):.1f} at worst"
                    for found in [self._of(one, KeyNet.name, "both_over_copy")]
                    if found
                ),
            ),
        )

    def _sizes(self) -> Table:
        columns = ("values", "entries", "weights", "on the wire", "cond(A) at most", "error", "stated error")
        return Table(
            "Sizes, keys and errors",
            ("network, defense, keys", *columns),
            tuple(_size_row(facts) for facts in self.cases),
            (
                f"medians of {self.repeats} interleaved repeats",
                "checked in this run: what is decrypted is what was encrypted, within the stated error; SciPy's products "
                "are our keyed weights, and back the weights",
                f"{machine_line(self.machine)}, numba {self.machine['numba']}",
            ),
        )

    def _of(self, one: Pass, defense: str, ratio: str) -> list[float]:
        """This ratio of every case of a defense that has it."""
        names = {facts.name for facts in self.cases if facts.defense == defense}
        ratios = [timing.ratios()[ratio] for timing in one.timings if timing.case in names]
        return [found for found in ratios if found is not None]


def _over(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one / other


def _scipy_row(timing: Timing) -> tuple[str, ...]:
    ratios = timing.ratios()
    return (
        timing.case,
        *map(_seconds, (timing.encrypt, timing.decrypt, timing.both, timing.keying, timing.products)),
        *(_times(ratios[f"products_over_{what}"]) for what in ("both", "keying")),
        _seconds(timing.oracle),
        *(_times(ratios[f"oracle_over_{what}"]) for what in ("both", "keying")),
    )


def _memory_row(timing: Timing, moved: int) -> tuple[str, ...]:
    return (
        timing.case,
        seconds_as_text(timing.both),
        seconds_as_text(timing.copy),
        _times(timing.ratios()["both_over_copy"]),
        _megabytes(moved),
        seconds_as_text(timing.moving),
        _times(timing.ratios()["both_over_moving"]),
    )


def _size_row(facts: Facts) -> tuple[str, ...]:
    return (
        facts.name,
        f"{facts.values:,}",
        f"{facts.entries:,}",
        _megabytes(4 * facts.values),
        _megabytes(facts.wire_bytes),
        f"{facts.condition:.3g}",
        f"{facts.error:.1e}",
        f"{facts.stated_error:.1e}",
    )


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else seconds_as_text(seconds)


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f}x"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.3g} MB"
