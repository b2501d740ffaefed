"""Rounds against FedAvg written out, and the order in which a protocol's steps come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from defenses.registry import build_defense
from federation.errors import MalformedMessage
from federation.messages import KEY_AGENT, SERVER, Envelope, client_name
from federation.network import Network
from federation.protocol import ClientParty, Exchange, Moment, Parties, Phase, RoundContext
from federation.rounds import Federation, LocalUpdate, choose_cohort
from federation.secret_root import SecretRoot
from federation.training import LocalTraining, cross_entropy_gradients, train_locally
from federation.weights import Weights, weights_of

NAMES = tuple(map(client_name, range(3)))
COUNTS = dict(zip(NAMES, (4, 7, 9), strict=True))
RATE, CLASSES = 0.2, 3


# --- FedAvg, by hand ---------------------------------------------------------------------------------------------------


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, CLASSES))


def data() -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: (torch.randn(n, 1, 2, 3, generator=generator), torch.randint(CLASSES, (n,), generator=generator))
        for name, n in COUNTS.items()
    }


def fedavg_by_hand(cohorts: Sequence[Sequence[str]], epochs: int) -> Weights:
    """McMahan 2016, Algorithm 1, with full batches, in float64."""
    weights = {name: parameter.double() for name, parameter in weights_of(model()).items()}
    shards = data()
    for cohort in cohorts:
        total = sum(COUNTS[name] for name in cohort)
        next_weights = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        for client in cohort:
            images, labels = shards[client]
            local = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
            for _ in range(epochs):
                hidden = torch.tanh(images.flatten(1).double() @ local["1.weight"].T + local["1.bias"])
                loss = F.cross_entropy(hidden @ local["3.weight"].T + local["3.bias"], labels)
                gradients = torch.autograd.grad(loss, list(local.values()))
                local = {
                    name: (tensor - RATE * gradient).detach().requires_grad_()
                    for (name, tensor), gradient in zip(local.items(), gradients, strict=True)
                }
            for name in next_weights:
                next_weights[name] += COUNTS[client] / total * local[name].detach()
        weights = next_weights
    return weights


def local_update(epochs: int) -> LocalUpdate:
    shards = data()

    def update(client: ClientParty, reference: Weights) -> Weights:
        images, labels = shards[client.name]
        return train_locally(
            model(),
            reference,
            images,
            labels,
            LocalTraining(batch_size=100, learning_rate=RATE, epochs=epochs),
            hooks=client,
            generator=torch.Generator().manual_seed(0),
            where=client.name,
        )

    return update


def plain_federation(**options: object) -> Federation:
    parties = build_defense("plain").parties(Network(model, (1, 2, 3), CLASSES), NAMES, SecretRoot(bytes(32)))
    return Federation(parties, COUNTS, seed=0, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("cohorts", [[NAMES], [NAMES, NAMES], [NAMES[:2], NAMES[1:], NAMES[2:]]], ids=len)
def test_rounds_are_federated_averaging(cohorts: list[tuple[str, ...]], epochs: int) -> None:
    federation = plain_federation()
    federation.start(weights_of(model()))
    for number, cohort in enumerate(cohorts):
        federation.run_round(number, cohort, local_update(epochs))
    (released,) = federation.release(len(cohorts), NAMES[:1])
    for name, expected in fedavg_by_hand(cohorts, epochs).items():
        torch.testing.assert_close(federation.recover(released)[name].double(), expected, rtol=1e-5, atol=1e-6)


def test_a_record_holds_the_truth_and_the_envelopes() -> None:
    federation = plain_federation()
    initial = weights_of(model())
    start = federation.start(initial)
    assert [(envelope.phase, envelope.sender) for envelope in start.transcript] == [(Phase.INITIAL, NAMES[0])]
    record = federation.run_round(0, NAMES[1:], local_update(1))
    routes = [(envelope.phase, envelope.sender, envelope.receiver) for envelope in record.transcript]
    down = [(Phase.BROADCAST, SERVER, name) for name in NAMES[1:]]
    assert routes == down + [(Phase.UPLOAD, name, SERVER) for name in NAMES[1:]]
    assert record.references.keys() == record.trained.keys() == set(NAMES[1:])
    assert all(record.references[NAMES[1]][name].equal(tensor) for name, tensor in initial.items())
    assert not record.trained[NAMES[1]]["3.bias"].equal(initial["3.bias"])
    assert {"train", "protect", "recover", "aggregate"} <= record.seconds.keys()
    assert all(seconds >= 0 for seconds in record.seconds.values())


def test_a_rehearsal_begins_from_a_checkpoint_and_leaves_the_global_model() -> None:
    federation = plain_federation()
    initial = weights_of(model())
    federation.start(initial)
    checkpoint = federation.parties.server.state
    federation.run_round(0, NAMES, local_update(1))
    before = federation.parties.server.state
    assert before != checkpoint
    with federation.rehearsal(checkpoint):
        record = federation.run_round(0, NAMES, local_update(2), variant=1)
        assert federation.parties.server.state not in (before, checkpoint)
    assert federation.parties.server.state == before
    assert all(record.references[NAMES[0]][name].equal(tensor) for name, tensor in initial.items())

    def fail(client: object, reference: Weights) -> Weights:
        raise ArithmeticError("diverged")

    def rehearse_failure() -> None:
        with federation.rehearsal(checkpoint):
            federation.run_round(0, NAMES, local_update(1), variant=2)
            federation.run_round(1, NAMES, fail, variant=3)

    with pytest.raises(ArithmeticError):
        rehearse_failure()
    assert federation.parties.server.state == before


def test_what_the_wire_delivers_is_what_is_read() -> None:
    weights = weights_of(model())
    needle = weights["3.bias"].numpy().tobytes()
    other = torch.full_like(weights["3.bias"], 42.0)

    def forge(content: bytes) -> bytes:
        return content.replace(needle, other.numpy().tobytes())

    federation = plain_federation(wire=forge)
    federation.start(weights)
    record = federation.run_round(0, NAMES, local_update(1))
    assert record.references[NAMES[0]]["3.bias"].equal(other)


@pytest.mark.parametrize("receiver", ["client-7", "client-1"])
def test_a_broadcast_that_misses_its_receiver_is_refused(receiver: str) -> None:
    def redirect(content: bytes) -> bytes:
        envelope = Envelope.from_bytes(content)
        if envelope.phase == Phase.BROADCAST and envelope.receiver == NAMES[0]:
            return Envelope(envelope.round, envelope.phase, SERVER, receiver, envelope.payload).to_bytes()
        return content

    federation = plain_federation(wire=redirect)
    federation.start(weights_of(model()))
    with pytest.raises(MalformedMessage, match="a message for each of"):
        federation.run_round(0, NAMES, local_update(1))


# --- choosing the cohort -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clients", "fraction", "expected"),
    [(10, 1.0, 10), (10, 0.25, 2), (10, 0.01, 1), (100, 0.29, 29), (3, 0.34, 1), (1, 0.5, 1), (7, 0.999, 6)],
)
def test_the_cohort_has_max_ck_1_clients(clients: int, fraction: float, expected: int) -> None:
    cohort = choose_cohort(clients, fraction, np.random.default_rng(0))
    assert len(cohort) == len(set(cohort)) == expected
    assert list(cohort) == sorted(cohort, key=lambda name: int(name.removeprefix("client-")))
    assert set(cohort) <= set(map(client_name, range(clients)))


def test_the_cohort_is_uniform() -> None:
    generator = np.random.default_rng(1)
    counts = Counter(name for _ in range(2000) for name in choose_cohort(5, 0.4, generator))
    assert stats.chisquare([counts[client_name(index)] for index in range(5)]).pvalue > 1e-3


# --- the order of a protocol's steps -----------------------------------------------------------------------------------

EXCHANGES = (
    Exchange("after", Moment.AFTER_UPLOAD),
    Exchange("first", Moment.BEFORE_TRAINING),
    Exchange("second", Moment.BEFORE_TRAINING),
    Exchange("bounds", Moment.BEFORE_UPLOAD),
)


class Diary:
    """What happened, in order, and the draw of each step's randomness."""

    def __init__(self) -> None:
        self.entries: list[str] = []
        self.draws: list[tuple[str, float]] = []

    def note(self, entry: str, context: RoundContext) -> None:
        self.entries.append(entry)
        self.draws.append((entry, float(torch.rand(1, generator=context.generator))))


