"""Pieces of work on threads: all are done, errors arrive, a helper that is late is not waited for."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from defenses.keynet import pieces

MUCH = 1 << 30


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_every_piece_is_done_once(count: int) -> None:
    done: list[int] = []
    pieces.run([lambda number=number: done.append(number) for number in range(count)], MUCH)  # type: ignore[misc]
    assert sorted(done) == list(range(count))


@pytest.mark.usefixtures("three_threads")
def test_large_work_is_shared() -> None:
    together = threading.Barrier(2, timeout=10)  # which breaks unless two are in work at once

    def piece() -> None:
        together.wait()

    pieces.run([piece, piece], MUCH)


@pytest.mark.usefixtures("three_threads")
def test_small_work_and_one_thread_stay_with_the_caller() -> None:
    seen: set[str] = set()

    def piece() -> None:
        seen.add(threading.current_thread().name)

    pieces.run([piece] * 20, 1000)
    torch.set_num_threads(1)
    pieces.run([piece] * 20, MUCH)
    assert seen == {threading.current_thread().name}


@pytest.mark.usefixtures("three_threads")
def test_helpers_that_have_not_begun_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pieces.ThreadPoolExecutor(1)
    monkeypatch.setattr(pieces, "_pool", lambda: pool)
    release, done = threading.Event(), []
    busy = pool.submit(release.wait, 10)
    pieces.run([lambda: done.append(1)] * 5, MUCH)
    assert len(done) == 5
    assert not busy.done()
    release.set()
    pool.shutdown()
    assert len(done) == 5


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("by_helper", [False, True])
def test_errors_arrive(by_helper: bool) -> None:
    here, met = threading.current_thread(), threading.Barrier(2, timeout=10)

    def piece() -> None:
        met.wait()
        if (threading.current_thread() is not here) == by_helper:
            raise ValueError("from a piece")

    with pytest.raises(ValueError, match="from a piece"):
        pieces.run([piece, piece], MUCH)


@pytest.mark.slow
def test_a_forked_process_has_threads_of_its_own() -> None:
    """In a process of its own, since this one may hold locks that a fork would keep."""
    script = """
import os, threading, torch
from defenses.keynet import pieces
torch.set_num_threads(2)
def shared():
    met = threading.Barrier(2, timeout=10)
    pieces.run([met.wait, met.wait], 1 << 30)
shared()
child = os.fork()
if child == 0:
    shared()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
