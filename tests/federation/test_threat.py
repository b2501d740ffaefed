"""Who reads which envelope, and how adversaries are named."""

from __future__ import annotations

import pytest

from federation.errors import UsageError
from federation.messages import KEY_AGENT, SERVER, Envelope, Transcript
from federation.protocol import Phase
from federation.threat import ADVERSARIES, Knowledge, Position, parse_adversary, parties_of, readable

ONE, OTHER = "client-0", "client-1"


def envelope(phase: str, sender: str, receiver: str) -> Envelope:
    return Envelope(0, phase, sender, receiver, b"")


TO_ONE, TO_OTHER, TO_SERVER = (envelope(Phase.KEYS, KEY_AGENT, name) for name in (ONE, OTHER, SERVER))
DOWN_ONE, DOWN_OTHER = (envelope(Phase.BROADCAST, SERVER, name) for name in (ONE, OTHER))
BETWEEN = envelope("shares", ONE, OTHER)
UP_ONE, UP_OTHER = (envelope(Phase.UPLOAD, name, SERVER) for name in (ONE, OTHER))
RELEASED = envelope(Phase.RELEASE, SERVER, ONE)
EVERYTHING = Transcript([TO_ONE, TO_OTHER, TO_SERVER, DOWN_ONE, DOWN_OTHER, BETWEEN, UP_ONE, UP_OTHER, RELEASED])


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (Position.SERVER, [TO_SERVER, DOWN_ONE, DOWN_OTHER, UP_ONE, UP_OTHER, RELEASED]),
        (Position.EAVESDROPPER, list(EVERYTHING)),
        (Position.CLIENT, [TO_OTHER, DOWN_OTHER, BETWEEN, UP_OTHER]),
        (Position.AGGREGATE, [DOWN_ONE, DOWN_OTHER, RELEASED]),
        (
            Position.COLLUSION,
            [TO_OTHER, TO_SERVER, DOWN_ONE, DOWN_OTHER, BETWEEN, UP_ONE, UP_OTHER, RELEASED],
        ),
        (Position.KEY_AGENT, list(EVERYTHING)),
    ],
)
def test_what_a_position_reads(position: Position, expected: list[Envelope]) -> None:
    assert list(readable(EVERYTHING, position, OTHER)) == expected


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (Position.SERVER, (SERVER,)),
        (Position.EAVESDROPPER, ()),
        (Position.CLIENT, (OTHER,)),
        (Position.AGGREGATE, ()),
        (Position.COLLUSION, (SERVER, OTHER)),
        (Position.KEY_AGENT, (KEY_AGENT,)),
    ],
)
def test_whose_state_a_position_holds(position: Position, expected: tuple[str, ...]) -> None:
    assert parties_of(position, OTHER) == expected


def test_every_position_has_both_kinds_of_knowledge() -> None:
    assert len(ADVERSARIES.names()) == len(Position) * len(Knowledge) == 12
    for name in ADVERSARIES.names():
        adversary = parse_adversary(name)
        assert adversary.name == name
        assert len(adversary.description) > 20
    assert parse_adversary("collusion/adaptive").position is Position.COLLUSION


def test_misspelt_adversaries_are_named() -> None:
    with pytest.raises(UsageError, match="did you mean server/adaptive"):
        parse_adversary("servr/adaptive")
    with pytest.raises(UsageError, match="is written position/knowledge"):
        parse_adversary("server")
