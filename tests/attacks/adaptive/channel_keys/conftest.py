"""What tests of channel keys begin with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import keyed_rounds
import pytest
import torch

from federation.weights import Weights


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits() -> keyed_rounds.Images:
    return keyed_rounds.mnist_digits()


@pytest.fixture(scope="session")
def play(digits: keyed_rounds.Images) -> Callable[..., keyed_rounds.Keyed]:
    """`keyed_rounds.play_rounds` on these digits."""
    return partial(keyed_rounds.play_rounds, digits)


@pytest.fixture(scope="session")
def tools() -> Any:
    """What tests build with."""
    return keyed_rounds


@pytest.fixture(scope="session")
def after_training() -> Callable[[str, int], Weights]:
    """Weights of a network after some steps of training."""
    return lru_cache(lambda name, steps: keyed_rounds.trained(keyed_rounds.network(name), steps))
