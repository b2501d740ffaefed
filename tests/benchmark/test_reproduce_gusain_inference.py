"""Encrypted inference in the Gusain reproduction, on the trained model of a tiny run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmark.harness import training_plans
from benchmark.metrics.image_files import read_image
from benchmark.reproduce.gusain import inference
from benchmark.reproduce.gusain.inference import CHOICES, COUNT, InferenceFindings, last_weights, measure, measure_once
from benchmark.store import correct_bits
from benchmark.store.gusain import InferenceRefusal, InferenceRow
from benchmark.training_plan import TrainingPlan
from benchmark.trainings import run_training
from benchmark.workspace import Workspace
from federation.errors import DataError
from federation.secret_root import SecretRoot

PERMUTATIONS, GAINS, MIXED = CHOICES


@pytest.fixture(scope="module")
def plan(tiny_run: Any) -> TrainingPlan:
    """A finished training in clear, of logistic regression."""
    plans = training_plans(tiny_run.experiment, tiny_run.workspace)
    return next(plan for plan in plans if plan.defense_spec.name == "plain")


@pytest.fixture(scope="module")
def attacked(tiny_run: Any) -> tuple[str, ...]:
    names = sorted(set(tiny_run.tables.images["original"]))[:2]
    return tuple(f"{tiny_run.tables.directory.name}/{name}" for name in names)


@pytest.fixture(scope="module")
def out(tiny_run: Any) -> Path:
    """The folder that holds the run, as the reproduction's does."""
    return tiny_run.tables.directory.parent


@pytest.fixture(scope="module")
def found(plan: TrainingPlan, out: Path, attacked: tuple[str, ...]) -> dict[str, InferenceFindings]:
    return {choice.slug: measure(plan, choice, out, attacked) for choice in CHOICES}


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.slug)
def test_keyed_images_get_the_plain_class_and_other_keys_do_not(
    choice: Any, found: dict[str, InferenceFindings]
) -> None:
    row = found[choice.slug].outcome
    assert isinstance(row, InferenceRow)
    assert (row.keys, row.images) == (choice.words, COUNT)
    assert row.agreement == 1
    assert row.encrypted_accuracy == row.plain_accuracy
    assert row.largest_difference < 1e-5 * row.largest_score, "float32 is good to that"
    assert row.wrong_key_agreement < 0.5
    assert row.wrong_key_difference > 1e-2 * row.largest_score
    assert row.keyed_entries >= row.plain_entries > 10 * 14 * 14


def test_the_plain_network_is_the_one_that_the_harness_trained(
    tiny_run: Any, found: dict[str, InferenceFindings]
) -> None:
    trainings = tiny_run.tables.trainings
    (training,) = trainings[(trainings["defense"] == "plain") & (trainings["reference"] == "")].itertuples()
    expected = correct_bits(training.correct, training.test_count)[:COUNT].mean()
    row = found["permutations"].outcome
    assert isinstance(row, InferenceRow)
    assert row.plain_accuracy == pytest.approx(expected)


def test_examples_are_the_first_of_each_class(
    plan: TrainingPlan, out: Path, found: dict[str, InferenceFindings]
) -> None:
    test = plan.workspace.dataset(plan.task).test
    examples = found["permutations"].examples
    assert [one.label for one in examples] == list(range(10))
    for one in examples:
        original, shown = read_image(out / one.original), read_image(out / one.shown)
        first = int((test.labels == one.label).nonzero()[0, 0])
        assert torch.equal(original, test.images[first])
        assert one.plain_class == one.encrypted_class
        assert not torch.equal(original, shown)
        # a permutation keeps the values; the picture is stretched over their range
        values = np.sort(original.numpy().astype(float).ravel())
        stretched = (values - values[0]) / (values[-1] - values[0]) * 255
        np.testing.assert_allclose(np.sort(shown.numpy().ravel()), stretched, atol=1)


def test_attacked_images_are_keyed_beside_their_originals(
    out: Path, attacked: tuple[str, ...], found: dict[str, InferenceFindings]
) -> None:
    for findings in found.values():
        assert [one.original for one in findings.victims] == list(attacked)
        for one in findings.victims:
            assert read_image(out / one.shown).shape == read_image(out / one.original).shape
    assert len({one.shown for findings in found.values() for one in findings.victims}) == len(CHOICES) * len(attacked)


def test_keys_derive_from_the_secret_root_alone(plan: TrainingPlan, found: dict[str, InferenceFindings]) -> None:
    other = replace(plan, workspace=replace(plan.workspace, root_file=plan.workspace.root_file.with_name("other.root")))
    SecretRoot(b"o" * 32).save(other.workspace.root_file)
    rows = []
    for one in (plan, other):
        model = plan.network.build().eval()
        model.load_state_dict(last_weights(plan))
        subject = inference._Subject.under(one, PERMUTATIONS, model)
        rows.append(subject.keys.to_bytes())
    assert rows[0] != rows[1]


def test_what_was_measured_is_read_again(
    plan: TrainingPlan, out: Path, attacked: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measure_once(plan, PERMUTATIONS, out, attacked)
    (file,) = (plan.workspace.artefacts / "inference").glob("*.json")
    with monkeypatch.context() as patch:
        patch.setattr(inference, "measure", lambda *_: pytest.fail("measured again"))
        assert measure_once(plan, PERMUTATIONS, out, attacked) == first
    (out / first.examples[0].shown).unlink()
    measure_once(plan, PERMUTATIONS, out, attacked)
    assert (out / first.examples[0].shown).is_file(), "a picture that is gone is drawn again"
    file.write_text("{")
    with pytest.raises(DataError, match=file.name):
        measure_once(plan, PERMUTATIONS, out, attacked)


def test_keys_that_an_activation_does_not_pass_are_refused_in_words(
    tmp_path: Path, tiny_experiment: Any, small_digits: None
) -> None:
    experiment = tiny_experiment(
        {
            "federations.0.task": "small-digits-lenet-zhu",
            "federations.0.defenses": ["plain"],
            "federations.0.algorithm.learning_rate": 0.01,
            "victims.probe": ...,
        }
    )
    workspace = Workspace(tmp_path / "run", tmp_path / "run.root")
    SecretRoot(b"r" * 32).save(workspace.root_file)
    (plan,) = training_plans(experiment, workspace)
    run_training(plan)
    refused = measure(plan, GAINS, tmp_path, ())
    assert isinstance(refused.outcome, InferenceRefusal)
    assert refused.outcome.keys == GAINS.words
    assert "sigmoid" in refused.outcome.reason
    assert "\n" not in refused.outcome.reason
    assert not refused.pictures
    passed = measure(plan, MIXED, tmp_path, ()).outcome
    assert isinstance(passed, InferenceRow), "mixed pixels and offsets meet a convolution only"
    assert passed.agreement == 1
