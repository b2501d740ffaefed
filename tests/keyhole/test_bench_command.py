"""`keyhole bench` from the outside: tables for people, JSON for programs, one clear line for what cannot be timed."""

from __future__ import annotations

import functools
import json
import random

import pytest
from torch import nn
from typer.testing import CliRunner, Result

from benchmark.speed.keynet import measure_keynet
from benchmark.speed.keynet_cases import channel_case, toeplitz_case
from benchmark.speed.paillier import measure_paillier
from benchmark.speed.paillier_round import measure_round
from defenses.paillier.client_keys import ClientKeys
from defenses.paillier.keys import generate_keypair
from federation.models import build_model
from federation.network import Network
from federation.weights import layout_of
from keyhole.commands import bench
from keyhole.main import app


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


@pytest.fixture
def small_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and models that protect nothing and take no time."""
    keys = ClientKeys(generate_keypair(512, random.Random(7).randbytes, allow_small=True), bytes(32))
    monkeypatch.setattr(
        bench, "measure_paillier", functools.partial(measure_paillier, repeats=1, phe_values=2, allow_small=True)
    )
    monkeypatch.setattr(
        bench,
        "measure_round",
        functools.partial(measure_round, layout=layout_of(nn.Linear(9, 7)), clients=3, client_keys=keys),
    )


@pytest.mark.usefixtures("small_work")
def test_the_comparison_is_printed_as_tables() -> None:
    result = invoke("paillier", "--key-bits", 512, "--values", 60)
    assert result.exit_code == 0, result.output
    for expected in ("512-bit key", "encrypt, public key", "ratio packed", "2 threads", "combs, key owner", "gmpy2 "):
        assert expected in result.stdout
    assert "60 values in 4 ciphertexts" in result.stdout
    assert "time one thread: 13 jobs" in result.stdout


@pytest.mark.usefixtures("small_work")
def test_json_is_all_that_is_printed() -> None:
    result = invoke("paillier", "--key-bits", 512, "--values", 60, "--json")
    found = json.loads(result.stdout)
    assert (found["key_bits"], found["values"]) == (512, 60)
    assert [operation["name"] for operation in found["operations"]][-1] == "decrypt"
    assert found["machine"]["versions"]["phe"]


@pytest.mark.usefixtures("small_work")
def test_a_whole_round_is_played() -> None:
    result = invoke("paillier", "--key-bits", 512, "--round", "--threads", 1)
    assert result.exit_code == 0, result.output
    for expected in ("A round of 70 values and 3 clients, 512-bit key, 1 threads", "add up", "peak memory"):
        assert expected in result.stdout
    found = json.loads(invoke("paillier", "--key-bits", 512, "--round", "--json").stdout)
    assert found["values"] == 70


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(("--key-bits", 1024), "2048 or more"), (("--values", 0), "1 or more"), (("--key-bits", 2050), "multiple of 16")],
)
def test_what_cannot_be_timed_is_one_line(arguments: tuple[object, ...], reason: str) -> None:
    result = invoke("paillier", *arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("keyhole: ")
    assert reason in line


@pytest.fixture
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest LeNet-5 in both modes."""
    network = Network(lambda: build_model("lenet5", (1, 12, 12), 10, seed=0), (1, 12, 12), 10)
    cases = [toeplitz_case("small", network, "gains"), channel_case("small", network, "permutations")]
    monkeypatch.setattr(bench, "measure_keynet", functools.partial(measure_keynet, cases, copy_bytes=1 << 12))


@pytest.mark.usefixtures("small_networks")
def test_key_net_is_compared_in_tables() -> None:
    result = invoke("keynet", "--repeats", 1)
    assert result.exit_code == 0, result.output
    for expected in ("small, keynet-toeplitz, gains", "SparseKeying", "plain copy", "cond(A)", "2 threads", "scipy "):
        assert expected in result.stdout
    assert "medians of 1 interleaved repeats" in result.stdout


@pytest.mark.usefixtures("small_networks")
def test_key_net_as_json_is_all_that_is_printed() -> None:
    found = json.loads(invoke("keynet", "--repeats", 2, "--json").stdout)
    assert found["repeats"] == 2
    assert [one["threads"] for one in found["passes"]] == [1, 2]
    assert found["cases"][0]["wire_bytes"] > 4 * found["cases"][0]["entries"]


def test_key_net_without_repeats_is_one_line() -> None:
    result = invoke("keynet", "--repeats", 0)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("keyhole: ")
    assert "1 or more" in line


def test_the_group_names_what_can_be_timed() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    assert "paillier" in result.stdout
    assert "keynet" in result.stdout
