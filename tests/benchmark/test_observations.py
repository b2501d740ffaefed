"""Observations: what each adversary is handed, and that nothing else hangs on it."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import scipy.sparse
import torch
from observed import observed
from torch import Tensor, nn

from benchmark.harness import training_plans
from benchmark.observations import ObservedRounds
from benchmark.recovered_weights import exact_share
from benchmark.training_files import Truth
from benchmark.training_plan import TrainingPlan
from benchmark.workspace import Workspace
from defenses.parties import StackAgent, StackClient, StackServer
from federation.datasets import Dataset, LabelledImages
from federation.messages import SERVER, Transcript, raw_tensors_from_bytes
from federation.network import Network
from federation.secret_root import SecretRoot
from federation.threat import (
    AGGREGATE,
    Ciphertext,
    Knowledge,
    Observation,
    Oracle,
    PlainModel,
    Position,
)

DEFENSES = ("plain", "keynet", "paillier")
PRIVATE = (
    *(Truth, TrainingPlan, Workspace, SecretRoot, Dataset, LabelledImages, ObservedRounds),
    *(StackAgent, StackClient, StackServer),
)
LEAVES = (str, int, float, type(None), torch.dtype, torch.Size)


@pytest.fixture(scope="module")
def plans(tiny_run: Any) -> dict[str, TrainingPlan]:
    return {plan.defense_spec.name: plan for plan in training_plans(tiny_run.experiment, tiny_run.workspace)}


def reachable(root: object) -> Iterator[object]:
    """Everything that can be reached from an object by attributes, items, closures and default arguments.

    Classes, modules and what functions find in their modules are not followed: they are the program, not the data.
    """
    seen: set[int] = set()
    pending: list[Any] = [root]
    keep: list[Any] = []
    while pending:
        item = pending.pop()
        if id(item) in seen or isinstance(item, (type, types.ModuleType, types.BuiltinFunctionType, *LEAVES)):
            continue
        seen.add(id(item))
        keep.append(item)  # so that no other object gets the same id
        yield item
        pending += parts(item)


def parts(item: Any) -> list[Any]:
    if isinstance(item, bytes | Tensor):
        return []
    if isinstance(item, Mapping):
        return [*item.keys(), *item.values()]
    if isinstance(item, list | tuple | set | frozenset):
        return list(item)
    if isinstance(item, functools.partial):
        return [item.func, item.args, item.keywords]
    if isinstance(item, types.MethodType):
        return [item.__self__, item.__func__]
    if isinstance(item, types.FunctionType):
        cells = [cell.cell_contents for cell in item.__closure__ or ()]
        return [*cells, item.__defaults__, item.__kwdefaults__, getattr(item, "__wrapped__", None)]
    slots = [
        getattr(item, name)
        for cls in type(item).__mro__
        for name in getattr(cls, "__slots__", ())
        if hasattr(item, name)
    ]
    return [*vars(item).values(), *slots] if hasattr(item, "__dict__") else slots


def test_the_walk_finds_what_hides() -> None:
    secret = SecretRoot(bytes(32))
    network = Network(lambda: nn.Linear(len(repr(secret)), 2), (1, 1, 1), 2)
    assert any(item is secret for item in reachable(network))
    assert any(item is secret for item in reachable([{"a": functools.partial(print, root=secret)}]))
    assert any(item is secret for item in reachable(secret.derive))


@pytest.mark.parametrize("kind", ["probe", "real-round"])
@pytest.mark.parametrize("defense", DEFENSES)
@pytest.mark.parametrize("position", Position)
def test_nothing_private_hangs_on_an_observation(
    plans: dict[str, TrainingPlan], position: Position, defense: str, kind: str
) -> None:
    history = observed(plans[defense], f"{position}/{Knowledge.ADAPTIVE}", kind, 0)
    observation, truth = history[0], history.truth(0)
    for item in reachable(observation):
        assert not isinstance(item, PRIVATE), type(item)
        if isinstance(item, Tensor):
            assert not holds(item, truth.images), "the private images"
        if isinstance(item, bytes):
            assert truth.images.numpy().tobytes() not in item
        if isinstance(item, scipy.sparse.sparray):
            pytest.fail("no defense here has sparse layers")


def holds(tensor: Tensor, images: Tensor) -> bool:
    """Whether a tensor has one of the images, as bytes or scaled to [0, 1]."""
    if tensor.shape[1:] != images.shape[1:]:
        return False
    levels = tensor.double() if tensor.dtype == torch.uint8 else tensor.double() * 255
    return any(bool(((levels - image.double()).abs().flatten(1).amax(1) < 0.5).any()) for image in images)


def test_holds_recognises_an_image() -> None:
    images = torch.randint(256, (3, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert holds(images.float() / 255, images[1:2])
    assert not holds(images[:1], images[1:])


def observe(plan: TrainingPlan, name: str, kind: str = "probe", oracles: tuple[Oracle, ...] = ()) -> Observation:
    return observed(plan, name, kind, 0, oracles)[0]


@pytest.mark.parametrize("position", Position)
def test_knowledge_decides_auxiliary_images_and_scheme(plans: dict[str, TrainingPlan], position: Position) -> None:
    oblivious = observe(plans["keynet"], f"{position}/{Knowledge.OBLIVIOUS}")
    adaptive = observe(plans["keynet"], f"{position}/{Knowledge.ADAPTIVE}")
    assert (oblivious.auxiliary, dict(oblivious.scheme)) == (None, {})
    assert adaptive.auxiliary is not None
    assert len(adaptive.auxiliary.labels) == 600
    assert adaptive.scheme["keynet"]["gain_range"] == 2.0
    assert oblivious.transcript == adaptive.transcript


@pytest.mark.parametrize(
    ("position", "held"),
    [
        ("server", set()),
        ("eavesdropper", set()),
        ("aggregate", set()),
        ("client", {"client-1"}),
        ("collusion", {"client-1"}),
        ("key-agent", {"key-agent"}),
    ],
)
@pytest.mark.parametrize("defense", ["keynet", "paillier"])
def test_a_position_holds_its_own_keys_alone(
    plans: dict[str, TrainingPlan], defense: str, position: str, held: set[str]
) -> None:
    assert set(observe(plans[defense], f"{position}/adaptive").held) == held


def test_positions_read_their_own_envelopes(plans: dict[str, TrainingPlan]) -> None:
    plan = plans["keynet"]
    everything = Transcript.load(plan.directory / "probe-0-0.transcript")
    read = {position: observe(plan, f"{position}/oblivious").transcript for position in Position}
    assert read[Position.EAVESDROPPER] == read[Position.KEY_AGENT] == everything
    assert {SERVER} <= {party for e in read[Position.SERVER] for party in (e.sender, e.receiver)}
    assert all(SERVER in (e.sender, e.receiver) for e in read[Position.SERVER])
    assert all("client-1" in (e.sender, e.receiver) for e in read[Position.CLIENT])
    assert {e.phase for e in read[Position.AGGREGATE]} == {"broadcast", "release"}
    assert set(read[Position.COLLUSION]) == set(read[Position.SERVER]) | set(read[Position.CLIENT])


def test_views_are_what_the_wire_carried(plans: dict[str, TrainingPlan]) -> None:
    view = observe(plans["plain"], "server/oblivious").view
    assert isinstance(view, PlainModel)
    for envelope in Transcript.load(plans["plain"].directory / "probe-0-0.transcript").phase("upload"):
        sent = raw_tensors_from_bytes(envelope.payload, "an upload")
        assert all(torch.equal(view.after[envelope.sender][name], tensor) for name, tensor in sent.items())
    assert view.hidden_by == frozenset()
    keyed = observe(plans["keynet"], "server/adaptive").view
    assert isinstance(keyed, PlainModel)
    assert keyed.hidden_by == {"keynet"}
    assert isinstance(observe(plans["paillier"], "server/adaptive").view, Ciphertext)


@pytest.mark.parametrize("kind", ["probe", "real-round"])
def test_the_released_model_is_read_in_clear_under_every_defense(plans: dict[str, TrainingPlan], kind: str) -> None:
    released = {name: observe(plans[name], "aggregate/adaptive", kind) for name in DEFENSES}
    expected = released["plain"].view
    assert isinstance(expected, PlainModel)
    for name, observation in released.items():
        view = observation.view
        assert isinstance(view, PlainModel), name
        assert (set(view.after), view.hidden_by, dict(observation.held)) == ({AGGREGATE}, frozenset(), {})
        for tensor_name, tensor in expected.after[AGGREGATE].items():
            torch.testing.assert_close(view.after[AGGREGATE][tensor_name], tensor, atol=1e-2, rtol=0)


@pytest.mark.parametrize("kind", ["probe", "real-round"])
@pytest.mark.parametrize("position", Position)
def test_a_position_has_the_updates_of_its_own_clients_alone(
    plans: dict[str, TrainingPlan], position: Position, kind: str
) -> None:
    plain = observe(plans["plain"], "server/oblivious", kind).view
    assert isinstance(plain, PlainModel)
    for defense in DEFENSES:
        own = observe(plans[defense], f"{position}/adaptive", kind).own_updates
        assert set(own) == ({"client-1"} if position in (Position.CLIENT, Position.COLLUSION) else set())
    if own:
        sent = observe(plans["plain"], f"{position}/adaptive", kind)
        assert all(
            torch.equal(sent.own_updates["client-1"][name], item) for name, item in plain.after["client-1"].items()
        )


def test_the_referee_knows_what_the_victim_trained(plans: dict[str, TrainingPlan]) -> None:
    view = observe(plans["plain"], "server/oblivious").view
    assert isinstance(view, PlainModel)
    history = observed(plans["plain"], "server/oblivious", "probe", 0)
    assert exact_share(view.after["client-0"], history.truth(0).trained) == 1.0
    assert exact_share(view.after["client-1"], history.truth(0).trained) < 0.5
    assert exact_share({}, history.truth(0).trained) == 0.0
    halves = {name: tensor.double() for name, tensor in view.after["client-0"].items()}
    assert exact_share(halves, history.truth(0).trained) == 0.0


def test_a_colluder_reads_what_the_undefended_server_reads(plans: dict[str, TrainingPlan]) -> None:
    open_view = observe(plans["plain"], "server/oblivious").view
    assert isinstance(open_view, PlainModel)
    for defense in ("keynet", "paillier"):
        view = observe(plans[defense], "collusion/adaptive").view
        assert isinstance(view, PlainModel)
        assert view.hidden_by == frozenset()
        for name, tensor in open_view.after["client-0"].items():
            torch.testing.assert_close(view.after["client-0"][name], tensor, atol=1e-6, rtol=1e-6)


def test_facts_are_those_of_the_observed_update(plans: dict[str, TrainingPlan]) -> None:
    probe = observe(plans["plain"], "server/oblivious").facts
    assert (probe.learning_rate, probe.batch_size, probe.epochs, probe.steps) == (0.1, 1, 1, 1)
    assert dict(probe.sample_counts) == {"client-0": 1, "client-1": 1}
    real = observe(plans["plain"], "server/oblivious", "real-round").facts
    assert (real.learning_rate, real.batch_size, real.epochs, real.steps) == (0.1, 50, 1, 2)
    assert dict(real.sample_counts) == {"client-0": 1400, "client-1": 1400}


def test_labels_come_only_as_an_oracle(plans: dict[str, TrainingPlan]) -> None:
    assert dict(observe(plans["plain"], "server/adaptive").oracles) == {}
    granted = observe(plans["plain"], "server/adaptive", oracles=(Oracle.LABELS,)).oracles
    truth = observed(plans["plain"], "server/adaptive", "probe", 0).truth(0)
    assert torch.equal(granted[Oracle.LABELS], truth.labels)


def test_a_history_loads_what_is_looked_at(plans: dict[str, TrainingPlan], monkeypatch: pytest.MonkeyPatch) -> None:
    history = observed(plans["plain"], "server/oblivious", "probe", 0)
    loaded = []
    load = Transcript.load
    monkeypatch.setattr(Transcript, "load", lambda path: loaded.append(path.name) or load(path))
    assert len(history) == 3
    assert loaded == []
    assert history[-1] is history[2]
    assert loaded == ["probe-0-2.transcript"]
    assert history[:2] == [history[0], history[1]]
    assert len(loaded) == 3
    with pytest.raises(IndexError):
        history[3]


def test_victims_are_named_alike_under_every_defense(plans: dict[str, TrainingPlan]) -> None:
    for kind in ("probe", "real-round"):
        histories = [observed(plans[name], "server/oblivious", kind, 0) for name in DEFENSES]
        victims = [history.victims() for history in histories]
        assert victims[0] == victims[1] == victims[2]
        for index in range(len(histories[0])):
            first, *others = [history.truth(index) for history in histories]
            for other in others:
                assert torch.equal(first.images, other.images)
                assert torch.equal(first.labels, other.labels)
                assert torch.equal(first.indices, other.indices)
