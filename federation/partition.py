"""Division of the training images among clients.

Every function takes the labels (int64 [N]), the number of clients and a NumPy generator, and returns one sorted int64
tensor of indices for each client; no index goes to two clients and no client is left empty.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from federation.errors import UsageError
from federation.registry import Registry

PARTITIONS: Registry[Callable[..., list[Tensor]]] = Registry("partition")


def partition(
    kind: str, labels: Tensor, clients: int, *, generator: np.random.Generator, **options: Any
) -> list[Tensor]:
    """Divide by the registered `kind`: "iid", "disjoint-classes", "sizes" (option `sizes`) or "dirichlet" (`alpha`).

    Raises:
        UsageError: for an unknown kind, options that the kind does not take or lacks, or a division that is impossible.
    """
    divide = PARTITIONS.get(kind)
    if clients < 1:
        raise UsageError(f"{clients} clients cannot share data; there must be at least 1")
    if clients > len(labels):
        raise UsageError(f"{len(labels)} images cannot be shared among {clients} clients; take fewer clients")
    try:
        inspect.signature(divide).bind(labels, clients, generator=generator, **options)
    except TypeError as error:
        raise UsageError(f"the partition {kind!r} has unsuitable options: {error}") from error
    return divide(labels, clients, generator=generator, **options)


@PARTITIONS.register("iid")
def iid(labels: Tensor, clients: int, *, generator: np.random.Generator) -> list[Tensor]:
    """Deal all images out at random; sizes differ by at most 1."""
    return _as_tensors(np.array_split(generator.permutation(len(labels)), clients))


@PARTITIONS.register("disjoint-classes")
def disjoint_classes(labels: Tensor, clients: int, *, generator: np.random.Generator) -> list[Tensor]:
    """Give every client classes of its own, drawn at random, with all their images; class counts differ by at most 1.

    Raises:
        UsageError: where there are more clients than classes among the labels.
    """
    values = labels.numpy()
    classes = np.unique(values)
    if clients > len(classes):
        raise UsageError(
            f"{len(classes)} classes cannot be disjoint among {clients} clients; take at most {len(classes)}"
        )
    shares = np.array_split(generator.permutation(classes), clients)
    return _as_tensors([np.flatnonzero(np.isin(values, share)) for share in shares])


@PARTITIONS.register("sizes")
def given_sizes(labels: Tensor, clients: int, *, generator: np.random.Generator, sizes: Sequence[int]) -> list[Tensor]:
    """Give client k `sizes[k]` images at random; what is left over goes to nobody.

    Raises:
        UsageError: where the sizes are not one a client, not all at least 1, or more in sum than there are images.
    """
    if len(sizes) != clients:
        raise UsageError(f"{len(sizes)} sizes were given for {clients} clients; give one size a client")
    if min(sizes) < 1:
        raise UsageError(f"a client cannot have {min(sizes)} images; every size must be at least 1")
    if sum(sizes) > len(labels):
        raise UsageError(
            f"the sizes sum to {sum(sizes)} but there are {len(labels)} training images; take smaller sizes"
        )
    dealt = generator.permutation(len(labels))[: sum(sizes)]
    return _as_tensors(np.split(dealt, np.cumsum(sizes)[:-1]))


@PARTITIONS.register("dirichlet")
def dirichlet(labels: Tensor, clients: int, *, generator: np.random.Generator, alpha: float) -> list[Tensor]:
    """Divide each class among the clients in proportions drawn from Dirichlet(alpha, ..., alpha) (Hsu et al. 2019).

    A small alpha gives each client few classes, a large one approaches `iid`. A client that the draw leaves without any
    image is given one of the client that has most.

    Raises:
        UsageError: where alpha is not a number above 0.
    """
    if not (0 < alpha < float("inf")):
        raise UsageError(f"the Dirichlet parameter alpha must be a number above 0, not {alpha}")
    values = labels.numpy()
    held: list[list[NDArray[np.int64]]] = [[] for _ in range(clients)]
    for label in np.unique(values):
        members = generator.permutation(np.flatnonzero(values == label))
        proportions = generator.dirichlet(np.full(clients, alpha))
        bounds = np.rint(np.cumsum(proportions)[:-1] * len(members)).astype(np.int64)
        for client, share in enumerate(np.split(members, bounds)):
            held[client].append(share)
    shares = [np.concatenate(parts) for parts in held]
    for client in range(clients):
        if not len(shares[client]):
            richest = max(range(clients), key=lambda other: len(shares[other]))
            shares[client], shares[richest] = shares[richest][-1:], shares[richest][:-1]
    return _as_tensors(shares)


def _as_tensors(shares: Sequence[NDArray[np.int64]]) -> list[Tensor]:
    return [torch.from_numpy(np.sort(share).astype(np.int64)) for share in shares]
