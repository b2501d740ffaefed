"""Checks on whole rounds: what is recovered, from whom, and that a run repeats."""

from __future__ import annotations

from benchmark.audit.chosen import CLIENTS
from benchmark.conformance.subject import COUNTS, ConformanceFailure, Subject
from defenses.base import Magnitudes
from federation.errors import MalformedMessage
from federation.messages import Envelope
from federation.protocol import Phase, RoundContext
from federation.seeds import torch_generator
from federation.weights import difference, flatten, floating, largest_difference


def round_trip(subject: Subject) -> str:
    """Every client recovers the plain weighted mean within the defense's stated error, and the initial weights."""
    played = subject.played
    mean, bound = played.federation.mean(played.record), played.federation.stated_error(played.record)
    bound_at_start = subject.defense.stated_error(Magnitudes(1.0, 1.0, 1))
    for client, recovered in played.released.items():
        off_at_start = largest_difference(played.record.references[client], subject.initial)
        if off_at_start > bound_at_start:
            raise ConformanceFailure(
                f"{client} recovers initial weights off by {off_at_start:.3g} > {bound_at_start:.3g}"
            )
        off = largest_difference(recovered, mean)
        if not off <= bound:
            raise ConformanceFailure(f"{client} recovers a mean that is off by {off:.3g}, over the stated {bound:.3g}")
        specs = floating(subject.network.layout)
        left = flatten(difference(recovered, mean), specs).norm()
        if left >= flatten(difference(subject.initial, mean), specs).norm():
            raise ConformanceFailure(
                f"what {client} recovers is no nearer to the mean than the weights of the round before"
            )
    return f"within {bound:.3g}"


def repeatable(subject: Subject) -> str:
    """The same root and seed give the same recovered weights, bit for bit."""
    again = subject.play(subject.federation())
    for client, recovered in subject.played.released.items():
        if any(not again.released[client][name].equal(tensor) for name, tensor in recovered.items()):
            raise ConformanceFailure(f"{client} recovers other weights in a second run of the same root and seed")
    return "bit for bit"


def cohort_enforced(subject: Subject) -> str:
    """The server refuses contributions with one missing, one twice, or one of a stranger, and keeps its model."""
    server = subject.played.federation.parties.server
    first, second = subject.played.record.transcript.phase(Phase.UPLOAD)
    stranger = Envelope(second.round, second.phase, "client-9", second.receiver, second.payload)
    before = server.state
    context = RoundContext(first.round, CLIENTS, COUNTS, torch_generator("conformance"))
    for case, uploads in {
        "a missing contribution": [first],
        "a contribution that comes twice": [first, second, second],
        "one client in place of another": [first, first],
        "a contribution of a stranger": [first, stranger],
        "no contribution": [],
    }.items():
        try:
            server.aggregate(uploads, context)
        except MalformedMessage:
            if server.state == before:
                continue
        raise ConformanceFailure(f"the server accepts {case}")
    return "5 wrong cohorts refused"
