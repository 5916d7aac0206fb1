"""Laws of every kind and their parameters in plain tensors, from which the tests compute on their own."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, distributions

import sdekit as sk
from sdekit.targets import Empirical, Gaussian, GaussianMixture, Target

PROCESSES = [sk.VP(), sk.SubVP(), sk.VE(), sk.Cosine(), sk.EDM(), sk.RectifiedFlow()]
KINDS = [
    "gaussian diagonal",
    "gaussian dense",
    "gaussian low-rank",
    "gaussian stationary",
    "mixture isotropic",
    "mixture diagonal",
    "mixture shared",
    "mixture dense",
    "empirical",
    "empirical weighted",
]


class Law(NamedTuple):
    """``target`` is sum_k w_k N(m_k, C_k), w (K,), m (K, D), C (K, D, D), or should be."""

    target: Target
    w: Tensor
    m: Tensor
    c: Tensor

    def at(self, alpha: float, sigma: float) -> distributions.MixtureSameFamily:
        """The law of alpha x0 + sigma eps over events (D,)."""
        eye = torch.eye(self.m.shape[1], dtype=torch.float64)
        return distributions.MixtureSameFamily(
            distributions.Categorical(probs=self.w),
            distributions.MultivariateNormal(alpha * self.m, alpha**2 * self.c + sigma**2 * eye),
        )

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and covariance (D, D)."""
        mean = self.w @ self.m
        centred = self.m - mean
        return mean, (self.w[:, None, None] * self.c).sum(0) + (self.w[:, None] * centred).T @ centred


def spd(count: int, d: int, generator: torch.Generator) -> Tensor:
    """(count, D, D) with eigenvalues around 1."""
    a = torch.randn(count, d, d, generator=generator, dtype=torch.float64) / d**0.5
    return a @ a.mT + 0.3 * torch.eye(d, dtype=torch.float64)


def law(kind: str, event: tuple[int, ...] = (3,), *, seed: int = 0, bandwidth: float = 0.4) -> Law:
    """One law of ``kind``, 3 components or 20 data."""
    g = torch.Generator().manual_seed(seed)
    d = torch.Size(event).numel()
    eye = torch.eye(d, dtype=torch.float64)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    def positive(*shape: int) -> Tensor:
        return 0.2 + torch.rand(shape, generator=g, dtype=torch.float64)

    family, _, form = kind.partition(" ")
    if kind == "gaussian low-rank":
        m, factor = normal(1, d), normal(d, (d + 1) // 2)
        c = (factor @ factor.T + 0.3 * eye)[None]
        return Law(Gaussian(m[0].reshape(event), low_rank=(factor, 0.3)), torch.ones(1).double(), m, c)
    if kind == "gaussian stationary":
        m = normal(1, d)
        c, spectrum = stationary(normal(2, *event), 0.3)
        return Law(Gaussian(m[0].reshape(event), spectrum=spectrum), torch.ones(1).double(), m, c[None])
    if family == "gaussian":
        m = normal(1, d)
        c = torch.diag_embed(positive(1, d)) if form == "diagonal" else spd(1, d, g)
        mean = m[0].reshape(event)
        spread = {"variance": c[0].diagonal().reshape(event)} if form == "diagonal" else {"cov": c[0]}
        return Law(Gaussian(mean, **spread), torch.ones(1, dtype=torch.float64), m, c)
    if family == "mixture":
        w, m = positive(3), 1.5 * normal(3, d)
        covs: Tensor
        if form == "isotropic":
            covs = positive(3)
            c = covs[:, None, None] * eye
        elif form == "diagonal":
            variances = positive(3, d)
            covs, c = variances.reshape(3, *event), torch.diag_embed(variances)
        elif form == "shared":
            covs = spd(1, d, g)
            c = covs.expand(3, d, d)
        else:
            covs = c = spd(3, d, g)
        return Law(GaussianMixture(w, m.reshape(3, *event), covs), w / w.sum(), m, c)
    y = normal(20, d)
    w = positive(20) if form else torch.ones(20, dtype=torch.float64)
    target = Empirical(y.reshape(20, *event), bandwidth, weights=w if form else None)
    return Law(target, w / w.sum(), y, bandwidth**2 * eye.expand(20, d, d))


def stationary(fields: Tensor, white: float) -> tuple[Tensor, Tensor]:
    """(C (D, D), spectrum): the mean over shifts of v v^T, v the ``fields`` (N, *event), plus white noise.

    C is summed shift by shift; the spectrum is the transform of its column at the origin, r(p) = C(p, 0).
    """
    event = fields.shape[1:]
    channels, height, width = full = (*(1,) * (3 - len(event)), *event)
    cov = white * torch.eye(fields[0].numel(), dtype=torch.float64)
    for v in fields.reshape(-1, *full):
        for a in range(height):
            for b in range(width):
                shifted = v.roll((a, b), (-2, -1)).flatten()
                cov = cov + torch.outer(shifted, shifted) / (len(fields) * height * width)
    blocks = cov.reshape(*full, *full)[:, :, :, :, 0, 0]  # (c, y, x, c')
    spectrum = torch.fft.fft2(blocks.permute(0, 3, 1, 2))
    return cov, spectrum if channels > 1 else spectrum[0, 0].real.reshape(event)


def states(target: Target, n: int, seed: int = 9, dtype: torch.dtype = torch.float64) -> Tensor:
    """n states a few deviations wide."""
    g = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(n, *target.event_shape, generator=g, dtype=torch.float64).to(dtype)


def middle(process: sk.GaussianDiffusion, u: float = 0.5) -> float:
    """A time at a fraction u of the range of ln(sigma / alpha)."""
    low, high = (float(process.half_log_snr(t)) for t in (process.t_max * 0.95, process.t_min))
    return float(process.t_of_half_log_snr(torch.tensor(low + u * (high - low), dtype=torch.float64)))
