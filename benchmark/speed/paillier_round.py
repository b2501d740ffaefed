"""One round of the size of MobileNetV2 under Paillier, played by the real parties: seconds, bytes and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import gmpy2
import torch

from benchmark.costs import peak_memory, reset_peak_memory
from benchmark.speed.measure import Stage, Table, machine, machine_line, quiet, seconds_as_text
from benchmark.speed.paillier_report import LIBRARIES
from defenses.paillier.client import PaillierClient
from defenses.paillier.client_keys import ClientKeys
from defenses.paillier.codec import PackedFixedPoint, power_of_two_exponent
from defenses.paillier.protocol import BOUNDS
from defenses.paillier.server import PaillierServer
from defenses.paillier.threads import default_threads
from federation.errors import KeyholeError
from federation.messages import client_name
from federation.protocol import RoundContext
from federation.secret_root import SecretRoot
from federation.seeds import torch_generator
from federation.vision import models
from federation.weights import Layout, Weights, floating, largest_difference, layout_of

CLIENTS = 6


@dataclass(frozen=True)
class RoundSpeed:
    """Seconds of each phase, by the wall clock and of CPU, bytes of a message, peak memory of all parties together."""

    key_bits: int
    clients: int
    values: int
    threads: int
    seconds: dict[str, float]
    cpu_seconds: dict[str, float]
    upload_bytes: int
    bytes_per_value: float
    peak_memory: int
    error: float
    stated_error: float
    machine: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Figures for programs."""
        return asdict(self) | {"total_seconds": sum(self.seconds.values())}

    def tables(self) -> list[Table]:
        """Figures for people."""
        rows = [(phase, self.seconds[phase], self.cpu_seconds[phase]) for phase in self.seconds]
        rows.append(("all", sum(self.seconds.values()), sum(self.cpu_seconds.values())))
        return [
            Table(
                f"A round of {self.values:,} values and {self.clients} clients, {self.key_bits}-bit key, "
                f"{self.threads} threads",
                ("phase", "wall clock", "CPU"),
                tuple((phase, seconds_as_text(wall), seconds_as_text(cpu)) for phase, wall, cpu in rows),
                (
                    f"upload {self.upload_bytes / 1e6:.1f} MB a client, {self.bytes_per_value:.2f} bytes a value; "
                    f"peak memory {self.peak_memory / 1e9:.2f} GB, all parties and PyTorch in one process",
                    f"recovered mean off by {self.error:.1e} at most (stated: {self.stated_error:.1e})",
                    f"{machine_line(self.machine)}, {self.machine['gmp']}",
                ),
            )
        ]


def mobilenet_layout() -> Layout:
    """The tensors of torchvision's MobileNetV2 for ten classes."""
    return layout_of(models.mobilenet_v2(num_classes=10))


def measure_round(
    key_bits: int,
    *,
    layout: Layout | None = None,
    clients: int = CLIENTS,
    threads: int | None = None,
    client_keys: ClientKeys | None = None,
    progress: Stage = quiet,
) -> RoundSpeed:
    """Play bounds, upload, aggregation and recovery of one round.

    Args:
        key_bits: length of the modulus.
        layout: the tensors of the model; MobileNetV2's if None.
        clients: the size of the cohort; one after the other encrypts, the first decrypts.
        threads: cores that encrypt and decrypt; `default_threads()` if None.
        client_keys: taken instead of fresh ones (tests).
        progress: called with the phase, the ciphertexts or messages done and all of them.

    Raises:
        KeyholeError: where what is recovered is not the mean of what was sent.
    """
    layout = mobilenet_layout() if layout is None else layout
    threads = default_threads() if threads is None else threads
    cohort = tuple(client_name(index) for index in range(clients))
    context = RoundContext(1, cohort, dict.fromkeys(cohort, 1), torch_generator(0))
    clock = _Clock()
    reset_peak_memory()
    drawn = client_keys or clock.timed("generate key", lambda: ClientKeys.draw(key_bits, SecretRoot.fresh()))
    players = {
        name: PaillierClient(
            name, drawn, layout, minimum_parties=2, threads=threads, progress=_named(f"{name} at work", progress)
        )
        for name in cohort
    }
    server = PaillierServer(drawn.private_key.public_key, layout, progress=_named("server adds", progress))
    clock.timed("agree bounds", lambda: _agree(players, server, layout, context))
    uploads: dict[str, bytes] = {}
    for index, (name, player) in enumerate(players.items()):
        weights = _weights(layout, index)
        phase = "encrypt, first client (with set-up)" if index == 0 else f"encrypt, {clients - 1} other clients"
        uploads[name] = clock.timed(phase, partial(player.encode, weights, {}, context))
    combined = clock.timed("add up", lambda: server.combine(uploads, b"", context, lambda sender, weights: weights))
    sizes = [len(upload) for upload in uploads.values()]
    uploads.clear()
    recovered = clock.timed("decrypt and check, one client", lambda: players[cohort[0]].decode(combined))
    error, stated = _error(recovered, layout, clients, key_bits)
    if error > stated:
        raise KeyholeError(f"the recovered mean is off by {error:.3g}, more than the stated {stated:.3g}")
    values = sum(spec.size for spec in floating(layout))
    return RoundSpeed(
        key_bits=key_bits,
        clients=clients,
        values=values,
        threads=threads,
        seconds=clock.wall,
        cpu_seconds=clock.cpu,
        upload_bytes=max(sizes),
        bytes_per_value=max(sizes) / values,
        peak_memory=peak_memory(),
        error=error,
        stated_error=stated,
        machine=machine(LIBRARIES) | {"gmp": gmpy2.mp_version()},
    )


class _Clock:
    """Seconds by phase, added up."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    def timed(self, phase: str, work: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        made = work()
        self.wall[phase] = self.wall.get(phase, 0.0) + time.perf_counter() - wall
        self.cpu[phase] = self.cpu.get(phase, 0.0) + time.process_time() - cpu
        return made


def _named(phase: str, progress: Stage) -> Callable[[int, int], None]:
    return lambda done, total: progress(phase, done, total)


def _weights(layout: Layout, client: int) -> Weights:
    """A client's model: normal, of a standard deviation of 0.05; the same whenever it is asked for."""
    generator = torch_generator(0, client)
    return {
        spec.name: torch.randn(spec.shape, generator=generator) * 0.05
        if spec.dtype.is_floating_point
        else torch.tensor(client)
        for spec in layout
    }


def _agree(
    players: Mapping[str, PaillierClient], server: PaillierServer, layout: Layout, context: RoundContext
) -> None:
    """The exchange of bounds; each model exists only while its client makes an offer."""
    offers = [
        envelope
        for index, player in enumerate(players.values())
        for envelope in player.offer(BOUNDS, _weights(layout, index), context)
    ]
    for answer in server.answer(BOUNDS, offers, context):
        players[answer.receiver].take(BOUNDS, [answer], context)


def _error(recovered: Weights, layout: Layout, clients: int, key_bits: int) -> tuple[float, float]:
    """How far the recovered weights are off the mean, and by how much they may be."""
    mean = {spec.name: torch.zeros(spec.shape, dtype=torch.float64) for spec in floating(layout)}
    largest = 0.0
    for index in range(clients):
        for name, tensor in _weights(layout, index).items():
            if name in mean:
                mean[name] += tensor.double() / clients
                largest = max(largest, float(tensor.abs().max()))
    packing = PackedFixedPoint(key_bits, clients)
    stated = packing.stated_error(power_of_two_exponent(largest / clients)) + largest * 2.0**-24
    return largest_difference(mean, recovered), stated
