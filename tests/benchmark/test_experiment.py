"""Experiments: what may be written, and the one line that says what may not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmark.experiment import Experiment, validated
from benchmark.narrowing import narrowed
from federation.errors import UsageError

Tiny = Callable[..., Experiment]
Content = Callable[..., dict[str, Any]]

ALGORITHM = "federations.0.algorithm"

REFUSED = {
    "unknown key": ({"adversary": "server/oblivious"}, ["adversary", "unknown key", "adversaries"]),
    "unknown key further in": ({"victims.probe.batches": 1}, ["victims.probe.batches", "unknown key"]),
    "text for a number": ({f"{ALGORITHM}.rounds": "many"}, [f"{ALGORITHM}.rounds", "integer"]),
    "a number for a list": ({"seeds": 3}, ["seeds"]),
    "missing key": ({f"{ALGORITHM}.batch_size": ...}, [f"{ALGORITHM}.batch_size", "required"]),
    "infinite rate": ({f"{ALGORITHM}.learning_rate": float("inf")}, [f"{ALGORITHM}.learning_rate", "finite"]),
    "negative rate": ({"victims.probe.rate": -1}, ["victims.probe.rate", "greater than 0"]),
    "no seeds": ({"seeds": []}, ["seeds"]),
    "repeated seed": ({"seeds": [4, 7, 4]}, ["seeds", "4", "twice"]),
    "name with a slash": ({"name": "../tiny"}, ["name", "pattern"]),
    "unknown task": (
        {"federations.0.task": "mnist5k-logistik"},
        ["federations.0", "mnist5k-logistik", "mnist5k-logistic"],
    ),
    "unknown defense": ({"federations.0.defenses": ["plain", "keynt"]}, ["defenses.1", "keynt", "mean keynet"]),
    "defense named twice": ({"federations.0.defenses": ["plain", "plain"]}, ["federations.0", "twice"]),
    "no defense": ({"federations.0.defenses": []}, ["federations.0.defenses"]),
    "stage of no kind": ({"federations.0.defenses": [{"name": "x", "stages": [3]}]}, ["defenses.0.stages.0"]),
    "codec before a transform": (
        {"federations.0.defenses": [{"name": "x", "stages": ["qsgd", "keynet"]}]},
        ["federations.0.defenses.0", "one codec"],
    ),
    "unknown option of a stage": (
        {"federations.0.defenses": [{"name": "x", "stages": [{"keynet": {"gain": 2}}]}]},
        ["federations.0.defenses.0", "'gain'", "gain_range"],
    ),
    "unfit option of a stage": (
        {"federations.0.defenses": [{"name": "x", "stages": [{"keynet": {"gain_range": "wide"}}]}]},
        ["federations.0.defenses.0", "gain_range", "number"],
    ),
    "snapshot after the last round": ({"federations.0.snapshots": [0, 1]}, ["federations.0", "snapshot 1", "0 to 0"]),
    "snapshot that is no round": ({"federations.0.snapshots": ["first"]}, ["federations.0.snapshots.0"]),
    "attacks without snapshots": ({"federations.0.snapshots": []}, ["snapshots", "small-digits"]),
    "partition without a kind": ({f"{ALGORITHM}.partition": {}}, [f"{ALGORITHM}.partition", "dirichlet"]),
    "partition of an odd kind": ({f"{ALGORITHM}.partition": {"kind": ["iid"]}}, [f"{ALGORITHM}.partition", "iid"]),
    "unknown partition": ({f"{ALGORITHM}.partition": {"kind": "idd"}}, [f"{ALGORITHM}.partition", "mean iid"]),
    "partition lacks an option": ({f"{ALGORITHM}.partition": {"kind": "sizes"}}, [f"{ALGORITHM}.partition", "sizes"]),
    "partition with too much": (
        {f"{ALGORITHM}.partition": {"kind": "iid", "alpha": 1.0}},
        [f"{ALGORITHM}.partition", "alpha", "unknown key"],
    ),
    "partition with unfit option": (
        {f"{ALGORITHM}.partition": {"kind": "dirichlet", "alpha": "low"}},
        [f"{ALGORITHM}.partition", "alpha", "number"],
    ),
    "fedpaq without tau": ({f"{ALGORITHM}.name": "fedpaq", f"{ALGORITHM}.steps": ...}, [ALGORITHM, "steps", "tau"]),
    "fedpaq with epochs": (
        {f"{ALGORITHM}.name": "fedpaq", f"{ALGORITHM}.steps": 3, f"{ALGORITHM}.epochs": 2},
        [ALGORITHM, "epochs", "steps"],
    ),
    "fedpaq of no steps": ({f"{ALGORITHM}.name": "fedpaq", f"{ALGORITHM}.steps": 0}, [f"{ALGORITHM}.steps"]),
    "fedpaq on whole weights": (
        {f"{ALGORITHM}.name": "fedpaq", f"{ALGORITHM}.steps": 3, "federations.0.defenses": ["qsgd", "keynet"]},
        ["federations.0", "'keynet'", "qsgd, keynet-quantized", "plain"],
    ),
    "fedpaq on a protocol of its own": (
        {f"{ALGORITHM}.name": "fedpaq", f"{ALGORITHM}.steps": 3, "federations.0.defenses": ["paillier-pride"]},
        ["federations.0", "'paillier-pride'"],
    ),
    "unknown adversary": ({"adversaries": ["server/adaptiv"]}, ["adversaries", "server/adaptiv", "server/adaptive"]),
    "adversary without knowledge": ({"adversaries": ["server"]}, ["adversaries", "position/knowledge"]),
    "adversary named twice": ({"adversaries": ["server/adaptive"] * 2}, ["adversaries", "server/adaptive", "twice"]),
    "collusion with one client": ({f"{ALGORITHM}.clients": 1}, ["collusion/adaptive", "two clients"]),
    "attacks without adversaries": ({"adversaries": []}, ["attacks need adversaries"]),
    "attacks without victims": ({"victims": {}}, ["attacks need victims", "victims.probe"]),
    "unknown attack": ({"attacks.0.name": "cosin"}, ["attacks.0", "cosin", "mean cosine"]),
    "attack file that is missing": ({"attacks.0.name": "no/such.py:Attack"}, ["attacks.0", "no/such.py"]),
    "unknown option of an attack": ({"attacks.0.options": {"tv": 1}}, ["attacks.0", "'tv'", "total_variation"]),
    "unfit option of an attack": ({"attacks.0.options": {"rate": "fast"}}, ["attacks.0", "'rate'", "number"]),
    "attacks of one name": (
        {"attacks": [{"name": "dlg", "evaluations": 2}, {"name": "dlg", "evaluations": 3}]},
        ["attacks", "dlg"],
    ),
    "budget of an attack that is not listed": (
        {"federations.0.attacks": [{"name": "dlg", "evaluations": 2}]},
        ["small-digits", "dlg", "not among the attacks"],
    ),
    "two budgets of one attack": (
        {"federations.0.attacks": [{"name": "cosine", "evaluations": 2}] * 2},
        ["federations.0", "cosine", "twice"],
    ),
    "no evaluations": ({"attacks.0.evaluations": 0}, ["attacks.0.evaluations"]),
    "unknown oracle": ({"oracles": ["label"]}, ["oracles.0", "labels"]),
    "oracle that is not built": ({"oracles": ["pose"]}, ["oracles", "pose", "labels"]),
}


@pytest.mark.parametrize(("changes", "parts"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_one_line_that_names_the_place(
    tiny_content: Content, changes: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        validated(tiny_content(changes), "some.yaml")
    message = str(caught.value)
    assert message.startswith("some.yaml: ")
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_the_tiny_experiment_has_no_mistake(tiny_content: Content) -> None:
    assert validated(tiny_content(), "some.yaml").name == "tiny"


def test_federations_of_one_name_are_refused(tiny_content: Content) -> None:
    content = tiny_content()
    content["federations"] *= 2
    with pytest.raises(UsageError, match=r"^some.yaml: federations: .*small-digits, fedavg iid K=2"):
        validated(content, "some.yaml")


def test_fedpaq_takes_defenses_that_send_quantised_updates(tiny_experiment: Tiny) -> None:
    coarse = {"name": "coarse", "stages": ["keynet", {"qsgd": {"levels": 3}}]}
    defenses = ["plain", "qsgd", "keynet-quantized", coarse]
    changes = {f"{ALGORITHM}.name": "fedpaq", f"{ALGORITHM}.steps": 90, "federations.0.defenses": defenses}
    algorithm = tiny_experiment(changes).federations[0].algorithm
    assert [algorithm.local.step_count(images) for images in (1, 20, 10_000)] == [90, 90, 90]


def test_steps_and_partial_participation_are_in_the_name_of_an_algorithm(tiny_experiment: Tiny) -> None:
    def label(**changes: Any) -> str:
        given = {f"{ALGORITHM}.{key}": value for key, value in changes.items()}
        return (
            tiny_experiment({"federations.0.defenses": ["qsgd"], f"{ALGORITHM}.steps": None} | given)
            .federations[0]
            .algorithm.label
        )

    assert label() == label(steps=4) == "fedavg iid K=2"
    assert label(fraction=0.5, clients=10) == "fedavg iid K=10 C=0.5"
    assert label(name="fedpaq", steps=5) == "fedpaq iid K=2 tau=5"
    assert label(name="fedpaq", steps=20, fraction=0.5) == "fedpaq iid K=2 C=0.5 tau=20"


@pytest.mark.parametrize("content", [None, [], "tiny", 3])
def test_what_is_no_mapping_is_refused(content: object) -> None:
    with pytest.raises(UsageError, match=r"^some.yaml: must be keys with values$"):
        validated(content, "some.yaml")


def test_the_dump_of_any_part_reads_back(tiny_experiment: Tiny) -> None:
    changes = {
        "federations.0.defenses": ["plain", {"name": "coarse", "stages": [{"keynet": {"gain_range": 3.0}}, "qsgd"]}],
        "federations.0.snapshots": [0, "last"],
        "attacks.0.options": {"rate": 0.5},
        "oracles": ["labels"],
        "victims.raw": True,
    }
    experiment = tiny_experiment(changes)
    assert validated(experiment.model_dump(mode="json"), "dump") == experiment
    assert Experiment.model_validate_json(experiment.model_dump_json()) == experiment


def test_snapshots_name_each_round_once(tiny_experiment: Tiny) -> None:
    experiment = tiny_experiment({f"{ALGORITHM}.rounds": 5, "federations.0.snapshots": ["last", 2, 4, 0]})
    assert experiment.federations[0].snapshot_rounds == (0, 2, 4)


def test_a_federation_and_a_kind_of_victim_may_have_their_own_budget(tiny_experiment: Tiny) -> None:
    own = {"name": "cosine", "evaluations": 3, "options": {"rate": 0.5}}
    experiment = tiny_experiment(
        {
            "attacks": [{"name": "cosine", "evaluations": 8}, {"name": "dlg", "evaluations": 9}],
            "federations.0.attacks": [own],
            "victims.real_round.evaluations": 5,
        }
    )
    federation = experiment.federations[0]
    probe, real = (experiment.attacks_on(federation, kind) for kind in ("probe", "real-round"))
    assert [(spec.name, spec.evaluations) for spec in probe] == [("cosine", 3), ("dlg", 9)]
    assert [(spec.name, spec.evaluations) for spec in real] == [("cosine", 5), ("dlg", 5)]
    assert probe[0].options == real[0].options == {"rate": 0.5}
    assert narrowed(experiment, attacks=("dlg",)).federations[0].attacks == ()
    assert narrowed(experiment, attacks=("cosine",)).federations[0].attacks == federation.attacks
