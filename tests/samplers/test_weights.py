"""Quadrature weights against mpmath at 50 digits, and against exact polynomial integration."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch

import sdekit as sk
from sdekit.samplers.base import Path
from sdekit.samplers.weights import kernel, lagrange
from sdekit.score.predictions import Node


def mp_kernel_weights(rhos, rho_a, rho_b, c, s, s2, noise, kappa, points=None, eta=0.0):
    """w = K^-1 int k(nodes, r) dphi, scaled to sum to the width: solved at 50 digits.

    points None: mpmath's own quadrature; n: n-point Gauss-Legendre in ln rho. eta: the measure
    (1 + eta^2) (u_b/u_r)^(eta^2/2) dphi, u = c^2 + r^2, in place of dphi.
    """
    mp = mpmath.mp.clone() if hasattr(mpmath.mp, "clone") else mpmath.MPContext()
    mp.dps = 50
    c, s, s2, noise, kappa = (mp.mpf(v) for v in (c, s, s2, noise, kappa))
    rhos = [mp.mpf(r) for r in rhos]
    a, b = mp.mpf(rho_a), mp.mpf(rho_b)
    low, high = mp.log(mp.mpf("0.04") * s * s), mp.log(mp.mpf("1.2") * s2 * s2)
    variances = [mp.exp(low + (high - low) * j / 11) for j in range(12)]

    def phi(r):
        return mp.atan2(r, c)

    def h(variance, r):
        return (
            (variance / (variance + r * r) - c * c / (c * c + r * r))
            * mp.sqrt(c * c + r * r)
            * mp.sqrt(variance + r * r)
            / (c * r)
        )

    def k(r, q):
        total = 30 + mp.exp(-((phi(r) - phi(q)) ** 2) / 2)
        total += (
            noise**2 * mp.sqrt((1 + r * r / c**2) * (1 + q * q / c**2)) * mp.exp(-(mp.log(r / q) ** 2) / 18)
        )
        return total + kappa * sum(h(v, r) * h(v, q) for v in variances) / 12

    def measure(q):  # dphi = c dr / (c^2 + r^2) in ln r, tilted
        tilt = (1 + mp.mpf(eta) ** 2) * ((c * c + b * b) / (c * c + q * q)) ** (mp.mpf(eta) ** 2 / 2)
        return tilt * c * q / (c * c + q * q)

    def integral(r):
        def f(log_rho):
            q = mp.exp(log_rho)
            return k(r, q) * measure(q)

        start, stop = mp.log(a), mp.log(b)
        if points is None:
            return mp.quad(f, [start, stop])
        x, w = np.polynomial.legendre.leggauss(points)
        return (
            (stop - start)
            / 2
            * sum(
                mp.mpf(float(wi)) * f(start + (stop - start) * (mp.mpf(float(xi)) + 1) / 2)
                for xi, wi in zip(x, w, strict=True)
            )
        )

    matrix = mp.matrix([[k(r, q) for q in rhos] for r in rhos])
    weights = mp.lu_solve(matrix, mp.matrix([integral(r) for r in rhos]))
    width = phi(b) - phi(a) if eta == 0 else mp.quad(lambda v: measure(mp.exp(v)), [mp.log(a), mp.log(b)])
    scale = width / sum(weights)
    return [float(w * scale) for w in weights]


CASES = [
    # nodes' rho (newest first), step, c, s, s2, kappa
    ([1.2, 2.6, 7.0, 24.0, 80.0], (1.2, 0.66), 0.55, 0.5, 0.6, 1.0),
    ([0.66, 1.2, 2.6, 7.0, 24.0], (1.2, 0.66), 0.55, 0.5, 0.6, 1.0),  # a corrector: the new node too
    ([5.0, 80.0], (5.0, 2.0), 1.0, 1.0, 1.0, 0.0),
    ([0.05, 0.09, 0.16, 0.3, 0.55], (0.05, 0.002), 2.2, 0.6, 8.0, 1.0),  # photographs, the last step
]


def sdekit_weights(rhos, ends, c, s, s2, kappa, noise=0.003):
    rho = torch.tensor([rhos], dtype=torch.float64)
    a, b = (torch.tensor([r], dtype=torch.float64) for r in ends)
    phi = torch.atan2(c * (rho - a), c * c + rho * a)
    width = torch.atan2(c * (b - a), c * c + a * b)
    return kernel(phi, rho, width, a, b, c=c, s=s, s2=s2, noise=noise, kappa=kappa)[0].tolist(), float(width)


@pytest.mark.parametrize(("rhos", "ends", "c", "s", "s2", "kappa"), CASES)
def test_kernel_weights_solve_their_equation(rhos, ends, c, s, s2, kappa):
    """K w = q with the same 10-point rule at 50 digits; the conditioning of K costs a few digits."""
    weights, width = sdekit_weights(rhos, ends, c, s, s2, kappa)
    expected = mp_kernel_weights(rhos, *ends, c, s, s2, 0.003, kappa, points=10)
    np.testing.assert_allclose(weights, expected, rtol=1e-7, atol=1e-9 * abs(width))
    assert sum(weights) == pytest.approx(width, rel=1e-13)


@pytest.mark.parametrize(("rhos", "ends", "c", "s", "s2", "kappa"), CASES[:3])
def test_the_rule_of_ten_points_is_enough(rhos, ends, c, s, s2, kappa):
    weights, width = sdekit_weights(rhos, ends, c, s, s2, kappa)
    expected = mp_kernel_weights(rhos, *ends, c, s, s2, 0.003, kappa)
    np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-6 * abs(width))


def test_kernel_weights_tend_to_adams_on_fine_grids():
    """Small steps recover high-order Adams: the smooth signal alone, errors O(h^2)."""
    c, a = 0.7, 0.9
    h = 0.01
    angle = math.atan2(a, c)
    rho = c * torch.tan(torch.tensor([[angle + j * h for j in range(5)]], dtype=torch.float64))
    end = c * math.tan(angle - h)
    weights, width = sdekit_weights(rho[0].tolist(), (a, end), c, c, c, 0.0, noise=0.0)
    adams = [1901 / 720, -1387 / 360, 109 / 30, -637 / 360, 251 / 720]  # Adams-Bashforth 5
    np.testing.assert_allclose(weights, [width * w for w in adams], rtol=1e-3)


def test_lagrange_weights_integrate_polynomials_exactly():
    generator = torch.Generator().manual_seed(1)
    for k in range(1, 6):
        nodes = torch.rand(7, k, generator=generator, dtype=torch.float64).sort(dim=1).values * 2 - 1
        nodes = nodes + torch.arange(k) * 0.3
        width = torch.rand(7, generator=generator, dtype=torch.float64) - 0.5
        w = lagrange(nodes, width)
        for degree in range(k):
            exact = width ** (degree + 1) / (degree + 1)
            torch.testing.assert_close((w * nodes**degree).sum(1), exact, rtol=1e-9, atol=1e-10)


def test_lagrange_weights_are_adams_bashforth_and_moulton():
    h = -0.1
    nodes = torch.tensor([[0.0, -h, -2 * h, -3 * h]], dtype=torch.float64)
    w = lagrange(nodes, torch.tensor([h], dtype=torch.float64))[0] / h
    torch.testing.assert_close(w, torch.tensor([55, -59, 37, -9], dtype=torch.float64) / 24)
    w = lagrange(nodes + h, torch.tensor([h], dtype=torch.float64))[0] / h
    torch.testing.assert_close(w, torch.tensor([9, 19, -5, 1], dtype=torch.float64) / 24)


def test_angles_do_not_cancel_near_pure_noise():
    """phi_a - phi_b near pi/2 against mpmath: atan2(s (rho_a - rho_b), s^2 + rho_a rho_b)."""
    s, high, low = 0.5, 1e7, 0.999e7
    path = Path(tuple(Node(0.0, 1.0, rho) for rho in (high, low)), s, s)
    with mpmath.workdps(50):
        exact = float(mpmath.atan(mpmath.mpf(high) / s) - mpmath.atan(mpmath.mpf(low) / s))
    assert path.angle(0, 1, s) == pytest.approx(exact, rel=1e-12)
    assert path.angle(1, 0, s) == -path.angle(0, 1, s)
    pure = Path((Node(1.0, 0.0, 1.0), Node(0.5, 0.5, 0.5)), s, s)
    assert pure.angle(0, 1, s) == pytest.approx(math.pi / 2 - math.atan2(1.0, s), rel=1e-14)


@pytest.mark.parametrize("process", [sk.RectifiedFlow(), sk.Cosine()])
def test_the_node_at_infinity_serves_trig_adams_and_not_the_kernel(process):
    trig = sk.plan("trig-adams", process, steps=6, data_std=0.5)
    quadrature = sk.plan("kernel-quadrature", process, steps=6, data_std=0.5)

    def reads_first(plan, i):
        ins = next(ins for ins in plan.instructions if ins.out == f"x[{i}]")
        return "F[0]" in ins.inputs

    assert reads_first(trig, 2)
    assert not reads_first(quadrature, 1)
    assert not reads_first(quadrature, 2)
    guess = next(ins for ins in quadrature.instructions if ins.out == "p[1]")
    assert "F[0]" in guess.inputs
