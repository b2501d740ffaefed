"""The stored result of the Gusain reproduction: written, read back, and refused where it is not whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from gusain_result import made_up

from benchmark.store.documents import FILE
from benchmark.store.gusain import read_gusain, write_gusain
from federation.errors import DataError


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert write_gusain(tmp_path, made_up()) == tmp_path / FILE
    result = read_gusain(tmp_path)
    assert result == made_up()
    assert result.find("lenet") == result.networks[0]
    assert result.find("mobilenet") is None


def test_a_folder_without_a_result_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="keyhole reproduce gusain"):
        read_gusain(tmp_path)


def test_a_number_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="finite"):
        write_gusain(tmp_path, replace(made_up(), seconds=float("nan")))
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
    write_gusain(tmp_path, made_up())
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
