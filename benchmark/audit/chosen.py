"""A federation whose clients send weights that were chosen for them: what audits and conformance checks look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from defenses.base import Defense, Magnitudes
from federation.messages import Transcript, client_name
from federation.network import Network
from federation.protocol import Phase, RoundRecord
from federation.rounds import Federation, Wire
from federation.secret_root import SecretRoot
from federation.threat import Position, View, parties_of, readable
from federation.weights import Kind, Layout, TensorSpec, Weights, difference, weighted_mean

CLIENTS = (client_name(0), client_name(1))
COLLUDER = CLIENTS[1]

EQUAL_COUNTS: Mapping[str, int] = dict.fromkeys(CLIENTS, 5)

Choice: TypeAlias = Callable[[Weights], Weights]
"""What a client claims to have trained, from the weights that it recovered."""


class ChosenFederation:
    """Two clients, a server and whoever issues keys, under one defense; nobody trains.

    Args:
        defense: what is looked at.
        network: the architecture; it is never run.
        root: where keys come from.
        counts: training images per client, as they would state them.
        seed: of the rounding randomness.
        wire: as in `Federation`.
    """

    def __init__(
        self,
        defense: Defense,
        network: Network,
        root: SecretRoot,
        *,
        counts: Mapping[str, int] = EQUAL_COUNTS,
        seed: int = 0,
        wire: Wire = bytes,
    ) -> None:
        self.defense = defense
        self.network = network
        self.counts = counts
        self.parties = defense.parties(network, CLIENTS, root)
        self._federation = Federation(self.parties, counts, seed=seed, wire=wire)
        self._keys = Transcript()

    def start(self, initial: Weights) -> Transcript:
        """Issue keys and make `initial` the global model."""
        transcript = self._federation.start(initial).transcript
        self._keys = Transcript([*self._keys, *transcript.phase(Phase.KEYS)])
        return transcript

    def play(self, number: int, choices: Mapping[str, Choice]) -> RoundRecord:
        """One round in which each client sends what was chosen for it."""
        return self._federation.run_round(number, CLIENTS, lambda client, weights: choices[client.name](weights))

    def released(self, number: int) -> dict[str, Weights]:
        """What every client recovers of the current global model, under the name of that round."""
        released = self._federation.release(number, CLIENTS)
        return {envelope.receiver: self._federation.recover(envelope) for envelope in released}

    def view(self, record: RoundRecord, position: Position, held: Mapping[str, bytes] | None = None) -> View:
        """What a position makes of a round, with the state that it holds (`held` replaces that state)."""
        transcript = readable(Transcript([*self._keys, *record.transcript]), position, COLLUDER)
        if held is None:
            held = {name: self.parties.held(name) for name in parties_of(position, COLLUDER)}
        return self.defense.view(transcript, position, held, network=self.network, sample_counts=self.counts)

    def mean(self, record: RoundRecord) -> Weights:
        """The plain weighted mean of what the clients sent in a round."""
        total = sum(self.counts.values())
        return weighted_mean(
            self.network.layout, list(record.trained.values()), [self.counts[name] / total for name in record.trained]
        )

    def stated_error(self, record: RoundRecord) -> float:
        """The defense's own bound for a round."""
        updates = [difference(weights, record.references[name]) for name, weights in record.trained.items()]
        magnitudes = Magnitudes(
            weights=max(_largest(weights) for weights in record.trained.values()),
            update=max(map(_largest, updates)),
            clients=len(record.trained),
        )
        return self.defense.stated_error(magnitudes)


def chosen(weights: Weights) -> Choice:
    """Send these weights, whatever was recovered."""
    return lambda recovered: weights


def moved_by(update: Weights) -> Choice:
    """Send what was recovered plus this update."""
    return lambda recovered: {name: tensor + update[name] for name, tensor in recovered.items()}


def spread_weights(
    layout: Layout, generator: torch.Generator, *, smallest: float, largest: float, counter: int = 1
) -> Weights:
    """Weights of either sign with magnitudes uniform in [smallest, largest]; counters are all `counter`."""

    def draw(spec: TensorSpec) -> Tensor:
        if spec.kind is Kind.COUNTER:
            return torch.full(spec.shape, counter, dtype=spec.dtype)
        magnitudes = torch.empty(spec.shape, dtype=spec.dtype).uniform_(smallest, largest, generator=generator)
        return magnitudes * (2 * torch.randint(2, spec.shape, generator=generator) - 1)

    return {spec.name: draw(spec) for spec in layout}


def _largest(weights: Weights) -> float:
    return max((float(tensor.abs().amax()) for tensor in weights.values() if tensor.is_floating_point()), default=0.0)
