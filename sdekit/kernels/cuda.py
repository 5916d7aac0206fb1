"""The Triton back end of `combine`: registers read once, normals made on the way, out written once.

The noise of a step costs no memory traffic, so a noisy step moves the same bytes as a copy of its operands.
Weights are read from a table on the device, and the Philox key may be: nothing of a launch then depends on
the seed, which is what lets a captured graph serve every seed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

from sdekit.errors import ShapeError
from sdekit.kernels import eager
from sdekit.kernels.contract import Draws

__all__ = ["combine", "serves"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DRAWS = 4
"""Draws that one launch can make; a step with more goes through the reference."""
ELEMENTS = 1024
"""Elements that one program takes where there is no noise."""


def _interpreted() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)


def serves(x: Tensor) -> str | None:
    """None where states like x can be combined here, else the reason why not."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install 'sdekit[cuda]')"
    if not x.is_cuda and not (x.is_cpu and _interpreted()):
        return f"the state lives on {x.device}, and triton needs a CUDA device"
    if x.dtype not in DTYPES:
        return f"the state is {x.dtype}"
    return None


def combine(
    out: Tensor | None,
    registers: Sequence[Tensor],
    weights: Sequence[float | Tensor] | Tensor,
    draws: Draws | None = None,
    scale: float | Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """out = sum_i w_i register_i + sum_j c_j xi_j, and scale out: the contract in `sdekit.kernels`.

    registers: contiguous, of one shape (B, *event), dtype and device. weights: a 1-D tensor of the arithmetic
    dtype on the device is read there, and so is a scale of that kind; other weights are copied to it first,
    for which the host waits. Steps with more than four draws, or whose noise is not Philox's, go through the
    reference.

    Raises ShapeError for tensors that are not contiguous or differ in shape, dtype or device.
    """
    x = registers[0]
    if draws is not None and (draws.key is None or len(draws.numbers) > DRAWS):
        return eager.combine(out, registers, weights, draws, scale)
    if out is None:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for tensor in (*registers, out):
        if tensor.shape != x.shape or tensor.dtype is not x.dtype or tensor.device != x.device:
            raise ShapeError(
                f"registers and out must be alike, got {tuple(tensor.shape)}, {tensor.dtype} on "
                f"{tensor.device} beside {tuple(x.shape)}, {x.dtype} on {x.device}."
            )
        if not tensor.is_contiguous():
            raise ShapeError("registers and out must be contiguous. Next: .contiguous(), or backend='eager'.")
    second = None if scale is None else torch.empty_like(out)
    if x.numel():
        table = _table(weights, x)
        _launch(out, second, registers, table, draws, _scale(scale, table, x.dtype))
    return out, second


def _table(weights: Sequence[float | Tensor] | Tensor, x: Tensor) -> Tensor:
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    if isinstance(weights, Tensor):
        return weights.to(x.device, wide)
    return torch.tensor([float(w) for w in weights], dtype=wide, device=x.device)


def _scale(scale: float | Tensor | None, table: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The scale rounded to ``dtype``, on the device beside the weights."""
    if scale is None or (isinstance(scale, Tensor) and scale.device == table.device):
        return scale if scale is None else scale.to(table.dtype)
    rounded = float(torch.tensor(float(scale), dtype=torch.float64).to(dtype))
    return torch.full((), rounded, dtype=table.dtype, device=table.device)


def _launch(
    out: Tensor,
    second: Tensor | None,
    registers: Sequence[Tensor],
    weights: Tensor,
    draws: Draws | None,
    scale: Tensor | None,
) -> None:
    from sdekit.kernels import _triton
    from sdekit.noise.cuda import BLOCK, EXACT, far, on, signed

    terms, double = len(registers), out.dtype is torch.float64
    common = (out, second, tuple(registers), weights, scale)
    with on(out.device):
        if draws is None or not draws.numbers:
            grid = (-(-out.numel() // ELEMENTS),)
            _triton.affine[grid](*common, out.numel(), ELEMENTS, far(out), terms, double, **EXACT)
            return
        rows = out.shape[0]
        event = out.numel() // rows
        blocks = 32 * (event // 128) + -(-(event % 128) // 4)
        held = isinstance(draws.key, Tensor)
        numbers = [signed(number) for number in draws.numbers]
        _triton.noisy[(-(-rows * blocks // BLOCK),)](
            *common,
            draws.ids,
            draws.key if held else None,
            *((0, 0) if held else map(signed, draws.key)),
            *numbers,
            *(0,) * (DRAWS - len(numbers)),
            rows,
            blocks,
            event,
            BLOCK,
            blocks < BLOCK,
            far(out),
            terms,
            len(numbers),
            {1: 1, 2: 2, 3: 4}.get(event, 0),
            double,
            **EXACT,
        )
