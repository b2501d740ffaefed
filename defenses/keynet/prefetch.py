"""One instruction that Numba has no function for: asking the memory for what is read soon."""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_READ, _SECOND_LEVEL, _DATA = 0, 2, 1
"""LLVM's numbers for `llvm.prefetch`: to be read, kept from the second level of the cache on, no instructions."""


@intrinsic
def prefetch(typing_context: Any, array: Any, row: Any, column: Any) -> Any:
    """`prefetch(array, row, column)` in compiled code: bring the line of array[row, column] nearer; wait for nothing."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind, *kinds = signature.args
        data = context.make_array(kind)(context, builder, arguments[0])
        place = [context.cast(builder, *pair, types.intp) for pair in zip(arguments[1:], kinds, strict=True)]
        pointer = cgutils.get_item_pointer(context, builder, kind, data, place)
        number, address = ir.IntType(32), ir.IntType(8).as_pointer()
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [address], ir.FunctionType(ir.VoidType(), [address, number, number, number])
        )
        hints = (number(hint) for hint in (_READ, _SECOND_LEVEL, _DATA))
        builder.call(function, [builder.bitcast(pointer, address), *hints])
        return context.get_dummy_value()

    return types.void(array, row, column), generate
