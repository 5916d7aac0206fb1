"""`combine` on CPU by numba: the back end around the kernel of `sdekit.kernels._cpu_kernel`.

Importing this module imports numba; `sdekit.kernels.contract` does so on first use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from sdekit.kernels import eager
from sdekit.kernels._cpu_kernel import combine32, combine64
from sdekit.kernels.contract import Draws
from sdekit.noise import philox
from sdekit.noise.cpu import PARALLEL_BYTES, _share, cut

__all__ = ["KERNELS", "combine", "kernel", "record", "serves"]


KERNELS = {torch.float32: combine32, torch.float64: combine64}


def kernel(x: Tensor) -> Callable[[int, int, int, int, int, int], None]:
    """The kernel for states like x, a function of (program, slots, 0, rows, 0, event // 128).

    Large states are shared among up to ``torch.get_num_threads()`` threads; the result does not depend on
    their number.
    """
    one: Callable[[int, int, int, int, int, int], None] = KERNELS[x.dtype]
    threads = torch.get_num_threads()
    if x.nbytes < PARALLEL_BYTES or threads == 1:
        return one
    rows, event = x.shape[0], x.numel() // x.shape[0]

    def shared(program: int, slots: int, *whole: int) -> None:
        _share(lambda piece: one(program, slots, *piece), cut(rows, event), threads)

    return shared


def record(
    terms: Sequence[int], draws: Sequence[int], event: int, out: int, second: int, weights: int
) -> list[int]:
    """The program of one `combine`: slots of its terms, out and second, draws, address of its weights."""
    addresses = []
    for draw in draws:
        block, draw_word, skip = philox.address(draw, event)
        addresses += [draw_word, block, skip]
    return [len(terms), len(draws), event, out, second, weights, *terms, *addresses]


def combine(
    out: Tensor | None,
    registers: Sequence[Tensor],
    weights: Sequence[float | Tensor] | Tensor,
    draws: Draws | None = None,
    scale: float | Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """out = sum_i w_i register_i + sum_j c_j xi_j, and scale out; see the contract in `sdekit.kernels`.

    registers, out: contiguous, float32 or float64. weights: floats, 0-d tensors or a tensor of them. Not
    differentiable.
    """
    first = registers[0]
    numbers = () if draws is None else draws.numbers
    out = torch.empty_like(first) if out is None else out
    second = None if scale is None else torch.empty_like(first)
    if first.numel() == 0:
        return out, second
    values = [float(w) for w in weights] + ([] if scale is None else [float(scale)])
    table = torch.tensor(values, dtype=first.dtype)
    k0, k1 = (0, 0) if draws is None else draws.key
    ids = 0 if draws is None else draws.ids.data_ptr()
    places = [*registers, out] if second is None else [*registers, out, second]
    slots = np.array([k0, k1, ids, *(place.data_ptr() for place in places)], dtype=np.int64)
    event, at = first.numel() // first.shape[0], 3 + len(registers)
    terms = range(3, at)
    program = np.array(
        record(terms, numbers, event, at, -1 if second is None else at + 1, table.data_ptr()), dtype=np.int64
    )
    kernel(first)(program.ctypes.data, slots.ctypes.data, 0, first.shape[0], 0, event // 128)
    return out, second


def serves(x: Tensor) -> str | None:
    """None where states like x can be combined here, else why not."""
    if type(x) is not Tensor or not x.is_cpu:
        return f"the state is a {type(x).__name__} on {x.device}, and numba works on plain CPU tensors"
    if not x.is_contiguous():
        return f"the state has strides {x.stride()}, and numba takes contiguous ones (x.contiguous())"
    if x.dtype not in KERNELS:
        return f"the state is {x.dtype}, and numba takes float32 and float64"
    return _checked(x.dtype)


@cache
def _checked(dtype: torch.dtype) -> str | None:
    """None once the kernel has reproduced the reference on this machine, else that it does not."""
    for _ in range(2):
        if all(_agrees(dtype, event, draws) for event in (1, 2, 3, 4, 150) for draws in ((), (7,), (2, 9))):
            return None
        KERNELS[dtype].recompile()
    return f"the compiled combine differs from the reference in {dtype} on this machine"


def _agrees(dtype: torch.dtype, event: int, numbers: tuple[int, ...]) -> bool:
    key, ids = (1, 2), torch.tensor([0, 1, -1, 2**40 + 3])
    registers = [torch.linspace(-a, a, 4 * event, dtype=dtype).reshape(4, event) for a in (1.0, 3.0, 7.0)]
    draws = Draws(numbers, ids, key, lambda k: philox.normal(key, k, ids, event, dtype))
    weights = [0.3, -1.7, 0.9, 0.21, -0.4][: 3 + len(numbers)]
    expected = eager.combine(None, registers, weights, draws, 0.7)
    found = combine(registers[1], registers, weights, draws, 0.7)
    return all(
        a is not None and b is not None and torch.equal(a, b) for a, b in zip(expected, found, strict=True)
    )
