"""Pieces of work for as many threads as PyTorch may use; compiled code leaves Python's lock free.

Numba's own thread pool is not used: it shares PyTorch's OpenMP, and changes how many threads (and so in which order of
summation) PyTorch works.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import torch

Piece: TypeAlias = Callable[[], None]

_WORTH = 1 << 17
"""Values to be moved that are worth another thread: some 100 microseconds, of which asking for it takes 10 to 20."""


def run(pieces: Iterable[Piece], size: int) -> None:
    """Do every piece, in any order; raises what a piece raises.

    The caller's thread and helpers each take the next piece. A helper that has not begun when none is left, because the
    machine is busy or the work was short, is not waited for.

    Args:
        pieces: best the largest first, for the threads to end together.
        size: how many values they move together.
    """
    left = deque(pieces)

    def work() -> None:
        while left:
            try:
                piece = left.popleft()
            except IndexError:  # another thread took the last one
                return
            piece()

    threads = min(torch.get_num_threads(), len(left), size // _WORTH)
    helpers = [_pool().submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        left.clear()
        failures = [helper.exception() for helper in helpers if not helper.cancel()]
    for failure in filter(None, failures):
        raise failure


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """Threads that stay: starting one costs more than most pieces."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="keynet")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not live on in a forked process
