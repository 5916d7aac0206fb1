"""azula's samplers, on a schedule whose time is the index of the problem's nodes.

azula takes any alpha(t), sigma(t): here those of the process itself at its grid.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.base import Method, Missing, Problem, every

__all__ = ["deterministic", "stochastic"]


@cache
def _library() -> Any:
    if find_spec("azula") is None:
        raise Missing("azula")
    import azula.denoise
    import azula.noise
    import azula.sample

    return azula


def _denoiser(problem: Problem) -> Any:
    library = _library()
    alpha, sigma = (f(problem.times) for f in (problem.process.alpha, problem.process.sigma))

    class Nodes(library.noise.Schedule):  # type: ignore[misc]
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            node = t.round().long()
            return alpha[node], sigma[node]

    class Model(library.denoise.Denoiser):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.schedule = Nodes()

        def forward(self, x_t: Tensor, t: Tensor) -> Any:
            node = int(t.round())
            return library.denoise.DiracPosterior(problem.x0(x_t / alpha[node], problem.rho[node]))

    return Model()


def _run(name: str, **options: Any) -> Callable[[Problem, Tensor], Tensor]:
    def solve(problem: Problem, z: Tensor) -> Tensor:
        cls = getattr(_library().sample, name)
        span = {"start": 0.0, "stop": float(problem.n), "steps": problem.n, "dtype": torch.float64}
        sampler = cls(_denoiser(problem), silent=True, **span, **options)
        ends = problem.process.alpha(problem.times[[0, -1]])
        out: Tensor = sampler(ends[0] * z)
        return out / ends[1]

    return solve


def deterministic() -> list[Method]:
    """Samplers without noise, the multistep ones at orders 2 to 4."""
    methods = [
        Method("DDIM", _run("DDIMSampler")),
        Method("Euler", _run("EulerSampler")),
        Method("Heun", _run("HeunSampler"), every(2)),
        Method("Ito eta=0", _run("ItoSampler", eta=0.0)),
    ]
    for name in ("zAB", "vAB", "zEAB", "xEAB", "REAB"):
        methods += [Method(f"{name}-{p}", _run(f"{name}Sampler", order=p)) for p in (2, 3, 4)]
    return methods


def stochastic() -> list[Method]:
    """Samplers with noise, at their defaults."""
    return [
        Method("DDPM", _run("DDPMSampler")),
        Method("DDIM eta=0.5", _run("DDIMSampler", eta=0.5)),
        Method("Ito", _run("ItoSampler")),
        Method("PC", _run("PCSampler"), every(2)),
        Method("PC delta=0.1", _run("PCSampler", delta=0.1), every(2)),
    ]