class Agent:
    def __init__(self, diary: Diary) -> None:
        self._diary = diary
        self._known: set[str] = set()

    def issue(self, context: RoundContext) -> list[Envelope]:
        due = [name for name in (*context.cohort, SERVER) if name not in self._known]
        self._known |= set(due)
        return [Envelope(context.round, Phase.KEYS, KEY_AGENT, name, b"key") for name in due]

    def held(self) -> bytes:
        return b"all keys"


class Client:
    def __init__(self, name: str, diary: Diary) -> None:
        self.name, self._diary = name, diary

    def receive_key(self, envelope: Envelope, context: RoundContext) -> None:
        assert (envelope.phase, envelope.receiver) == (Phase.KEYS, self.name)
        self._diary.note(f"{self.name} key", context)

    def protect_initial(self, weights: Weights, context: RoundContext) -> Envelope:
        return Envelope(context.round, Phase.INITIAL, self.name, SERVER, b"initial")

    def recover(self, envelope: Envelope, context: RoundContext) -> Weights:
        self._diary.note(f"{self.name} recover", context)
        return {"w": torch.tensor(float(len(envelope.payload)))}

    def offer(self, phase: str, context: RoundContext) -> list[Envelope]:
        assert context.incoming is not None
        assert context.reference is not None
        assert (context.trained is None) == (phase in ("first", "second"))
        self._diary.note(f"{self.name} offer {phase}", context)
        others = [name for name in context.cohort if name != self.name]
        return [Envelope(context.round, phase, self.name, receiver, b"") for receiver in (SERVER, *others)]

    def take(self, phase: str, inbox: Sequence[Envelope], context: RoundContext) -> None:
        senders = [envelope.sender for envelope in inbox]
        assert sorted(senders) == sorted({SERVER, *context.cohort} - {self.name})
        self._diary.note(f"{self.name} take {phase}", context)

    def protect(self, context: RoundContext) -> Envelope:
        assert context.trained is not None
        self._diary.note(f"{self.name} protect", context)
        return Envelope(context.round, Phase.UPLOAD, self.name, SERVER, b"update")

    def transform_images(self, images: Tensor) -> Tensor:
        return images

    def step_gradients(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return cross_entropy_gradients(model, images, labels)

    def held(self) -> bytes:
        return self.name.encode()


class Server:
    state = b""

    def __init__(self, diary: Diary) -> None:
        self._diary = diary

    def receive_key(self, envelope: Envelope, context: RoundContext) -> None:
        assert envelope.receiver == SERVER
        self._diary.note("server key", context)

    def adopt(self, envelope: Envelope, context: RoundContext) -> None:
        self.state = envelope.payload

    def broadcast(self, phase: str, receivers: Sequence[str], context: RoundContext) -> list[Envelope]:
        return [Envelope(context.round, phase, SERVER, name, self.state) for name in receivers]

    def answer(self, phase: str, inbox: Sequence[Envelope], context: RoundContext) -> list[Envelope]:
        assert [envelope.sender for envelope in inbox] == list(context.cohort)
        self._diary.note(f"server answer {phase}", context)
        return [Envelope(context.round, phase, SERVER, name, b"") for name in context.cohort]

    def aggregate(self, uploads: Sequence[Envelope], context: RoundContext) -> None:
        assert [envelope.sender for envelope in uploads] == list(context.cohort)
        self._diary.note("server aggregate", context)
        self.state = b"".join(envelope.payload for envelope in uploads)

    def held(self) -> bytes:
        return b""


def diary_of(cohort: tuple[str, ...], number: int = 0, variant: int = 0, seed: int = 0) -> Diary:
    """A start and one round."""
    diary = Diary()
    clients = {name: Client(name, diary) for name in NAMES[:2]}
    parties = Parties(Server(diary), clients, Agent(diary), EXCHANGES)
    federation = Federation(parties, {name: COUNTS[name] for name in clients}, seed=seed)

    def train(client: object, reference: Weights) -> Weights:
        assert isinstance(client, Client)
        diary.entries.append(f"{client.name} train")
        return reference

    federation.start({})
    federation.run_round(number, cohort, train, variant=variant)
    return diary


def test_steps_come_in_the_order_of_the_protocol() -> None:
    one, other = NAMES[:2]

    def exchange(phase: str) -> list[str]:
        offers = [f"{name} offer {phase}" for name in (one, other)]
        return [*offers, f"server answer {phase}", *(f"{name} take {phase}" for name in (one, other))]

    assert diary_of((one, other)).entries == [
        *(f"{name} key" for name in (one, other, "server")),
        *(f"{name} recover" for name in (one, other)),
        *exchange("first"),
        *exchange("second"),
        *(f"{name} train" for name in (one, other)),
        *exchange("bounds"),
        *(f"{name} protect" for name in (one, other)),
        *exchange("after"),
        "server aggregate",
    ]


def test_the_randomness_of_a_step_depends_on_seed_round_variant_and_party() -> None:
    cohort = NAMES[:2]
    protect = {
        case: dict(diary_of(cohort, **options).draws)[f"{name} protect"]
        for case, name, options in [
            ("base", NAMES[0], {}),
            ("again", NAMES[0], {}),
            ("party", NAMES[1], {}),
            ("seed", NAMES[0], {"seed": 1}),
            ("round", NAMES[0], {"number": 1}),
            ("variant", NAMES[0], {"variant": 1}),
        ]
    }
    assert protect.pop("again") == protect["base"]
    assert len(set(protect.values())) == len(protect)


def test_shares_are_over_the_cohort() -> None:
    context = RoundContext(0, NAMES[:2], {name: COUNTS[name] for name in NAMES[:2]}, torch.Generator())
    assert context.share(NAMES[0]) == 4 / 11
    assert context.share(NAMES[1]) == 7 / 11


def test_what_parties_hold_is_asked_by_wire_name() -> None:
    diary = Diary()
    parties = Parties(Server(diary), {NAMES[0]: Client(NAMES[0], diary)}, Agent(diary))
    assert [parties.held(name) for name in (NAMES[0], SERVER, KEY_AGENT)] == [b"client-0", b"", b"all keys"]
    assert Parties(Server(diary), {}).held(KEY_AGENT) == b""
