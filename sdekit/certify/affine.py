r"""A plan on an affine denoiser, direction by direction.

Where D(x) = gain x + shift, every register of a plan is, in each direction,

    r = b + g x_init + sum_k G_k xi_k.

b and g follow the run, instruction by instruction, two numbers a register. The output's G_k are found
backwards, with a(r) = d output / d r:

    a(output) = 1,
    r = sum_i w_i r_i + sum_j c_j xi_j:     a(r_i) += w_i a(r),   G_j += c_j a(r),
    r = p x + q (gain x + shift):           a(x)   += (p + q gain) a(r).

Either way as many vectors are kept as registers are alive: d = 1e5 directions and 1,000 noises take the
memory of a few states. The start goes forwards, as a state does, because there its rounding is that of the
run: after a step of many orders of magnitude in sigma its weights alone are huge and cancel.
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

    constant, gain = _respond(plan, denoiser, zero, collect)
    return Response(constant, gain, variance)


def propagate(plan: Plan, eigenvalues: Tensor, mean: Tensor, denoiser: Affine | None = None) -> Tensor:
    """(2 + K, D): rows b, g and G_1, ..., G_K of the plan's output, draws in the order of first use.

    eigenvalues, mean: (D,) float64, the target's eigenvalues and the coordinates of its mean. ``denoiser``:
    another affine one. Differentiable in the plan's weights and nodes. Raises NotAffineError for a plan with
    `Apply`. `respond` needs no memory for the rows.
    """
    rows: dict[int, Tensor] = {}
    denoiser = exact_denoiser(eigenvalues, mean) if denoiser is None else denoiser
    constant, gain = _respond(plan, denoiser, torch.zeros_like(mean), rows.__setitem__)
    order = dict.fromkeys(
        draw for ins in plan.instructions if isinstance(ins, Combine) for _, draw in ins.noise
    )
    return torch.stack([constant, gain, *(rows[draw] for draw in order)])


def _respond(
    plan: Plan, denoiser: Affine, zero: Tensor, collect: Callable[[int, Tensor], None]
) -> tuple[Tensor, Tensor]:
    """(b, g); ``collect(draw, G)`` is called once for each draw."""
    _require_affine(plan)
    slopes: dict[str, Tensor | Number] = {}
    start = _forwards(plan, denoiser, zero, slopes)
    if plan.stochastic:
        _backwards(plan, slopes, zero, collect)
    return start


def _forwards(
    plan: Plan, denoiser: Affine, zero: Tensor, slopes: dict[str, Tensor | Number]
) -> tuple[Tensor, Tensor]:
    """(b, g) of the output; ``slopes`` takes d out / d x of each evaluation."""
    one = zero + 1.0
    alive: dict[str, tuple[Tensor, Tensor]] = {state(0): (zero, one)}
    last = {name: k for k, ins in enumerate(plan.instructions) for name in ins.inputs}
    for k, ins in enumerate(plan.instructions):
        if isinstance(ins, Evaluate):
            assert ins.node is not None
            gain, shift = denoiser(ins.node)
            p, q = conversion("x0", ins.predicts, ins.node, None, ins.data_std)
            slope = slopes[ins.out] = p + q * gain
            b, g = alive[ins.x]
            alive[ins.out] = (slope * b + q * shift, slope * g)
        else:
            assert isinstance(ins, Combine)
            b, g = zero, zero
            for w, name in ins.terms:
                b, g = b + w * alive[name][0], g + w * alive[name][1]
            alive[ins.out] = (b, g)
        for name in ins.inputs:
            if last[name] == k and name != plan.output:
                alive.pop(name, None)
    return alive[plan.output]


def _backwards(
    plan: Plan,
    slopes: dict[str, Tensor | Number],
    zero: Tensor,
    collect: Callable[[int, Tensor], None],
) -> None:
    """``collect(draw, G)``, once for each draw, when its last part is known."""
    first_use: dict[int, int] = {}
    for k, ins in enumerate(plan.instructions):
        if isinstance(ins, Combine):
            for _, draw in ins.noise:
                first_use.setdefault(draw, k)
    adjoint: dict[str, Tensor] = {plan.output: zero + 1.0}
    partial: dict[int, Tensor] = {}
    for k in reversed(range(len(plan.instructions))):
        ins = plan.instructions[k]
        a = adjoint.pop(ins.out, None)
        if isinstance(ins, Evaluate):
            if a is not None:
                _add(adjoint, ins.x, slopes[ins.out] * a)
            continue
        assert isinstance(ins, Combine)
        if a is not None:
            for w, name in ins.terms:
                _add(adjoint, name, w * a)
            for c, draw in ins.noise:
                _add(partial, draw, c * a)
        for draw in dict.fromkeys(draw for _, draw in ins.noise if first_use[draw] == k):
            collect(draw, partial.pop(draw, zero))


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
