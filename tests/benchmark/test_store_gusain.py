"""The stored result of the Gusain reproduction: written, read back, and refused where it is not whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmark.store import Manifest
from benchmark.store.documents import FILE, Deviation
from benchmark.store.gusain import (
    EncryptedExample,
    EncryptedVictim,
    GusainResult,
    InferenceRefusal,
    InferenceRow,
    NetworkResult,
    Reader,
    TableEntry,
    read_gusain,
    write_gusain,
)
from federation.errors import DataError


def sample() -> GusainResult:
    """A small result of one network; it names pictures and a run that are not there."""
    inference = InferenceRow(
        keys="permutations",
        images=200,
        plain_accuracy=0.97,
        encrypted_accuracy=0.97,
        agreement=1.0,
        largest_difference=1e-6,
        largest_score=20.0,
        wrong_key_agreement=0.1,
        wrong_key_difference=30.0,
        plain_entries=1000,
        keyed_entries=1000,
        seconds_plain=0.001,
        seconds_keyed=0.01,
    )
    lenet = NetworkResult(
        network="lenet",
        title="LeNet on MNIST",
        folder="lenet",
        task="mnist5k-lenet5",
        setting="LeNet-5 on mnist5k",
        departures=["5,000 digits in place of 70,000."],
        training="4 rounds of one epoch.",
        budget="cosine: 400 gradient evaluations.",
        victims="8 probes of one image.",
        inference=[inference],
        refusals=[InferenceRefusal("gains up to 2", "relu6: gains do not commute with it")],
        examples=[EncryptedExample("permutations", 3, 3, 3, 7, "inference/a.png", "inference/b.png")],
        encrypted_victims=[EncryptedVictim("permutations", "lenet/images/originals/c.png", "inference/d.png")],
    )
    return GusainResult(
        manifest=Manifest(
            name="gusain",
            created="2026-01-01T00:00:00+00:00",
            preset="",
            config={"scale": "quick"},
            versions={"python": "3.11"},
            git_commit="c" * 40,
            git_dirty=False,
            hardware={"cpu": "a processor", "cores": 2, "memory": 1},
            datasets={"mnist5k": "d" * 64},
            lpips_trunk=None,
        ),
        scale="quick",
        label="quick: embedded data",
        seeds=[0],
        entries=[
            TableEntry("lenet", "fedavg", False, 0.98, "plain"),
            TableEntry("lenet", "fedavg", True, 0.96, "keynet"),
            TableEntry("lenet", "fedpaq", False, 0.98, "qsgd"),
            TableEntry("lenet", "fedpaq", True, 0.96, "keynet-quantized"),
        ],
        readers=[Reader("collusion", "adaptive", "with the key", "The server and one client.")],
        networks=[lenet],
        deviations=[Deviation("what", "effect")],
        seconds=1.0,
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert write_gusain(tmp_path, sample()) == tmp_path / FILE
    result = read_gusain(tmp_path)
    assert result == sample()
    assert result.find("lenet") == result.networks[0]
    assert result.find("mobilenet") is None


def test_a_folder_without_a_result_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="keyhole reproduce gusain"):
        read_gusain(tmp_path)


def test_a_number_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="finite"):
        write_gusain(tmp_path, replace(sample(), seconds=float("nan")))
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["networks", 0, "network"], "resnet", "networks.0.network"),
        (["networks", 0, "examples", 0, "shown"], "../../secret.png", "outside the folder"),
        (["networks", 0, "encrypted_victims", 0, "original"], "/etc/passwd", "outside the folder"),
        (["networks", 0, "folder"], "..", "outside the folder"),
        (["networks", 0, "inference", 0, "agreement"], 1.5, r"in \[0, 1\]"),
        (["networks", 0, "inference", 0, "largest_score"], 1e999, "not finite"),
        (["entries", 0, "printed"], 98, r"in \[0, 1\]"),
        (["scale"], "huge", "scale"),
        (["manifest", "evaluator_version"], "0", "evaluator version 0"),
    ],
)
def test_a_result_that_cannot_be_is_one_clear_line(
    tmp_path: Path, path: list[str | int], value: object, message: str
) -> None:
    write_gusain(tmp_path, sample())
    content = json.loads((tmp_path / FILE).read_text())
    place = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        read_gusain(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    with pytest.raises(DataError, match="not a result of `keyhole reproduce gusain`"):
        read_gusain(tmp_path)
