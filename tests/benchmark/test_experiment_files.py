"""Experiments as files: those that come with Keyhole, one's own, and the one line for what cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmark.experiment import Experiment, validated
from benchmark.experiment_files import embedded_experiments, load_experiment
from federation.errors import UsageError

Tiny = Callable[..., Experiment]
Content = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("name", embedded_experiments())
def test_embedded_experiments_load_and_survive_their_own_dump(name: str) -> None:
    experiment = load_experiment(name)
    assert experiment.name == name
    assert validated(experiment.model_dump(mode="json"), name) == experiment


def test_a_file_loads_like_its_content(tiny_content: Content, tiny_experiment: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tiny_content()))
    assert load_experiment(str(path)) == tiny_experiment()


@pytest.mark.parametrize(
    ("content", "part"),
    [(b"name: [tiny", "not YAML"), (b"\xff\xfe", "not a readable experiment"), (b"", "must be keys with values")],
    ids=["syntax", "encoding", "empty"],
)
def test_a_corrupt_file_is_one_line_that_names_it(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_experiment(str(path))
    assert str(caught.value).startswith(f"{path}: {part}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_and_a_name_that_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing.yaml: not a readable experiment"):
        load_experiment(str(tmp_path / "missing.yaml"))
    with pytest.raises(UsageError, match=r"no experiment is called 'quik'.*quick"):
        load_experiment("quik")


EMBEDDED_DATA = ("mnist5k", "photos32")
QUESTIONS = ("oblivious", "adaptive", "batch", "local-steps", "training-stage")


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_is_asked_of_the_real_sets_as_of_embedded_data(name: str) -> None:
    small, full = load_experiment(name), load_experiment(f"{name}-full")
    assert all(federation.task.startswith(EMBEDDED_DATA) for federation in small.federations)
    assert not any(federation.task.startswith(EMBEDDED_DATA) for federation in full.federations)
    assert set(small.adversaries) <= set(full.adversaries)
    assert {attack.name for attack in small.attacks} <= {attack.name for attack in full.attacks}
    assert {regime.label for regime in small.victims.regimes} <= {regime.label for regime in full.victims.regimes}
    defenses = [defense for federation in full.federations for defense in federation.defenses]
    assert all(defense in defenses for federation in small.federations for defense in federation.defenses)


@pytest.mark.parametrize("name", ["batch", "batch-full"])
def test_batches_of_every_size_are_of_the_same_images(name: str) -> None:
    probes = load_experiment(name).victims.probes
    assert [probe.batch for probe in probes] == [1, 2, 4, 8]
    assert len({probe.count * probe.batch for probe in probes}) == 1


@pytest.mark.parametrize(("name", "steps"), [("local-steps", [1, 2, 4]), ("local-steps-full", [1, 2, 4, 8])])
def test_local_steps_are_as_many_as_they_say(name: str, steps: list[int]) -> None:
    probes = load_experiment(name).victims.probes
    assert [probe.local.step_count(probe.batch) for probe in probes] == steps


@pytest.mark.parametrize("name", ["training-stage", "training-stage-full"])
def test_stages_are_before_early_and_last(name: str) -> None:
    for federation in load_experiment(name).federations:
        first, early, *_, last = federation.snapshot_rounds
        assert (first, early, last) == (0, 1, federation.algorithm.rounds - 1)
