"""Peer: one sampler of another library on one grid; Problem: what it is given to solve.

Every Gaussian diffusion is the same problem in z = x / alpha at noise level rho = sigma / alpha, where
z = x0 + rho eps. There D(z, rho) = E[x0 | z] is all that a sampler needs, so that one written for
x0 + sigma eps, for alpha^2 + sigma^2 = 1 or for the rectified flow runs on every process.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

import sdekit as sk
from benchmarks.peers.grids import Layout, times

__all__ = ["Method", "Missing", "Peer", "Problem", "available", "every"]

PACKAGES = {"diffusers": "diffusers", "k-diffusion": "k_diffusion", "azula": "azula"}


class Missing(ImportError):
    """A library of the comparison is not installed."""

    def __init__(self, library: str) -> None:
        super().__init__(f"{library} is not installed. Next: `make peers-env`, then .venv-peers/bin/python.")


def available() -> list[str]:
    """Which of the libraries are installed."""
    return [library for library, package in PACKAGES.items() if find_spec(package)]


class Problem:
    """D(z, rho) of a model and the grid to solve it on, with a count of the evaluations.

    rho: (n + 1,) float64 noise levels, falling. between(f): levels inside the intervals.
    """

    def __init__(self, model: sk.Denoiser, layout: Layout, n: int) -> None:
        self.model, self.process, self.n, self.layout = model, model.process, n, layout
        self.times = times(layout, model, n)
        self.rho: Tensor = self.process.rho(self.times)
        if not bool(torch.isfinite(self.rho).all()):
            raise ValueError(
                f"{self.process!r} has alpha = 0 at t = {float(self.times[0]):g}, where z = x / alpha is "
                f"infinite. Next: a process with alpha > 0 (VP, VE, EDM)."
            )
        self._time = dict(zip(self.rho.tolist(), self.times.tolist(), strict=True))
        self.evaluations = 0
        self.dtype = torch.get_default_dtype()

    @property
    def halves(self) -> Tensor:
        """(n,) noise levels half-way along the grid's own parameter."""
        level: Tensor = self.process.rho(times(self.layout, self.model, 2 * self.n)[1::2])
        return level

    def x0(self, z: Tensor, rho: float | Tensor) -> Tensor:
        """D(z, rho), one evaluation. z: (B, *event); rho: a number, or one value for all rows."""
        level = float(rho.reshape(-1)[0]) if isinstance(rho, Tensor) else rho
        t = self._time.get(level)
        if t is None:
            t = float(self.process.t_of_rho(level))
        self.evaluations += 1
        with _default_dtype(self.dtype):
            return self.model.x0(float(self.process.alpha(t)) * z, t)


@dataclass(frozen=True)
class Method:
    """A sampler of a library.

    solve(problem, z): from z at rho[0] to z at rho[-1]. steps(nfe): the most intervals that need at most
    that many evaluations. fewest: intervals below which the library has no run. own_grid: the one grid
    that the sampler makes for itself, or None.
    """

    sampler: str
    solve: Callable[[Problem, Tensor], Tensor]
    steps: Callable[[int], int] = lambda nfe: nfe
    fewest: int = 1
    own_grid: str | None = None


def every(evaluations: int) -> Callable[[int], int]:
    """steps(nfe) of a method with so many evaluations an interval."""
    return lambda nfe: nfe // evaluations


@dataclass(frozen=True)
class Peer:
    """One sampler of another library on one grid."""

    library: str
    method: Method
    grid: str
    layout: Layout

    @property
    def sampler(self) -> str:
        """The library's name of the sampler, with its options."""
        return self.method.sampler

    @property
    def name(self) -> str:
        """library: sampler on grid."""
        return f"{self.library}: {self.sampler} on {self.grid}"

    def run(self, model: sk.Denoiser, x_start: Tensor, nfe: int) -> Tensor | None:
        """x at t_min from x_start at t_max, with the most steps that nfe evaluations allow.

        x_start: (B, *event) float64. Noise comes from torch's global generator. None where the library has
        no run of so few evaluations. Raises `Missing` where the library is not installed, ValueError where
        alpha(t_max) = 0.
        """
        n = self.method.steps(nfe)
        if n < max(self.method.fewest, 1):
            return None
        x, evaluations = self.solve(model, x_start, n)
        if evaluations > nfe:
            raise AssertionError(f"{self.name} used {evaluations} evaluations, {nfe} were allowed.")
        return x

    def solve(self, model: sk.Denoiser, x_start: Tensor, n: int) -> tuple[Tensor, int]:
        """(x at the grid's end from x_start at its start in n intervals, the evaluations it took)."""
        problem = Problem(model, self.layout, n)
        alpha = model.process.alpha(problem.times[[0, -1]])
        with _quiet():
            z = self.method.solve(problem, x_start / alpha[0])
        return alpha[1] * z.to(x_start.dtype), problem.evaluations

    def __repr__(self) -> str:
        return f"Peer({self.name})"


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """float64 by default in the library's code (not in the network's), no gradients, no warnings."""
    with _default_dtype(torch.float64), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield
