"""Work on a long list, cut into pieces for threads, with its progress reported."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias, TypeVar

import torch

from federation.errors import UsageError

Progress: TypeAlias = Callable[[int, int], None]
"""Called in the caller's thread with how many items are done, and of how many."""

Item = TypeVar("Item")

PIECE = 16
"""Items that a thread takes at a time, at most: some 20 ms of encryption, far more than handing them over costs."""

FEWEST = 4
"""Items that are worth another thread."""


def default_threads() -> int:
    """The cores, but no more than torch may use in this process.

    So OMP_NUM_THREADS and `torch.set_num_threads` bound Paillier too: the harness's worker processes, one a core, set
    it to 1.
    """
    return min(os.cpu_count() or 1, torch.get_num_threads())


def in_pieces(
    work: Callable[[slice], list[Item]], count: int, threads: int | None = None, progress: Progress | None = None
) -> list[Item]:
    """The results of `work` on consecutive slices of range(count), one after the other.

    Args:
        work: does the items of one slice; runs in several threads at once and should release Python's lock.
        count: number of items.
        threads: at most so many at once; `default_threads()` if None. A few items stay in the caller's thread.
        progress: called after every slice.

    Raises:
        UsageError: for fewer than one thread.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"work cannot be spread over {threads} threads; there must be 1 or more")
    threads = max(1, min(threads or default_threads(), count // FEWEST))
    turns = -(-count // (threads * PIECE))
    piece = -(-count // (threads * turns)) if count else 1  # pieces of one size, so that all threads end together
    slices = [slice(start, min(start + piece, count)) for start in range(0, count, piece)]
    results: list[Item] = []
    for finished in _finished(work, slices, threads):
        results += finished
        if progress is not None:
            progress(len(results), count)
    return results


def _finished(work: Callable[[slice], list[Item]], slices: Sequence[slice], threads: int) -> Iterator[list[Item]]:
    """The slices' results in order."""
    if threads == 1:
        yield from map(work, slices)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="paillier")
    try:
        yield from pool.map(work, slices)
    finally:
        pool.shutdown(cancel_futures=True)  # an error or a keyboard interrupt does not wait for the rest
