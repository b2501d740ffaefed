"""Runs jobs on this machine: worker processes with one thread each, so that results do not depend on how many."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized
from typing import Any, Self, TypeVar

import torch

from federation.device import CPU, gpus_of
from federation.errors import KeyholeError

Result = TypeVar("Result")


class LocalEngine:
    """A pool of worker processes, started as jobs come and kept until the `with` block ends.

    They are spawned, never forked: CUDA cannot be used in a process that was forked.

    Args:
        workers: how many; by default one a core, or one a GPU where jobs compute on these.
        device: what jobs compute on. Under "cuda" the workers take the GPUs in turn.
    """

    def __init__(self, workers: int | None = None, device: str = CPU) -> None:
        self._gpus = gpus_of(device)
        self.workers = workers or len(self._gpus) or os.cpu_count() or 1

    def __enter__(self) -> Self:
        self._others = set(multiprocessing.active_children())
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(
            self.workers,
            mp_context=context,
            initializer=_prepare_worker,
            initargs=(self._gpus, context.Value("i", 0)),
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, jobs: Sequence[tuple[Callable[..., Result], tuple[Any, ...]]]) -> Iterator[tuple[int, Result]]:
        """Yield (index of the job, its result) as jobs end.

        Raises:
            KeyholeError: where a worker process dies; and whatever a job raises. Jobs that have not begun are dropped.
        """
        try:
            futures: dict[Future[Result], int] = {
                self._pool.submit(function, *arguments): index for index, (function, arguments) in enumerate(jobs)
            }
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise KeyholeError(
                "a worker process died, most likely for lack of memory; finished work is kept, run again to go on "
                "(with fewer --workers)"
            ) from error
        except (KeyboardInterrupt, GeneratorExit):
            for process in set(multiprocessing.active_children()) - self._others:
                process.terminate()
            raise


def _prepare_worker(gpus: Sequence[int], started: Synchronized[int]) -> None:
    torch.set_num_threads(1)
    if gpus:
        _take_gpu(gpus, started)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt reaches the parent too, which ends its workers
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _take_gpu(gpus: Sequence[int], started: Synchronized[int]) -> None:
    """Make the next GPU in turn the current one of this process; `started` counts the workers that took one."""
    with started.get_lock():
        turn, started.value = started.value, started.value + 1
    torch.cuda.set_device(gpus[turn % len(gpus)])


def _end_with_parent(parent: int) -> None:
    """End this worker where its parent is gone: a killed run leaves nothing behind that computes on."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
