"""One step of a plan in one call: `combine`, one contract for every back end.

    combine(weights, registers, draws, normal) -> out
    out = sum_i w_i register_i + sum_j c_j xi_{draw_j},  weights = (w_1, ..., c_1, ...)

Contract. Weights are rounded once to the state's arithmetic dtype (its own for float32 and float64; float32
for bfloat16 and float16, whose result is rounded once); terms are added left to right, registers before
noise, without fused multiply-add, so that a row's bits do not depend on its batch. Inputs are never
written to. Back ends: ``eager`` (torch; the reference, differentiable).
"""

from sdekit.kernels.eager import combine

__all__ = ["combine"]
