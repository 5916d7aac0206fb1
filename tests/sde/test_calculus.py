"""Derivatives of diffusions: the torch.func defaults against closed forms, on events of any shape."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdekit.sde import ODE, SDE, LinearSDE

from .processes import F64

EVENTS = [(), (1,), (3,), (2, 3), (2, 2, 2)]


def still(x, t):
    return 0.0 * x


def state(event, rows=3):
    return torch.randn(rows, *event, dtype=F64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("event", EVENTS)
def test_diagonal(event):
    """g_i = sin(x_i) t: d g^2 = 2 t^2 sin cos, and half of half of it."""
    x, t = state(event), 0.7
    p = SDE(still, lambda x, t: torch.sin(x) * t, noise_type="diagonal")
    exact = 2 * t**2 * torch.sin(x) * torch.cos(x)
    torch.testing.assert_close(p.divergence_ggt(x, t), exact)
    torch.testing.assert_close(p.correction(x, t), exact / 4)


@pytest.mark.parametrize("event", EVENTS)
def test_scalar(event):
    """g_i = x_i s, s = sum x^2: sum_j d_j(x_i x_j s^2) = (D + 1 + 4) s^2 x_i, c = x s^2 (1 + 2)/2."""
    x = state(event)
    rows = lambda x: (x * x).reshape(len(x), -1).sum(1).reshape(-1, *[1] * (x.ndim - 1))  # noqa: E731
    p = SDE(still, lambda x, t: x * rows(x), noise_type="scalar")
    s, d = rows(x), math.prod(event)
    torch.testing.assert_close(p.divergence_ggt(x, 0.0), (d + 5) * s * s * x)
    torch.testing.assert_close(p.correction(x, 0.0), 1.5 * s * s * x)


@pytest.mark.parametrize("event", EVENTS)
def test_general_linear(event):
    """G = [B_1 x, B_2 x], not commuting: div_i = sum_k (B_k^2 x + tr(B_k) B_k x)_i, c = sum B_k^2 x / 2."""
    x, d = state(event), math.prod(event)
    b = torch.randn(2, d, d, dtype=F64, generator=torch.Generator().manual_seed(2))

    def diffusion(x, t):
        return torch.einsum("kij,nj->nik", b, x.reshape(len(x), -1)).reshape(*x.shape, 2)

    p = SDE(still, diffusion, noise_type="general", noise_dim=2)
    flat = x.reshape(len(x), -1)
    squares = sum(flat @ (m @ m).T for m in b)
    traces = sum(m.trace() * (flat @ m.T) for m in b)
    torch.testing.assert_close(p.divergence_ggt(x, 0.0), (squares + traces).reshape(x.shape))
    torch.testing.assert_close(p.correction(x, 0.0), (0.5 * squares).reshape(x.shape))


@given(st.integers(0, 10**6), st.sampled_from(EVENTS), st.integers(1, 4))
def test_general_nonlinear_against_autograd(seed, event, m):
    """sum_j d_j (G G^T)_ij from the full Jacobian of G G^T, and G v, G G^T v from matrices."""
    g, d = torch.Generator().manual_seed(seed), math.prod(event)
    w = torch.randn(m, d, d, dtype=F64, generator=g)
    x = torch.randn(2, *event, dtype=F64, generator=g)
    t = 0.3

    def matrix(y):
        return torch.sin(torch.einsum("kij,j->ik", w, y) + t) + y[:, None] ** 2

    def diffusion(x, t):
        return torch.stack([matrix(row) for row in x.reshape(len(x), -1).unbind()]).reshape(*x.shape, m)

    p = SDE(still, diffusion, noise_type="general", noise_dim=m)
    v = torch.randn(2, *event, dtype=F64, generator=g)
    dw = torch.randn(2, m, dtype=F64, generator=g)
    field = p.noise_field(x, t)
    for row in range(2):
        y = x[row].reshape(-1)
        jacobian = torch.func.jacrev(lambda y: matrix(y) @ matrix(y).T)(y)
        divergence = torch.einsum("ijj->i", jacobian).reshape(event)
        torch.testing.assert_close(p.divergence_ggt(x, t)[row], divergence)
        inner = torch.func.jacrev(matrix)(y)  # (D, m, D)
        exact = 0.5 * torch.einsum("jk,ikj->i", matrix(y), inner).reshape(event)
        torch.testing.assert_close(p.correction(x, t)[row], exact)
        ggt = (matrix(y) @ matrix(y).T @ v[row].reshape(-1)).reshape(event)
        torch.testing.assert_close(p.apply_ggt(field, v)[row], ggt)
        torch.testing.assert_close(p.apply_noise(field, dw)[row], (matrix(y) @ dw[row]).reshape(event))


def test_additive_is_zero_and_linear_override_agrees():
    x = state((3,))
    assert not SDE(still, lambda x, t: t + 0 * x, noise_type="additive").divergence_ggt(x, 0.3).any()
    p = LinearSDE(torch.eye(3), L=torch.randn(3, 2))
    assert torch.equal(p.divergence_ggt(x, 0.0), SDE.divergence_ggt(p, x, 0.0))
    assert torch.equal(p.correction(x, 0.0), SDE.correction(p, x, 0.0))


@pytest.mark.parametrize("kind", ["ito", "stratonovich"])
def test_both_forms_of_the_drift(kind):
    """Ito drift = Stratonovich drift + g g'/2, here sigma^2 x / 2, whatever the equation was written in."""
    x = state((2,))
    p = SDE(lambda x, t: 0.1 * x, lambda x, t: 0.6 * x, sde_type=kind)
    ito = 0.1 * x + (0.18 * x if kind == "stratonovich" else 0.0)
    torch.testing.assert_close(p.ito_drift(x, 0.0), ito)
    torch.testing.assert_close(p.stratonovich_drift(x, 0.0), ito - 0.18 * x)


def test_claims_are_held():
    x = torch.ones(2, 3)
    additive = SDE(still, lambda x, t: 1 + x, noise_type="additive")
    mixing = SDE(still, lambda x, t: x.flip(-1), noise_type="diagonal")
    for check in (SDE.divergence_ggt, SDE.correction, SDE.validate):
        with pytest.raises(ValueError, match="'additive' promises a diffusion independent of the state"):
            check(additive, x, 0.0)
        with pytest.raises(ValueError, match="'diagonal' promises that G_i depends on x_i alone"):
            check(mixing, x, 0.0)
    SDE(still, lambda x, t: torch.exp(x), noise_type="diagonal").validate(x, 0.0)
    SDE(still, lambda x, t: torch.ones(3), noise_type="additive").validate(x, 0.0)


@pytest.mark.parametrize("kind", [torch.float32, F64])
def test_user_code_gets_tensors_and_may_return_numbers(kind):
    """t arrives in x's dtype with all its digits; a diffusion of 0.1 is 0.1 in x's dtype."""
    seen = []

    def drift(x, t):
        seen.append(t)
        return 0.0 * x

    x = torch.ones(2, 3, dtype=kind)
    for system in (SDE(drift, lambda x, t: 0.1), ODE(drift)):
        system.drift(x, 0.1)
        assert (seen[-1].shape, seen[-1].dtype) == ((), kind)
        assert torch.equal(seen[-1], torch.tensor(0.1, dtype=kind))
    assert torch.equal(SDE(drift, lambda x, t: 0.1).noise_field(x, 0.0), torch.full((2, 3), 0.1, dtype=kind))
