r"""One step of a plan in one call: `combine`, one contract for every back end.

    combine(out, registers, weights, draws, scale) -> (out, second)

    out    = sum_i w_i register_i + sum_j c_j xi_j,     weights = (w_1, ..., c_1, ...),
    second = scale out.

The second output is the scaled state that some networks are given (EDM's c_in x); None where no scale is.

Contract. ``out`` is a tensor to write to, or None for a new one; it may be one of the registers, and overlaps
none otherwise; other registers are never written to. Weights are rounded once to the arithmetic dtype: the
state's own for float32 and float64, float32 for bfloat16 and float16, whose result is rounded once. Terms
are added left to right, registers before noise, every product and every sum rounded, without fused
multiply-add, so that a row's bits do not depend on its batch, its device or the back end. A normal is
rounded to the state's dtype before it is multiplied; ``second`` is the product of the rounded out and the
rounded scale.

Back ends: ``eager`` in plain torch, the reference, differentiable, for any tensors and any noise; ``numba``
(`sdekit.kernels.cpu`) for float32 and float64 on CPU; ``triton`` (`sdekit.kernels.cuda`) on CUDA devices. The
compiled ones make the normals in the pass that adds them, so that noise is never written to memory; they
need contiguous tensors, and noise that is `sdekit.Philox`.
"""

from sdekit.kernels.contract import BACKENDS, Draws, choose
from sdekit.kernels.eager import combine

__all__ = ["BACKENDS", "Draws", "choose", "combine"]
