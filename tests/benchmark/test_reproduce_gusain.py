"""The Gusain reproduction: its experiments, what is said of them, and deviations from runs with known figures."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from benchmark.experiment import Experiment
from benchmark.reproduce.gusain import printed, scales
from benchmark.store.gusain import NETWORKS, SCALES, AlgorithmName, NetworkName, Scale
from benchmark.validation import validated_part
from federation.datasets import load_dataset
from federation.tasks import find_task

EVERY = [(scale, network) for scale in SCALES for network in NETWORKS]


def test_the_table_is_the_printed_one() -> None:
    found = {(row.network, row.algorithm, row.encrypted): round(100 * row.printed) for row in printed.TABLE_4_1}
    assert found == {
        ("lenet", "fedavg", False): 98,
        ("lenet", "fedavg", True): 96,
        ("mobilenet", "fedavg", False): 84,
        ("mobilenet", "fedavg", True): 82,
        ("lenet", "fedpaq", False): 98,
        ("lenet", "fedpaq", True): 96,
        ("mobilenet", "fedpaq", False): 82,
        ("mobilenet", "fedpaq", True): 86,
    }


@pytest.mark.parametrize(("scale", "network"), EVERY)
def test_experiments_are_the_papers_setting(scale: Scale, network: NetworkName) -> None:
    experiment = scales.experiment_of(scale, network)
    algorithms = [federation.algorithm for federation in experiment.federations]
    assert [algorithm.name for algorithm in algorithms] == list(get_args(AlgorithmName))
    for algorithm in algorithms:
        assert (algorithm.clients, algorithm.partition) == (2, {"kind": "disjoint-classes"})
    assert experiment.victims.raw, "published figures are of raw images"
    assert experiment.victims.probe is not None
    assert (experiment.victims.probe.batch, experiment.victims.probe.steps) == (1, 1)
    assert experiment.victims.real_round is not None
    assert [f"{reader.position}/{reader.knowledge}" for reader in printed.READERS] == list(experiment.adversaries)
    assert "cosine" in [attack.name for attack in experiment.attacks]
    for federation in experiment.federations:
        assert federation.algorithm.rounds - 1 in federation.snapshot_rounds, "inference needs the last round"
        trained = {entry.defense for entry in printed.TABLE_4_1 if entry.algorithm == federation.algorithm.name}
        assert {defense.name for defense in federation.defenses} == trained


@pytest.mark.parametrize("network", NETWORKS)
def test_only_quick_does_without_the_real_sets(network: NetworkName) -> None:
    embedded = ("mnist5k", "photos32")
    for scale in SCALES:
        dataset = find_task(scales.experiment_of(scale, network).federations[0].task).dataset
        assert (dataset in embedded) == (scale == "quick")
        assert scale == "quick" or dataset == printed.DATASETS[network]


@pytest.mark.parametrize("network", NETWORKS)
def test_full_is_the_papers_size_in_every_respect(network: NetworkName) -> None:
    experiment = scales.experiment_of("full", network)
    assert find_task(experiment.federations[0].task).model == printed.MODELS[network]
    fedavg, fedpaq = experiment.federations
    assert (fedavg.algorithm.epochs, fedavg.algorithm.steps) == (1, None)
    assert len(fedavg.snapshot_rounds) == fedavg.algorithm.rounds, "the server attacks after every epoch"
    assert fedpaq.algorithm.rounds == fedavg.algorithm.rounds
    assert all(attack.evaluations >= printed.ATTACK_EVALUATIONS for attack in experiment.attacks)
    real_round = experiment.victims.real_round
    assert real_round is not None
    assert real_round.evaluations is None, "the same budget for every victim"


def test_the_scale_follows_the_data_where_none_is_asked_for(tmp_path: Path) -> None:
    assert scales.scale_for(None) == "quick"
    assert scales.scale_for(tmp_path) == "reduced"


@pytest.fixture
def experiment() -> Experiment:
    return scales.experiment_of("quick", "lenet")


def changed(experiment: Experiment, **values: object) -> Experiment:
    """The experiment with other values in its first federation's algorithm."""
    content = experiment.model_dump(mode="json")
    content["federations"][0]["algorithm"].update(values)
    return validated_part(Experiment, content)


def test_words_carry_the_experiments_figures(experiment: Experiment) -> None:
    training = scales.training(changed(experiment, rounds=17, learning_rate=0.025))
    assert "fedavg: 17 rounds of 1 epoch of batch size 10 at rate 0.025, 2 clients, disjoint-classes" in training
    assert "fedpaq: 6 rounds of 140 steps" in training
    assert "300 gradient evaluations a probe, 1 restart; 150 on the message of a real round" in scales.budget(
        experiment
    )
    assert "rate 0.03" in scales.budget(experiment)
    words = scales.victims(experiment)
    assert "6 images" in words
    assert "8 of the images" in words
    assert "of every round under fedavg" in words
    some = changed(experiment, rounds=9)
    assert "of rounds 0, 1, 2, 3, 4, 5 (from 0) under fedavg" in scales.victims(some)


def test_what_is_smaller_than_the_paper_is_said(experiment: Experiment) -> None:
    digits = load_dataset("mnist5k")
    said = " ".join(scales.departures(experiment, "lenet", digits))
    assert "mnist5k (2,800 training images, 10 classes) stands in for mnist" in said
    assert "300 gradient evaluations of the published 4,800" in said
    assert "rounds, not after every epoch" not in said
    assert "steps" not in said, "140 steps of 10 are a client's epoch"
    fewer = changed(experiment, rounds=9, steps=70)
    said = " ".join(scales.departures(fewer, "lenet", digits))
    assert "fedavg: a round is 70 steps, 0.5 of an epoch of a client; all rounds together are 4.5 epochs" in said
    assert "after 6 of 9 rounds, not after every epoch" in said
    assert "mobilenetv2-quarter, not mobilenetv2" in " ".join(
        scales.departures(scales.experiment_of("quick", "mobilenet"), "mobilenet", load_dataset("photos32"))
    )
    assert scales.setting(experiment, digits).startswith("lenet5 on mnist5k, 2,800 training and 600 test images")
