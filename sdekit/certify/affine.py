r"""A plan on an affine denoiser, direction by direction.

Where D(x) = gain x + shift, every register of a plan is, in each direction,

    r = b + g x_init + sum_k G_k xi_k.

Only the output's b, g and G_k are wanted, so they are found backwards: with a(r) = d output / d r,

    a(output) = 1,
    r = sum_i w_i r_i + sum_j c_j xi_j:     a(r_i) += w_i a(r),   G_j += c_j a(r),
    r = p x + q (gain x + shift):           a(x)   += (p + q gain) a(r),   b += q shift a(r),
    g = a(x_init).

One pass over the instructions, with as many vectors as registers are alive: d = 1e5 directions and 1,000
noises take the memory of a few states. It is reverse differentiation, exact because the plan is affine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sdekit._typing import Number
from sdekit.errors import NotAffineError
from sdekit.samplers.plan import Combine, Evaluate, Plan, state
from sdekit.score.predictions import Node, conversion

__all__ = ["Affine", "Response", "exact_denoiser", "propagate", "respond"]

#: node -> (gain, shift) of D(x) = gain x + shift, numbers or (D,) float64.
Affine: TypeAlias = "Callable[[Node], tuple[Number, Number]]"


@dataclass(frozen=True)
class Response:
    """Output = constant + gain x_init + noise in each direction, noise ~ N(0, variance): (D,) each."""

    constant: Tensor
    gain: Tensor
    variance: Tensor


def exact_denoiser(eigenvalues: Tensor, mean: Tensor) -> Affine:
    """D(x) = m + alpha c/(alpha^2 c + sigma^2) (x - alpha m) of N(m, diag c), (D,) each."""

    def denoise(node: Node) -> tuple[Tensor, Tensor]:
        _, alpha, sigma, *_ = node
        total = alpha * alpha * eigenvalues + sigma * sigma
        return alpha * eigenvalues / total, sigma * sigma / total * mean

    return denoise


def respond(plan: Plan, denoiser: Affine, dimension: int) -> Response:
    """The plan's output as an affine function of its start and its noise (see the module's equations).

    Differentiable in the plan's weights and nodes and in what ``denoiser`` returns. Raises NotAffineError
    for a plan with `Apply`.
    """
    zero = torch.zeros(dimension, dtype=torch.float64)
    variance = zero

    def collect(draw: int, response: Tensor) -> None:
        nonlocal variance
        variance = variance + response.square()

    constant, gain = _sweep(plan, denoiser, zero, collect)
    return Response(constant, gain, variance)


def propagate(plan: Plan, eigenvalues: Tensor, mean: Tensor, denoiser: Affine | None = None) -> Tensor:
    """(2 + K, D): rows b, g and G_1, ..., G_K of the plan's output, draws in the order of first use.

    eigenvalues, mean: (D,) float64, the target's eigenvalues and the coordinates of its mean. ``denoiser``:
    another affine one. Differentiable in the plan's weights and nodes. Raises NotAffineError for a plan with
    `Apply`. `respond` needs no memory for the rows.
    """
    rows: dict[int, Tensor] = {}
    denoiser = exact_denoiser(eigenvalues, mean) if denoiser is None else denoiser
    constant, gain = _sweep(plan, denoiser, torch.zeros_like(mean), rows.__setitem__)
    order = dict.fromkeys(
        draw for ins in plan.instructions if isinstance(ins, Combine) for _, draw in ins.noise
    )
    return torch.stack([constant, gain, *(rows[draw] for draw in order)])


def _sweep(
    plan: Plan, denoiser: Affine, zero: Tensor, collect: Callable[[int, Tensor], None]
) -> tuple[Tensor, Tensor]:
    """(b, g); ``collect(draw, G)`` is called once for each draw, when its last part is known."""
    _require_affine(plan)
    first_use: dict[int, int] = {}
    for k, ins in enumerate(plan.instructions):
        if isinstance(ins, Combine):
            for _, draw in ins.noise:
                first_use.setdefault(draw, k)
    adjoint: dict[str, Tensor] = {plan.output: zero + 1.0}
    partial: dict[int, Tensor] = {}
    constant = zero
    for k in reversed(range(len(plan.instructions))):
        ins = plan.instructions[k]
        a = adjoint.pop(ins.out, None)
        if isinstance(ins, Evaluate):
            if a is None:
                continue
            assert ins.node is not None
            gain, shift = denoiser(ins.node)
            p, q = conversion("x0", ins.predicts, ins.node, None, ins.data_std)
            constant = constant + q * shift * a
            _add(adjoint, ins.x, (p + q * gain) * a)
            continue
        assert isinstance(ins, Combine)
        if a is not None:
            for w, name in ins.terms:
                _add(adjoint, name, w * a)
            for c, draw in ins.noise:
                _add(partial, draw, c * a)
        for draw in dict.fromkeys(draw for _, draw in ins.noise if first_use[draw] == k):
            collect(draw, partial.pop(draw, zero))
    return constant, adjoint.get(state(0), zero)


def _add(sums: dict[Any, Tensor], key: str | int, part: Tensor) -> None:
    sums[key] = sums[key] + part if key in sums else part


def _require_affine(plan: Plan) -> None:
    if plan.affine:
        return
    name = next(ins.name for ins in plan.instructions if not isinstance(ins, Evaluate | Combine))
    raise NotAffineError(
        f"{plan.sampler!r} applies {name!r}, which is not affine in the noise: its output is not Gaussian, "
        f"and an exact certificate would be false. Next: sdekit.certify_monte_carlo(...) measures the same "
        f"distances from samples, with a confidence interval."
    )
