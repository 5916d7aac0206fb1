"""Laws with an exact denoiser: Gaussians, mixtures, real data with a small bandwidth, curves, trees."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

import sdekit as sk
from benchmarks import networks

__all__ = ["LAWS", "Law"]


def _count(n: int) -> Tensor:
    return torch.arange(1, n + 1, dtype=torch.float64)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian_flat() -> sk.Gaussian:
    """Variances 1/k, d = 64."""
    return sk.Gaussian(torch.zeros(64), variance=1 / _count(64))


def gaussian_steep() -> sk.Gaussian:
    """Variances 16/k^2, d = 256."""
    return sk.Gaussian(torch.zeros(256), variance=16 / _count(256) ** 2)


def ring() -> sk.GaussianMixture:
    """Eight equal modes of standard deviation 0.1 on the unit circle."""
    angle = 2 * math.pi * _count(8) / 8
    return sk.GaussianMixture(torch.ones(8) / 8, torch.stack([angle.cos(), angle.sin()], 1), 0.01)


def lattice() -> sk.GaussianMixture:
    """Nine modes on a square lattice, weights 1 to 9, standard deviations 0.05 to 0.2."""
    side = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    means = torch.cartesian_prod(side, side)
    return sk.GaussianMixture(_count(9) / 45, means, torch.linspace(0.05, 0.2, 9, dtype=torch.float64) ** 2)


def mixture(modes: int, dimension: int, variance: float) -> sk.GaussianMixture:
    """Equal modes at standard normal means."""
    return sk.GaussianMixture(torch.ones(modes) / modes, _normal(modes, dimension), variance)


def digits() -> sk.Empirical:
    """The first 400 of scikit-learn's digits, in [-1, 1], bandwidth 0.1, d = 64."""
    return sk.Empirical(networks.digits()[0][:400].double(), bandwidth=0.1)


def wine() -> sk.Empirical:
    """scikit-learn's wine, standardised, bandwidth 0.2, d = 13."""
    from sklearn.datasets import load_wine

    x = torch.tensor(load_wine().data, dtype=torch.float64)
    return sk.Empirical((x - x.mean(0)) / x.std(0), bandwidth=0.2)


def moons() -> sk.GaussianMixture:
    """Forty modes of standard deviation 0.05 along two half circles of radius 0.7."""
    angle = math.pi * (_count(20) - 0.5) / 20
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)
    return sk.GaussianMixture(torch.ones(40) / 40, 0.7 * torch.cat([upper, -upper]), 0.05**2)


def roll() -> sk.Empirical:
    """scikit-learn's Swiss roll, 400 points in 3-D divided by 10, bandwidth 0.08."""
    from sklearn.datasets import make_swiss_roll

    x = torch.tensor(make_swiss_roll(400, random_state=0)[0], dtype=torch.float64) / 10
    return sk.Empirical(x - x.mean(0), bandwidth=0.08)


def tree(dimension: int, levels: int) -> sk.GaussianMixture:
    """The leaves of a binary tree whose branches halve and turn at random; deviations 0.04."""
    nodes = torch.zeros(1, dimension, dtype=torch.float64)
    for level in range(levels):
        way = torch.nn.functional.normalize(_normal(len(nodes), dimension, seed=level + 1), dim=1)
        nodes = torch.cat([nodes + way / 2**level, nodes - way / 2**level])
    return sk.GaussianMixture(torch.ones(len(nodes)) / len(nodes), nodes, 0.04**2)


Law = sk.Gaussian | sk.GaussianMixture | sk.Empirical

LAWS: dict[str, tuple[str, Callable[[], Law], tuple[str, ...]]] = {
    "gaussian 1/k d=64": ("gaussian", gaussian_flat, ("VP", "EDM", "RectifiedFlow")),
    "gaussian 16/k^2 d=256": ("gaussian", gaussian_steep, ("VP", "EDM")),
    "ring of 8 d=2": ("mixture", ring, ("VP", "EDM", "RectifiedFlow")),
    "lattice of 9 d=2": ("mixture", lattice, ("VP", "EDM")),
    "mixture of 5 d=16": ("mixture", lambda: mixture(5, 16, 0.05), ("VP", "EDM", "RectifiedFlow")),
    "mixture of 10 d=32": ("mixture", lambda: mixture(10, 32, 0.02), ("VP", "EDM")),
    "digits d=64": ("real", digits, ("VP", "EDM")),
    "wine d=13": ("real", wine, ("VP", "EDM")),
    "moons d=2": ("curve", moons, ("VP", "EDM")),
    "roll d=3": ("curve", roll, ("VP", "EDM")),
    "tree of 16 d=2": ("tree", lambda: tree(2, 4), ("VP", "EDM", "RectifiedFlow")),
    "tree of 32 d=8": ("tree", lambda: tree(8, 5), ("VP", "EDM")),
}
"""Name -> (kind, law, processes)."""
