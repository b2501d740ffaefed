"""Key-Net against SciPy's sparse products and against the memory: LeNet-5 as Toeplitz matrices, MobileNetV2 by channel.

What is compared takes turns, once on one thread in CPU seconds, once on two by the wall clock. SciPy's side is the bare
products, on keys and matrices that are ready; ours is from weights to a keyed model and back, with every check. What
memory allows is measured by a large copy and by a plain copy of the same weights.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from benchmark.speed.keynet_cases import Case, all_cases
from benchmark.speed.keynet_report import KeyNetSpeed, Pass, Timing
from benchmark.speed.measure import Clock, Stage, Work, interleaved_medians, quiet
from federation.errors import UsageError

REPEATS = 15
COPY_BYTES = 1 << 28
"""Of the large copy, far over any cache."""

_LARGE = "large copy"
_CLOCKS: Mapping[int, tuple[str, Clock]] = {1: ("CPU time", time.process_time), 2: ("wall clock", time.perf_counter)}
"""By threads: CPU time leaves out what else the machine does, but cannot tell what a second thread saves."""


def measure_keynet(
    cases: Sequence[Case] | None = None,
    *,
    repeats: int = REPEATS,
    copy_bytes: int = COPY_BYTES,
    progress: Stage = quiet,
) -> KeyNetSpeed:
    """Time encrypting and decrypting, SciPy's products, and copies.

    Args:
        cases: what is timed; `all_cases()` if None.
        repeats: turns of everything.
        copy_bytes: of the copy that measures the memory bandwidth.
        progress: called with the stage, the steps done and all steps.

    Raises:
        UsageError: for fewer than one repeat.
        KeyholeError: where a result is wrong.
    """
    if repeats < 1:
        raise UsageError(f"{repeats} repeats have no median; there must be 1 or more")
    cases = all_cases() if cases is None else cases
    # ones, since untouched pages of zeros would all be one page, which the cache holds
    source, target = (torch.ones(copy_bytes, dtype=torch.uint8) for _ in range(2))
    passes = tuple(_pass(threads, source, target, cases, repeats, progress) for threads in _CLOCKS)
    return KeyNetSpeed(repeats, copy_bytes, tuple(case.facts for case in cases), passes)


def _pass(threads: int, source: Tensor, target: Tensor, cases: Sequence[Case], repeats: int, progress: Stage) -> Pass:
    """The large copy, then case after case: what is compared takes turns, and nothing else comes between."""
    clock_name, clock = _CLOCKS[threads]
    groups: list[Mapping[str, Work]] = [{_LARGE: lambda: target.copy_(source)}, *(case.works for case in cases)]
    stage, steps = f"time {threads} thread{'s' * (threads > 1)}", itertools.count(1)
    total = repeats * sum(map(len, groups))
    with _torch_threads(threads):
        large, *medians = (
            interleaved_medians(works, repeats, clock=clock, each=lambda: progress(stage, next(steps), total))
            for works in groups
        )
    bandwidth = 2 * source.nbytes / large[_LARGE]
    timings = tuple(
        Timing(
            case=case.facts.name,
            encrypt=found["encrypt"],
            decrypt=found["decrypt"],
            keying=found.get("keying"),
            products=found["products"],
            oracle=found.get("oracle"),
            copy=found["copy"],
            moving=case.facts.moved_bytes / bandwidth,
        )
        for case, found in zip(cases, medians, strict=True)
    )
    return Pass(threads, clock_name, bandwidth, timings)


@contextlib.contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
