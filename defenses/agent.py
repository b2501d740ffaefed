"""The key agent of a stacked defense: it issues keys, rotates them when due, and revokes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from defenses.keyrings import Keyring, keyring_to_bytes, keyrings_to_bytes
from defenses.stages import KeyMaterial, KeyRequest, Stage
from federation.errors import UsageError
from federation.messages import KEY_AGENT, SERVER, Envelope
from federation.network import Network
from federation.protocol import Phase, RoundContext
from federation.sealing import seal
from federation.secret_root import SecretRoot


@dataclass(frozen=True)
class _Issue:
    """Which keys a party got: every stage's epoch, and the clients that had keys then."""

    epochs: tuple[int, ...]
    clients: tuple[str, ...]


class StackAgent:
    """Draws the keys of every stage from the secret root, seals them for each party, and rotates them when due.

    A client that was revoked gets no further keys; everyone else gets new ones before the next round, so that the old
    ones open nothing that is sent from then on. That keeps out the client alone. If the server hands it what leads from
    the server's frame to the clients', its old key still opens everything (see `KeyNet`).

    Args:
        stages: the stages of the defense.
        network: the public architecture.
        root: the run's secret root.
        transport: public transport keys by party.
    """

    def __init__(
        self, stages: Sequence[Stage], network: Network, root: SecretRoot, transport: Mapping[str, bytes]
    ) -> None:
        self._stages = stages
        self._network = network
        self._root = root
        self._transport = dict(transport)
        self._clients = tuple(name for name in transport if name != SERVER)
        self._issued: dict[str, _Issue] = {}
        self._revoked: dict[str, None] = {}
        self._all_are_due = False

    def issue(self, context: RoundContext) -> list[Envelope]:
        """Key messages for the parties of this round whose keys are not those of the round's epochs.

        Raises:
            UsageError: where a client of the cohort was revoked.
        """
        outcast = [name for name in context.cohort if name in self._revoked]
        if outcast:
            raise UsageError(f"round {context.round}: the keys of {', '.join(outcast)} were revoked; leave it out")
        issue = _Issue(self._epochs(context.round), tuple(name for name in self._clients if name not in self._revoked))
        receivers = issue.clients if self._all_are_due else context.cohort
        self._all_are_due = False
        due = [name for name in (*receivers, SERVER) if self._epochs_of(name) != issue.epochs]
        envelopes = []
        for receiver in due:
            self._issued[receiver] = issue
            keyring = self._keyring(receiver, issue)
            if any(material.secret or material.public for material in keyring.values()):
                envelopes.append(self._envelope(receiver, keyring, context.round))
        return envelopes

    def revoke(self, client: str) -> None:
        """Issue no further keys to this client, and new ones to all others before the next round.

        Raises:
            UsageError: for a client that has no keys to lose, the last one, or keys that cannot change.
        """
        fixed = [stage.name for stage in self._stages if stage.keyed and not stage.rekeys]
        if fixed:
            raise UsageError(
                f"the keys of {', '.join(fixed)} cannot be revoked: all parties keep one key for the whole run; "
                "keynet's can with `rotation` or `per_client`"
            )
        left = [name for name in self._clients if name not in self._revoked]
        if client not in left or left == [client]:
            raise UsageError(f"{client!r} cannot be revoked; clients with keys: {', '.join(left)}, and one has to stay")
        self._revoked[client] = None
        self._all_are_due = True

    def held(self) -> bytes:
        """Everything that was issued last, by party."""
        keyrings = {receiver: self._keyring(receiver, issue) for receiver, issue in self._issued.items()}
        return keyrings_to_bytes(keyrings) if keyrings else b""

    def _epochs(self, round_number: int) -> tuple[int, ...]:
        """Every stage's epoch: those of its own schedule, and one more for every revocation."""
        return tuple(stage.key_epoch(round_number) + len(self._revoked) * stage.rekeys for stage in self._stages)

    def _epochs_of(self, receiver: str) -> tuple[int, ...] | None:
        return self._issued[receiver].epochs if receiver in self._issued else None

    def _keyring(self, receiver: str, issue: _Issue) -> dict[str, KeyMaterial]:
        def request(stage: Stage, epoch: int) -> KeyRequest:
            roots = partial(self._root.derive, "stage", stage.name)
            return KeyRequest(self._network, receiver, epoch, issue.clients, roots)

        return {
            stage.name: stage.keys_for(request(stage, epoch))
            for stage, epoch in zip(self._stages, issue.epochs, strict=True)
        }

    def _envelope(self, receiver: str, keyring: Keyring, round_number: int) -> Envelope:
        public_key = self._transport[receiver]
        sealed = {
            name: KeyMaterial(seal(material.secret, public_key) if material.secret else b"", material.public)
            for name, material in keyring.items()
        }
        return Envelope(round_number, Phase.KEYS, KEY_AGENT, receiver, keyring_to_bytes(sealed))
