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
