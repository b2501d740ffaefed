"""Named-tensor algebra: what a model's weights are made of, and how each kind of tensor is averaged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import torch
from torch import Tensor, nn

from federation.errors import MalformedMessage

Weights: TypeAlias = dict[str, Tensor]
"""A model's tensors by their state-dict names, in the order of its layout."""


class Kind(StrEnum):
    """What a tensor is, which decides how it is aggregated."""

    PARAMETER = "parameter"
    RUNNING_STATISTIC = "running statistic"
    COUNTER = "counter"


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a layout: its name, shape, dtype and kind."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: Kind

    @property
    def size(self) -> int:
        """The number of values."""
        return torch.Size(self.shape).numel()


Layout: TypeAlias = tuple[TensorSpec, ...]
"""The tensors of a model, in state-dict order: public, and the same for every party of a federation."""


def layout_of(model: nn.Module) -> Layout:
    """The layout of `model`: parameters, floating-point buffers (running statistics), integer buffers (counters)."""
    parameters = {name for name, _ in model.named_parameters()}

    def kind(name: str, tensor: Tensor) -> Kind:
        if name in parameters:
            return Kind.PARAMETER
        return Kind.RUNNING_STATISTIC if tensor.is_floating_point() else Kind.COUNTER

    return tuple(
        TensorSpec(name, tuple(tensor.shape), tensor.dtype, kind(name, tensor))
        for name, tensor in model.state_dict().items()
    )


def weights_of(model: nn.Module) -> Weights:
    """A detached copy of the model's tensors."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def floating(layout: Layout) -> list[TensorSpec]:
    """The tensors that are averaged: everything but counters."""
    return [spec for spec in layout if spec.kind is not Kind.COUNTER]


def counters(layout: Layout) -> list[TensorSpec]:
    """The integer tensors, of which an aggregate takes the largest."""
    return [spec for spec in layout if spec.kind is Kind.COUNTER]


def weighted_mean(layout: Layout, contributions: Sequence[Weights], shares: Sequence[float]) -> Weights:
    """FedAvg's aggregate (McMahan 2016, Algorithm 1): sum_k (n_k / n) w_k, counters by their maximum.

    Sums run in float64, so that the result does not depend on the order of the clients beyond float32 rounding.

    Raises:
        ValueError: where the shares do not sum to 1 or their number is not that of the contributions.
    """
    if len(contributions) != len(shares) or abs(sum(shares) - 1) > 1e-9:
        raise ValueError(f"{len(contributions)} contributions need as many shares that sum to 1, not {list(shares)}")

    def aggregate(spec: TensorSpec) -> Tensor:
        tensors = [contribution[spec.name] for contribution in contributions]
        if spec.kind is Kind.COUNTER:
            return torch.stack(tensors).amax(dim=0)
        total = sum(tensor.double() * share for tensor, share in zip(tensors, shares, strict=True))
        assert isinstance(total, Tensor), "there is at least one contribution"
        return total.to(spec.dtype)

    return {spec.name: aggregate(spec) for spec in layout}


def difference(after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Weights:
    """The tensor-wise difference `after - before`."""
    return {name: tensor - before[name] for name, tensor in after.items()}


def largest_difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest absolute difference between two sets of weights, over all tensors."""
    return max((float((one[name].double() - other[name].double()).abs().amax()) for name in one), default=0.0)


def flatten(weights: Mapping[str, Tensor], specs: Iterable[TensorSpec]) -> Tensor:
    """The values of `specs` one after the other, as one float64 vector."""
    parts = [weights[spec.name].double().flatten() for spec in specs]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def unflatten(values: Tensor, specs: Sequence[TensorSpec]) -> Weights:
    """The inverse of `flatten`: tensors of the dtype and shape that each spec states."""
    pieces = torch.split(values, [spec.size for spec in specs])
    return {spec.name: piece.reshape(spec.shape).to(spec.dtype) for spec, piece in zip(specs, pieces, strict=True)}


def check_layout(weights: Mapping[str, Tensor], layout: Iterable[TensorSpec], where: str) -> None:
    """Raise MalformedMessage unless `weights` has the tensors of `layout`: names, shapes, dtypes, finite values."""
    expected = {spec.name: spec for spec in layout}
    if weights.keys() != expected.keys():
        odd = sorted(weights.keys() ^ expected.keys())
        raise MalformedMessage(f"{where}: the tensors do not fit the agreed layout; missing or unknown: {odd[:3]}")
    for name, spec in expected.items():
        tensor = weights[name]
        if tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
            raise MalformedMessage(
                f"{where}: tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)}, agreed is {spec.dtype} {spec.shape}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise MalformedMessage(f"{where}: tensor {name!r} holds values that are not finite")
