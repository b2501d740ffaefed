"""Where training and attacks compute: on the processor or on CUDA, with the same rules of arithmetic on both."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

from federation.errors import KeyholeError, UsageError

CPU = "cpu"


def find_device(name: str) -> str:
    """The device that a person asks for, as torch calls it.

    Args:
        name: "cpu"; "cuda", which is every GPU of the machine (a process computes on its current one); "cuda:N", that
            GPU alone; or "auto": "cuda" where there is one, else "cpu".

    Raises:
        UsageError: for anything else, or a GPU that is not there.
    """
    count = torch.cuda.device_count()
    if name == "auto":
        return "cuda" if count else CPU
    here = [CPU, *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if name in here:
        return name
    what = "is not here" if re.fullmatch(r"cuda(:\d+)?", name) else "is none of auto, cpu, cuda and cuda:N"
    raise UsageError(f"device {name!r} {what}; devices of this machine: {', '.join(here)}")


def kind_of(device: str) -> str:
    """The device without its number, "cpu" or "cuda": what of a device decides a result."""
    return torch.device(device).type


def gpus_of(device: str) -> list[int]:
    """The numbers of the GPUs that `device` stands for; none for the processor."""
    found = torch.device(device)
    if found.type != "cuda":
        return []
    return list(range(torch.cuda.device_count())) if found.index is None else [found.index]


@contextlib.contextmanager
def computing_on(device: str) -> Iterator[torch.device]:
    """A block that computes on `device`, in full float32 and by the same algorithms every time.

    CUDA would otherwise round the inputs of convolutions to TF32 (10 bits of mantissa, which an inversion of gradients
    feels) and choose among algorithms that sum in an order of their own.

    Raises:
        KeyholeError: where the GPU runs out of memory.
    """
    where = torch.device(device)
    if where.type != "cuda":
        yield where
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        try:
            yield where
        except torch.OutOfMemoryError as error:
            raise KeyholeError(
                f"{device}: {str(error).partition(' GPU ')[0].rstrip('.')}; finished work is kept, run again to go on "
                "with fewer --workers, or with --device cpu"
            ) from error
