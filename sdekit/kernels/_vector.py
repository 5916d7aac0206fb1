"""Weighted sums over memory as explicit vector instructions, for numba kernels.

The output of a step may be one of its inputs, which a compiler cannot know to be harmless: it checks, and
takes the scalar loop. Here each block is loaded whole before it is stored, which is right whether the output
is an input or overlaps none. Importing this module imports numba.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils

from sdekit.noise._jit import intrinsic, load, store

__all__ = ["blend"]

WIDTH = 64
"""Bytes of a vector; processors with narrower ones take several."""
UNROLL = 4
UNIT32, UNIT64 = UNROLL * WIDTH // 4, UNROLL * WIDTH // 8


_unpack: Any = cgutils.unpack_tuple


def _block(terms: int) -> Any:
    """out[j : j + unit] = sum_i w_i p_i[j : j + unit], i < terms, left to right."""

    @intrinsic
    def op(typing: Any, out: Any, j: Any, pointers: Any, weights: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            to, at, sources, factors = args
            element = context.get_value_type(out.dtype)
            size = out.dtype.bitwidth // 8
            lanes = WIDTH // size
            vector, i32 = ir.VectorType(element, lanes), ir.IntType(32)
            zeros = ir.Constant(ir.VectorType(i32, lanes), None)

            def splat(value: Any) -> Any:
                one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(i32, 0))
                return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)

            def place(base: Any, k: int) -> Any:
                first = builder.gep(base, [builder.add(at, ir.Constant(at.type, k * lanes))])
                return builder.bitcast(first, vector.as_pointer())

            pairs = list(zip(_unpack(builder, sources), _unpack(builder, factors), strict=True))[:terms]
            spread = [splat(factor) for _, factor in pairs]
            sums = []
            for k in range(UNROLL):
                total = None
                for (source, _), factor in zip(pairs, spread, strict=True):
                    product = builder.fmul(builder.load(place(source, k), align=size), factor)
                    total = product if total is None else builder.fadd(total, product)
                sums.append(total)
            for k, total in enumerate(sums):
                builder.store(total, place(to, k), align=size)
            return context.get_dummy_value()

        return types.void(out, types.int64, pointers, weights), emit

    return op


_one, _two, _three, _four = (_block(terms) for terms in (1, 2, 3, 4))


@numba.njit(error_model="numpy", nogil=True)
def blend(unit: Any, terms: Any, out: Any, p: Any, w: Any, count: Any) -> None:
    """out[:count] = sum_i w[i] p[i][:count] over the first ``terms`` of four, left to right.

    unit: `UNIT32` or `UNIT64`, by the element's size. out may be one of p, and overlaps none otherwise.
    """
    full = count // unit * unit
    a, b, c, d = p
    wa, wb, wc, wd = w
    if terms == 1:
        for j in range(0, full, unit):
            _one(out, j, p, w)
        for j in range(full, count):
            store(out, j, load(a, j) * wa)
    elif terms == 2:
        for j in range(0, full, unit):
            _two(out, j, p, w)
        for j in range(full, count):
            store(out, j, load(a, j) * wa + load(b, j) * wb)
    elif terms == 3:
        for j in range(0, full, unit):
            _three(out, j, p, w)
        for j in range(full, count):
            store(out, j, load(a, j) * wa + load(b, j) * wb + load(c, j) * wc)
    else:
        for j in range(0, full, unit):
            _four(out, j, p, w)
        for j in range(full, count):
            store(out, j, load(a, j) * wa + load(b, j) * wb + load(c, j) * wc + load(d, j) * wd)
