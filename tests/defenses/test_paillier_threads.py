"""Work in pieces: the same results on any number of threads, progress that adds up, errors that arrive."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch
from gmpy2 import mpz

from defenses.paillier.arithmetic import Decryptor, OwnerEncryptor, PublicEncryptor
from defenses.paillier.keys import generate_keypair
from defenses.paillier.threads import FEWEST, PIECE, default_threads, in_pieces
from federation.errors import MalformedMessage, UsageError

KEY = generate_keypair(512, random.Random(7).randbytes, allow_small=True)


@pytest.mark.parametrize("count", [0, 1, FEWEST, 2 * FEWEST, PIECE + 1, 5 * PIECE])
@pytest.mark.parametrize("threads", [None, 1, 2, 7])
def test_results_are_in_order_and_complete(count: int, threads: int | None) -> None:
    numbers = list(range(count))
    assert in_pieces(lambda piece: [n * n for n in numbers[piece]], count, threads) == [n * n for n in numbers]


def test_long_work_is_spread_and_short_work_is_not() -> None:
    def workers(count: int, threads: int) -> set[str]:
        barrier = threading.Barrier(threads, timeout=10) if count > FEWEST else None

        def work(piece: slice) -> list[str]:
            if barrier is not None and piece.start < threads * PIECE:
                barrier.wait()  # so many pieces are in work at once
            return [threading.current_thread().name] * (piece.stop - piece.start)

        return set(in_pieces(work, count, threads))

    assert len(workers(6 * PIECE, 3)) == 3
    assert workers(FEWEST, 3) == {threading.current_thread().name}
    assert workers(6 * PIECE, 1) == {threading.current_thread().name}


@pytest.mark.parametrize("threads", [1, 3])
def test_progress_adds_up_in_the_callers_thread(threads: int) -> None:
    calls: list[tuple[int, int]] = []
    here = threading.current_thread()

    def progress(done: int, total: int) -> None:
        assert threading.current_thread() is here
        calls.append((done, total))

    in_pieces(lambda piece: [0] * (piece.stop - piece.start), 3 * PIECE + 1, threads, progress)
    assert calls[-1] == (49, 49)
    steps = np.diff([0, *(done for done, _ in calls)])
    assert {total for _, total in calls} == {49}
    assert 4 <= len(steps) <= 6
    assert 0 < steps.min() <= steps.max() <= PIECE


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_in_a_piece_arrives(threads: int) -> None:
    def work(piece: slice) -> list[int]:
        if piece.start <= PIECE < piece.stop:
            raise MalformedMessage("of item 16")
        return [0] * (piece.stop - piece.start)

    with pytest.raises(MalformedMessage, match="of item 16"):
        in_pieces(work, 10 * PIECE, threads)


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_are_refused(threads: int) -> None:
    with pytest.raises(UsageError, match="1 or more"):
        in_pieces(lambda piece: [], 10, threads)


def test_torch_bounds_the_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert default_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["public", "owner"])
def test_ciphertexts_do_not_depend_on_the_threads(kind: str) -> None:
    plaintexts = [mpz(value) for value in range(-20, 21)]
    found = []
    for threads in (1, 2, 3):
        stream = random.Random(3).randbytes
        encryptor = OwnerEncryptor(KEY, stream) if kind == "owner" else PublicEncryptor(KEY.public_key, stream)
        found.append(encryptor.encrypt(plaintexts, threads=threads))
    assert found[0] == found[1] == found[2]
    reports: list[tuple[int, int]] = []
    decrypted = Decryptor(KEY).decrypt(found[0], threads=2, progress=lambda done, total: reports.append((done, total)))
    assert decrypted == plaintexts
    assert reports[-1] == (41, 41)
