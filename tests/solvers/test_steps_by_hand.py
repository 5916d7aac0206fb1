"""One step of stochastic methods against their published formulas, channel by channel in plain numbers.

Orders forgive a coefficient that is wrong by a percent; these do not.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sdekit.sde import SDE
from sdekit.solvers import DRI1, Platen
from sdekit.solvers.base import Interval
from sdekit.solvers.milstein import MilsteinFree
from sdekit.solvers.problem import Counted
from sdekit.solvers.srk import SRA1, SRIW1

T = 0.3
X = np.array([[0.7, -0.4], [1.3, 0.2], [-0.6, 0.9]])
"""Three samples of two dimensions."""
W = np.array([[0.31, -0.24, 0.12], [-0.17, 0.43, 0.08], [0.22, 0.05, -0.37]])
H = np.array([[0.11, -0.07, 0.04], [-0.09, -0.13, 0.06], [0.02, 0.08, 0.15]])
MIX = np.array([[[0.5, -0.4], [0.5, 0.2]], [[-0.2, 0.5], [0.3, 0.4]], [[0.1, 0.3], [-0.6, 0.2]]])


def f(x, t):
    return np.sin(x) - 0.4 * t * x[..., ::-1]


def b(k, x, t):
    """Column k of matrix noise that commutes with nothing."""
    return np.sin(x) @ MIX[k].T + 0.2 * t * np.cos(x)


def g(x, t):
    """Noise of each element by itself."""
    return 0.5 + 0.3 * np.sin(x) + 0.2 * t


def tensor(x):
    return torch.as_tensor(np.ascontiguousarray(x), dtype=torch.float64)


def system(field, noise_type, **options):
    return SDE(
        lambda x, t: tensor(f(x.numpy(), float(t))),
        lambda x, t: tensor(field(x.numpy(), float(t))),
        noise_type=noise_type,
        **options,
    )


GENERAL = system(lambda x, t: np.stack([b(k, x, t) for k in range(3)], -1), "general", noise_dim=3)
DIAGONAL = system(g, "diagonal")


def attempted(solver, sde, h, w, area):
    counted, x = Counted(sde), tensor(X)
    times = tuple(torch.tensor(T + c * h, dtype=torch.float64) for c in solver.nodes)
    interval = Interval(times, h, tensor(w), tensor(area))
    carry = solver.init(counted, x, times[0])
    if hasattr(solver, "attempt"):
        return solver.attempt(counted, x, interval, carry)
    return solver.step(counted, x, interval, carry)


def signs(area):
    return np.where(area >= 0, 1.0, -1.0)


def platen(x, h, w, s):
    """Kloeden and Platen 1992, equation 15.1.3."""
    root, drift = math.sqrt(h), f(x, T)
    bs = [b(k, x, T) for k in range(3)]
    out = x + (f(x + drift * h + sum(c * v for c, v in zip(bs, w, strict=True)), T + h) + drift) * h / 2
    for k in range(3):
        up, down = (b(k, x + drift * h + e * bs[k] * root, T + h) for e in (1, -1))
        out = out + (up + down + 2 * bs[k]) * w[k] / 4 + (up - down) * (w[k] ** 2 - h) / (4 * root)
        for r in (r for r in range(3) if r != k):
            up, down = (b(k, x + e * bs[r] * root, T) for e in (1, -1))
            v = s[r] * s[k] * h * (1 if k < r else -1)
            out = out + ((up + down - 2 * bs[k]) * w[k] + (up - down) * (w[k] * w[r] + v) / root) / 4
    return out


def dri1(x, h, w, s):
    """Debrabant and Roessler 2009, the scheme of table 1."""
    root, early, late, c = math.sqrt(h), (6 - math.sqrt(6)) / 10, (3 + 2 * math.sqrt(6)) / 5, 342 / 491
    bs = [b(k, x, T) for k in range(3)]
    noise = sum(column * v for column, v in zip(bs, w, strict=True))
    f1 = f(x, T)
    f2 = f(x + f1 * h / 2 + early * noise, T + h / 2)
    f3 = f(x + (2 * f2 - f1) * h + late * noise, T + h)
    out = x + (f1 + 4 * f2 + f3) * h / 6
    aside = 3 * math.sqrt(38 / 491) * root
    pairs = [[b(k, x + c * f1 * h + e * aside * bs[k], T + c * h) for e in (1, -1)] for k in range(3)]
    p, q = 214 / 513 * math.sqrt(1105 / 991), 491 / 513 * math.sqrt(221 / 4955)
    for k, (up, down) in enumerate(pairs):
        out = out + (193 / 684 * bs[k] + 491 / 1368 * (up + down)) * w[k]
        out = out + math.sqrt(491 / 38) / 6 * (up - down) * (w[k] ** 2 - h) / (2 * root)
        shift = 0.0
        for m in (m for m in range(3) if m != k):
            double = (w[k] * w[m] + s[k] * s[m] * h * (-1 if k < m else 1)) / 2
            shift = shift + (p * bs[m] + q * (pairs[m][0] + pairs[m][1])) * double / root
        up, down = b(k, x + shift, T), b(k, x - shift, T)
        out = out + 4955 / 14144 * (up + down - 2 * bs[k]) * w[k]
        out = out + math.sqrt(4955 / 221) / 8 * (up - down) * root
    return out


@pytest.mark.parametrize("h", [0.04, 0.5])
@pytest.mark.parametrize(("solver", "formula"), [(Platen(), platen), (DRI1(), dri1)], ids=["platen", "dri1"])
def test_weak_order_two_with_three_channels(solver, formula, h):
    found, _ = attempted(solver, GENERAL, h, W, H)
    expected = [formula(x, h, w, s) for x, w, s in zip(X, W, signs(H), strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("h", [0.04, 0.5])
def test_sra1_and_its_error(h):
    """Roessler 2010, SRA1; I_(1,0)/h = W/2 + H."""
    spread = lambda t: np.array([0.5, 0.8]) + 0.3 * math.sin(t)  # noqa: E731
    sde = system(lambda x, t: np.broadcast_to(spread(t), x.shape), "additive")
    w, area = W[:, :2], W[:, :2] / 2 + H[:, :2]
    here, ahead = spread(T), spread(T + h)
    f1 = f(X, T)
    f2 = f(X + 0.75 * f1 * h + 1.5 * ahead * area, T + 0.75 * h)
    found = attempted(SRA1(), sde, h, w, H[:, :2])
    expected = X + (f1 + 2 * f2) * h / 3 + ahead * w + (here - ahead) * area
    np.testing.assert_allclose(found[0], expected, rtol=1e-13)
    error = np.abs(f1 - f2) * h / 6 + np.abs((here - ahead) * area)
    np.testing.assert_allclose(found[2], error, rtol=1e-11)


@pytest.mark.parametrize("h", [0.04, 0.5])
def test_sriw1_and_its_error(h):
    """Roessler 2010, SRIW1; I_(1,1,1) = (W^3 - 3 h W)/6."""
    w, area, root = W[:, :2], W[:, :2] / 2 + H[:, :2], math.sqrt(h)
    double, triple = (w**2 - h) / (2 * root), (w**3 - 3 * h * w) / (6 * h)
    f1, g1 = f(X, T), g(X, T)
    f2 = f(X + 0.75 * f1 * h + 1.5 * g1 * area, T + 0.75 * h)
    g2 = g(X + 0.25 * f1 * h + 0.5 * g1 * root, T + 0.25 * h)
    g3 = g(X + f1 * h - g1 * root, T + h)
    g4 = g(X + 0.25 * f1 * h + (-5 * g1 + 3 * g2 + 0.5 * g3) * root, T + 0.25 * h)
    last = (2 * g1 - 4 / 3 * g2 - 2 / 3 * g3) * area + (-2 * g1 + 5 / 3 * g2 - 2 / 3 * g3 + g4) * triple
    found = attempted(SRIW1(), DIAGONAL, h, w, H[:, :2])
    expected = X + (f1 + 2 * f2) * h / 3 + (-g1 + 4 / 3 * g2 + 2 / 3 * g3) * w
    expected = expected + (-g1 + 4 / 3 * g2 - 1 / 3 * g3) * double + last
    np.testing.assert_allclose(found[0], expected, rtol=1e-13)
    np.testing.assert_allclose(found[2], np.abs(f1 - f2) * h / 6 + np.abs(last), rtol=1e-11)


@pytest.mark.parametrize("h", [0.04, 0.5, -0.3])
@pytest.mark.parametrize("noise_type", ["diagonal", "commutative"])
def test_milstein_by_differences(noise_type, h):
    """Kloeden and Platen 1992, equation 11.1.3; backwards the variance is |h|."""
    root, drift = math.sqrt(abs(h)), f(X, T)
    if noise_type == "diagonal":
        w, sde, here = W[:, :2], DIAGONAL, g(X, T)
        slope = (g(X + drift * h + here * root, T) - here) / root
        expected = X + drift * h + here * w + slope * (w**2 - abs(h)) / 2
    else:
        w, sde = (
            W,
            system(lambda x, t: np.stack([b(k, x, t) for k in range(3)], -1), "commutative", noise_dim=3),
        )
        expected = X + drift * h
        for k in range(3):
            expected = expected + b(k, X, T) * w[:, [k]]
            for m in range(3):
                ahead = X + drift * h + b(m, X, T) * root
                slope = (b(k, ahead, T) - b(k, X, T)) / root
                expected = expected + slope * (w[:, [k]] * w[:, [m]] - abs(h) * (k == m)) / 2
    found, _ = attempted(MilsteinFree(), sde, h, w, H[:, : w.shape[1]])
    np.testing.assert_allclose(found, expected, rtol=1e-12)
