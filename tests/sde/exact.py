"""Independent routes to what equations claim: Ito's formula, Fokker-Planck, quadrature, Monte Carlo."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import sdekit as sk
from sdekit.sde import SDE

F64 = torch.float64

KOLMOGOROV = 3.0
"""Bound on sqrt(n) sup |F_n - F|: exceeded with probability 2 exp(-2 * 3^2) = 3e-8 under the law."""

FIRST = (-1 / 60, 3 / 20, -3 / 4, 0.0, 3 / 4, -3 / 20, 1 / 60)
SECOND = (1 / 90, -3 / 20, 3 / 2, -49 / 18, 3 / 2, -3 / 20, 1 / 90)


def ito(process: SDE, path: Callable[[Tensor, Tensor], Tensor], t: float, w: Tensor) -> None:
    """X = F(t, W) solves the Ito equation: F_t + (1/2) sum_k F_kk = ito_drift(F), F_k = G_k, to 1e-10.

    path: (t, w) -> one state (D,), t of shape (), w of shape (m,). With diagonal noise W_i drives X_i.
    """
    time = torch.tensor(t, dtype=F64)
    x = path(time, w)[None]
    slope_t = torch.func.jacrev(path, 0)(time, w)
    slope = torch.func.jacrev(path, 1)(time, w)
    curve = torch.func.jacrev(torch.func.jacrev(path, 1), 1)(time, w).diagonal(dim1=1, dim2=2).sum(1)
    g = process.noise_field(x, time)[0]
    field = g if g.ndim == 2 else torch.diag(g)
    torch.testing.assert_close(slope, field, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(slope_t + 0.5 * curve, process.ito_drift(x, time)[0], rtol=1e-10, atol=1e-10)


def fokker_planck(
    process: SDE, log_density: Callable[[Tensor, float], Tensor], x: Tensor, t: float, step: float = 2e-3
) -> float:
    """Largest |p_t + (f p)_x - (g^2 p)_xx/2| over x, (n,), against the size of its terms; sixth differences.

    log_density: (x of shape (n, 1), t) -> (n,). The process is scalar, Ito.
    """

    def parts(y: Tensor, s: float) -> tuple[Tensor, Tensor, Tensor]:
        rows, time = y[:, None], torch.tensor(s, dtype=F64)
        p = torch.exp(log_density(rows, s))
        return p, process.drift(rows, time)[:, 0] * p, process.noise_field(rows, time)[:, 0] ** 2 * p

    offsets = range(-3, 4)
    flux = [parts(x + k * step, t)[1] for k in offsets]
    spread = [parts(x + k * step, t)[2] for k in offsets]
    density = [parts(x, t + k * step)[0] for k in offsets]
    terms = (
        sum(c * v for c, v in zip(FIRST, density, strict=True)) / step,
        sum(c * v for c, v in zip(FIRST, flux, strict=True)) / step,
        -0.5 * sum(c * v for c, v in zip(SECOND, spread, strict=True)) / step**2,
    )
    return float(sum(terms).abs().max() / sum(v.abs() for v in terms).max())


def cdf_is_integral(law: Any, x: Tensor, rtol: float = 1e-8, step: float = 1e-3) -> None:
    """The derivative of the cdf is the density, by sixth differences; x: (n, 1), the law of n equal rows."""
    slope = sum(c * law.cdf(x + k * step) for k, c in zip(range(-3, 4), FIRST, strict=True)) / step
    torch.testing.assert_close(slope[:, 0], torch.exp(law.log_prob(x)), rtol=rtol, atol=1e-9)


def moments_are_integrals(law: Any, low: float, high: float, panels: int = 400, rtol: float = 1e-8) -> None:
    """Mass 1, mean and variance of the density by Gauss-Legendre panels on [low, high].

    law: n -> the law of n equal rows (n, 1).
    """
    import numpy as np

    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(8))
    half = 0.5 * (high - low) / panels
    centres = low + half * (2 * torch.arange(panels, dtype=F64) + 1)
    x, w = (centres[:, None] + half * nodes).reshape(-1), (half * weights).repeat(panels)
    p = w * torch.exp(law(len(x)).log_prob(x[:, None]))
    mean, variance = law(1).mean.reshape(()), law(1).variance.reshape(())
    assert abs(float(p.sum()) - 1) < rtol
    torch.testing.assert_close((p * x).sum(), mean, rtol=rtol, atol=rtol)
    torch.testing.assert_close((p * (x - mean) ** 2).sum(), variance, rtol=rtol, atol=rtol)


def kolmogorov(x: Tensor, cdf: Callable[[Tensor], Tensor]) -> float:
    """sqrt(n) sup |F_n - F| of samples (n,), to be compared with `KOLMOGOROV`."""
    level = cdf(x.sort().values)
    n = len(x)
    grid = torch.arange(n, dtype=F64) / n
    gap = torch.maximum((level - grid).abs().max(), (level - grid - 1.0 / n).abs().max())
    return float(gap) * math.sqrt(n)


def within(x: Tensor, mean: Any, sigmas: float = 5.0) -> None:
    """The mean over the rows, within 5 standard errors: false alarm 6e-7 for each element."""
    mean = torch.as_tensor(mean, dtype=x.dtype)
    error = x.std(0) / math.sqrt(len(x))
    assert bool(((x.mean(0) - mean).abs() <= sigmas * error + 1e-12).all()), (x.mean(0) - mean) / error


def brownian(shape: tuple[int, ...], t: float, steps: int, seed: int) -> Tensor:
    """W at t, as `solve` with this seed and equal steps draws it."""
    like = torch.empty(shape, dtype=F64)
    ids, noise = torch.arange(shape[0]), sk.Philox(seed)
    h = t / steps
    return math.sqrt(h) * sum(noise.normal(k, like, ids) for k in range(steps))


def solved(
    process: SDE, x0: Tensor, t: float, steps: int, seed: int, solver: str = "euler-maruyama"
) -> Tensor:
    """The state at t by a solver."""
    return sk.solve(process, x0, (0.0, t), steps=steps, seed=seed, solver=solver).x
