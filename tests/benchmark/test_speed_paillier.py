"""The speed comparisons: what they time, that they check what they time, and that their figures fit together."""

from __future__ import annotations

import itertools
import json
import random

import pytest
from phe import util as phe_util
from torch import nn

import benchmark.speed.paillier as speed
from benchmark.speed.measure import interleaved_medians, machine_line, seconds_as_text
from benchmark.speed.paillier import measure_paillier
from benchmark.speed.paillier_round import measure_round, mobilenet_layout
from defenses.paillier.client_keys import ClientKeys
from defenses.paillier.keys import generate_keypair
from federation.errors import KeyholeError, UsageError
from federation.weights import layout_of

KEYS = ClientKeys(generate_keypair(512, random.Random(7).randbytes, allow_small=True), bytes(32))
LAYOUT = layout_of(nn.Sequential(nn.Linear(9, 7), nn.BatchNorm1d(7)))


def test_cases_take_turns_and_the_median_counts() -> None:
    turns: list[str] = []
    ticks = itertools.count()
    # every reading of this clock is one second later, and the third turn of "b" takes ten more
    extra = {"seconds": 0.0}

    def b() -> None:
        turns.append("b")
        if turns.count("b") == 3:
            extra["seconds"] += 10

    steps: list[int] = []
    found = interleaved_medians(
        {"a": lambda: turns.append("a"), "b": b},
        3,
        clock=lambda: next(ticks) + extra["seconds"],
        each=lambda: steps.append(1),
    )
    assert turns == ["a", "b"] * 4  # one turn more than is counted
    assert found == {"a": 1.0, "b": 1.0}
    assert len(steps) == 6


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.5e-6, "2.5 us"), (0.0123, "12.3 ms"), (1.5, "1.5 s"), (90, "90 s"), (240, "4 min")]
)
def test_seconds_are_readable(seconds: float, text: str) -> None:
    assert seconds_as_text(seconds) == text


def test_a_small_comparison_is_complete() -> None:
    steps: list[tuple[str, int, int]] = []
    found = measure_paillier(
        512, 100, repeats=1, phe_values=2, allow_small=True, progress=lambda *step: steps.append(step)
    )
    assert (found.key_bits, found.values, found.phe_values) == (512, 100, 2)
    assert found.ciphertexts == 7  # 16 slots of 31 bits, one of them the tag
    assert found.bytes_per_value == 128 / 15
    assert [operation.name for operation in found.operations] == [
        "encrypt, public key",
        "encrypt, key owner",
        "add",
        "decrypt",
    ]
    content = json.loads(json.dumps(found.as_json()))
    for operation in content["operations"]:
        assert operation["ratio_per_value"] == operation["phe_per_value"] / operation["ours_per_value"]
        assert operation["ratio_per_ciphertext"] == operation["phe_per_ciphertext"] / operation["ours_per_ciphertext"]
    assert {spread["name"] for spread in content["spreads"]} == {"encrypt, public key", "encrypt, key owner", "decrypt"}
    assert set(found.set_up) >= {"generate key", "comb, public key", "combs, key owner"}
    assert found.machine["cpu"] in machine_line(found.machine)
    assert [(stage, done, total) for stage, done, total in steps if done == total] == [
        ("time one thread", 13, 13),
        ("time two threads", 6, 6),
    ]
    for table in found.tables():
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_the_comparison_refuses_to_be_unfair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phe_util, "HAVE_GMP", False)
    with pytest.raises(KeyholeError, match="unfair"):
        measure_paillier(512, 100, allow_small=True)


def test_wrong_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "add", lambda public_key, columns: next(iter(columns)))
    with pytest.raises(KeyholeError, match="not the encrypted sum"):
        measure_paillier(512, 100, allow_small=True)


@pytest.mark.parametrize(("key_bits", "values"), [(2048, 0), (1024, 10), (2050, 10)])
def test_what_cannot_be_timed_is_refused(key_bits: int, values: int) -> None:
    with pytest.raises(UsageError):
        measure_paillier(key_bits, values)


def test_a_small_round_is_complete() -> None:
    steps: list[tuple[str, int, int]] = []
    found = measure_round(
        512,
        layout=LAYOUT,
        clients=3,
        threads=1,
        client_keys=KEYS,
        progress=lambda *step: steps.append(step),
    )
    assert found.values == 9 * 7 + 7 + 4 * 7
    assert found.error <= found.stated_error
    assert list(found.seconds) == [
        "agree bounds",
        "encrypt, first client (with set-up)",
        "encrypt, 2 other clients",
        "add up",
        "decrypt and check, one client",
    ]
    assert found.upload_bytes > 7 * 128
    assert found.peak_memory > 0
    assert [step for step in steps if step[0] == "server adds"] == [("server adds", done, 3) for done in (1, 2, 3)]
    assert ("client-2 at work", 7, 7) in steps
    assert json.loads(json.dumps(found.as_json()))["total_seconds"] == pytest.approx(sum(found.seconds.values()))
    assert "98 values and 3 clients" in found.tables()[0].title


def test_the_round_has_the_size_of_mobilenet() -> None:
    sizes = [spec.size for spec in mobilenet_layout() if spec.kind == "parameter"]
    assert sum(sizes) == 2_236_682
