"""Milstein's method against its formula, term by term, and without derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import sdekit as sk
from sdekit.sde import SDE, calculus
from sdekit.solvers import Interval, Milstein, MilsteinFree, solve
from sdekit.solvers.problem import Counted
from tests.solvers.strong import F64, Mixed, stratonovich

T = torch.tensor(0.3, dtype=F64)
X = torch.tensor([[0.3, -0.4], [0.1, 0.6], [-0.5, 0.2]], dtype=F64)


def step(method: sk.solvers.Solver, sde: SDE, x: Tensor, h: float, W: Tensor) -> Tensor:
    return method.step(Counted(sde), x, Interval((T,), h, W), ())[0]


def by_jacobians(sde: SDE, x: Tensor, h: float, w: Tensor) -> Tensor:
    """x + f h + sum_k G_k w_k + 1/2 sum_kl L_k G_l (w_k w_l - d_kl |h|) of one row, L_k G_l by autograd."""

    def columns(y: Tensor) -> Tensor:
        return sde._matrix_field(y[None], T)[0]

    g, jacobian = columns(x), torch.autograd.functional.jacobian(columns, x)
    products = w[:, None] * w[None, :]
    if sde.sde_type == "ito":
        products = products - abs(h) * torch.eye(len(w), dtype=F64)
    second = 0.5 * torch.einsum("jk,ilj,kl->i", g, jacobian, products)
    return x + sde.drift(x[None], T)[0] * h + g @ w + second


@pytest.mark.parametrize("h", [0.05, -0.05])
@pytest.mark.parametrize("form", ["ito", "stratonovich"])
@pytest.mark.parametrize("kind", ["commutative", "scalar"])
def test_the_formula_by_jacobians(kind: str, form: str, h: float) -> None:
    sde: SDE = Mixed()
    if kind == "scalar":
        sde = SDE(lambda x, t: -x, lambda x, t: torch.sin(x.flip(1)) + x * t, noise_type="scalar")
    sde = stratonovich(sde) if form == "stratonovich" else sde
    sde.runs_backward = h < 0
    W = 0.2 * sk.Philox(0).normal(0, X.new_empty(sde.noise_shape(X)), torch.arange(3))
    expected = torch.stack([by_jacobians(sde, x, h, w) for x, w in zip(X, W, strict=True)])
    torch.testing.assert_close(step(Milstein(), sde, X, h, W), expected, rtol=1e-13, atol=1e-14)


def test_geometric_brownian_motion_by_hand() -> None:
    mu, sigma, h = 0.3, 0.5, 0.1
    sde, W = sk.GeometricBrownian(mu, sigma), 0.3 * X
    exact = X * (1 + mu * h + sigma * W + 0.5 * sigma**2 * (W**2 - h))
    torch.testing.assert_close(step(Milstein(), sde, X, h, W), exact, rtol=1e-14, atol=0)


def test_without_derivatives_it_comes_near_at_rate_three_halves() -> None:
    """The two differ by h^(3/2) in a step, at the same W/sqrt h."""
    for sde in (Mixed(), sk.sde.classic.TanhDiffusion(a=0.3, b=0.6)):
        gaps = []
        for h in (1e-3, 1e-5):
            a, b = (step(m, sde, X, h, X * h**0.5) for m in (Milstein(), MilsteinFree()))
            gaps.append(float((a - b).abs().max()))
        assert abs(np.log10(gaps[0] / gaps[1]) / 2 - 1.5) < 0.05


def test_a_diffusion_written_in_numpy() -> None:
    """No derivative is asked of it, and the run is that of the same diffusion in torch."""

    def in_numpy(x: Tensor, t: Tensor) -> Tensor:
        return torch.from_numpy(0.4 * np.sin(x.numpy()) + 1.0)

    drift = torch.neg
    runs = [
        solve(
            SDE(lambda x, t: drift(x), field, noise_type="diagonal"),
            X,
            (0, 1),
            solver="milstein-free",
            steps=20,
            probe=False,
        ).x
        for field in (in_numpy, lambda x, t: 0.4 * torch.sin(x) + 1.0)
    ]
    torch.testing.assert_close(*runs, rtol=1e-13, atol=1e-14)


def test_a_push_forward() -> None:
    """(v . d) of a matrix field, against the Jacobian."""

    def field(x: Tensor) -> Tensor:
        return torch.stack([torch.sin(x) * x.flip(1), x**3], dim=2)

    jacobian = torch.autograd.functional.jacobian(lambda x: field(x[None])[0], X[0])
    found = calculus.pushforward(field, X, X.flip(1))[0]
    torch.testing.assert_close(found, jacobian @ X[0].flip(0), rtol=1e-13, atol=1e-14)
