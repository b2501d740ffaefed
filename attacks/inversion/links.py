"""What stands between a layer's output and the next layer's input: undone, and as a linear map around a point."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from attacks.inversion.chain import Operation, Pool


@dataclass(frozen=True)
class Link:
    """Activations and average pooling in a row, from a layer's output z to what the next layer reads.

    Attributes:
        operations: in order.
        shape: (C, H, W) of the layer's output.
    """

    operations: tuple[Operation, ...]
    shape: tuple[int, ...]

    @cached_property
    def result_shape(self) -> tuple[int, ...]:
        """(C, H, W) of what the next layer reads."""
        return tuple(self(torch.empty(1, *self.shape, device="meta")).shape[1:])

    @cached_property
    def mixes(self) -> bool:
        """Whether the output cannot be read back from the result: pools overlap, or average what an activation made."""
        kinds = [isinstance(operation, Pool) for operation in self.operations]
        late = any(pooled and not all(kinds[:place]) for place, pooled in enumerate(kinds))
        return late or any(_overlaps(operation) for operation in self.operations if isinstance(operation, Pool))

    def __call__(self, outputs: Tensor) -> Tensor:
        """What the next layer reads, of outputs [T, C, H, W]."""
        for operation in self.operations:
            outputs = operation.function(outputs)
        return outputs

    def undone(self, result: Tensor) -> Tensor:
        """Outputs [T, C, H, W] that give `result`; of values that were pooled all are taken as equal.

        Where nothing is mixed, it is exact as far as the result goes: pooled outputs are, single ones are not.
        """
        for operation in reversed(self.operations):
            if isinstance(operation, Pool):
                pooled = PoolMap(operation)
                result = pooled.adjoint(result) / pooled.adjoint(torch.ones_like(result)).clamp_min(1e-12)
            else:
                result = operation.inverse(result)
        return result

    def linearised(self, outputs: Tensor) -> Linearised:
        """The derivative at outputs [T, C, H, W]."""
        maps: list[SlopeMap | PoolMap] = []
        for operation in self.operations:
            maps.append(PoolMap(operation) if isinstance(operation, Pool) else SlopeMap(operation.slope(outputs)))
            outputs = operation.function(outputs)
        return Linearised(tuple(maps))


@dataclass(frozen=True)
class SlopeMap:
    """Multiplication by slopes [T, C, H, W]."""

    slopes: Tensor

    def forward(self, values: Tensor) -> Tensor:
        return values * self.slopes

    def adjoint(self, values: Tensor) -> Tensor:
        return values * self.slopes

    def select(self, trials: Tensor) -> SlopeMap:
        return SlopeMap(self.slopes[trials])


@dataclass(frozen=True)
class PoolMap:
    """Average pooling, the same for every trial."""

    pool: Pool

    def forward(self, values: Tensor) -> Tensor:
        return self.pool.function(values)

    def adjoint(self, values: Tensor) -> Tensor:
        pooled = values.new_zeros(len(values), *self.pool.shape, requires_grad=True)
        with torch.enable_grad():
            (back,) = torch.autograd.grad(self.pool.function(pooled), pooled, values)
        return back

    def select(self, trials: Tensor) -> PoolMap:
        return self


def _overlaps(pool: Pool) -> bool:
    """Whether a value is averaged into several results, so that results cannot be chosen one by one."""
    shape = pool.function(torch.empty(1, *pool.shape, device="meta")).shape
    wanted = torch.arange(math.prod(shape), dtype=torch.float64).sin().view(shape)
    back, places = PoolMap(pool).adjoint(wanted), PoolMap(pool).adjoint(torch.ones_like(wanted))
    return not torch.allclose(pool.function(back / places.clamp_min(1e-12)), wanted)


@dataclass(frozen=True)
class Linearised:
    """A link's derivative: a linear map and its adjoint, both of [T, C, H, W]."""

    maps: tuple[SlopeMap | PoolMap, ...]

    def forward(self, values: Tensor) -> Tensor:
        """The derivative times values."""
        for each in self.maps:
            values = each.forward(values)
        return values

    def adjoint(self, values: Tensor) -> Tensor:
        """The derivative's transpose times values: gradients of the result to gradients of the outputs."""
        for each in reversed(self.maps):
            values = each.adjoint(values)
        return values

    def select(self, trials: Tensor) -> Linearised:
        """Of the trials with the given indices."""
        return Linearised(tuple(each.select(trials) for each in self.maps))
