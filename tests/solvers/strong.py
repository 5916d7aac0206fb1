"""What the tests of strong methods share: nonlinear problems whose paths are known, and measured orders."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sdekit as sk
from sdekit.sde import SDE
from sdekit.sde.classic import ArctanDiffusion, DecayingAdditive, SinhDiffusion, TanhDiffusion

F64 = torch.float64
STEPS = (16, 32, 64, 128)


class Known(NamedTuple):
    """An equation, a start, and the state at t as a function of (x0, t, W_t)."""

    system: SDE
    x0: tuple[float, ...]
    solution: Callable[[Tensor, float, Tensor], Tensor]


def stratonovich(sde: SDE) -> SDE:
    """The same process in Stratonovich form."""
    return SDE(
        sde.stratonovich_drift,
        sde.diffusion,
        noise_type=sde.noise_type,
        sde_type="stratonovich",
        noise_dim=sde.noise_dim,
    )


def apply(m: Tensor, x: Tensor) -> Tensor:
    """M x for each row, two dimensions."""
    return x[:, :1] * m[:, 0] + x[:, 1:] * m[:, 1]


class Mixed(SDE):
    """X = R Z, Z two tanh diffusions: nonlinear noise of two motions that commutes and is not diagonal."""

    def __init__(self) -> None:
        self.z = TanhDiffusion(a=0.3, b=0.6)
        self.turn = torch.tensor(((1.0, 0.6), (-0.4, 0.9)), dtype=F64)
        self.back = torch.linalg.inv(self.turn)
        super().__init__(noise_type="commutative", noise_dim=2)

    def drift(self, x: Tensor, t: Any) -> Tensor:
        return apply(self.turn, self.z.drift(apply(self.back, x), t))

    def diffusion(self, x: Tensor, t: Any) -> Tensor:
        return self.turn * self.z.diffusion(apply(self.back, x), t)[:, None, :]

    def correction(self, x: Tensor, t: Any) -> Tensor:
        return apply(self.turn, self.z.correction(apply(self.back, x), t))

    def solution(self, x0: Tensor, t: float, w: Tensor) -> Tensor:
        return apply(self.turn, self.z.solution(apply(self.back, x0), t, w))


def problems() -> dict[str, Known]:
    """Nonlinear noise, drift that grows faster than linearly, time in both coefficients."""
    elementwise: dict[str, tuple[Any, float]] = {
        "tanh": (TanhDiffusion(a=0.3, b=0.6), 0.2),
        "arctan": (ArctanDiffusion(a=0.7), 0.3),
        "sinh": (SinhDiffusion(), 0.1),
        "geometric": (sk.GeometricBrownian(mu=0.4, sigma=0.6), 1.0),
        "decaying": (DecayingAdditive(alpha=0.8, beta=1.0), 1.0),
    }
    found = {name: Known(sde, (start,), sde.solution) for name, (sde, start) in elementwise.items()}
    return {**found, "mixed": Known(Mixed(), (0.02, -0.35), Mixed().solution)}


class Slope(NamedTuple):
    """Observed strong order, its standard error from 8 groups of paths, and the errors."""

    order: float
    error: float
    errors: tuple[float, ...]


def strong_order(
    solver: Any,
    known: Known,
    *,
    paths: int = 800,
    end: float = 1.0,
    seed: int = 3,
    steps: tuple[int, ...] = STEPS,
) -> Slope:
    """Least-squares slope of the RMS distance to the exact path over ``steps``, on one Brownian path each."""
    tree = sk.BrownianTree(seed)
    x0 = torch.tensor([known.x0], dtype=F64).expand(paths, len(known.x0)).contiguous()
    like = x0.new_empty(known.system.noise_shape(x0))
    w = tree.increments(0.0, end, like, torch.arange(paths)).W
    exact = known.solution(x0, end, w)
    squares = []
    for n in steps:
        x = sk.solve(known.system, x0, (0.0, end), steps=n, noise=tree, solver=solver).x
        squares.append((x - exact).square().sum(1))
    return slope_of(squares, steps)


def refined_order(
    solver: Any, sde: SDE, start: float, *, fine: int = 1024, paths: int = 800, seed: int = 5
) -> Slope:
    """The same against a run of 1024 steps by "sra3" on the same path, where no path is known."""
    tree = sk.BrownianTree(seed)
    x0 = torch.full((paths, 1), start, dtype=F64)

    def end(solver: Any, n: int) -> Tensor:
        return sk.solve(sde, x0, (0.0, 1.0), steps=n, noise=tree, solver=solver).x

    exact = end("sra3", 1024)
    return slope_of([(end(solver, n) - exact).square().sum(1) for n in STEPS], STEPS)


def slope_of(squares: list[Tensor], steps: tuple[int, ...]) -> Slope:
    """From squared errors (paths,) at each number of steps."""
    at = torch.tensor([math.log2(n) for n in steps], dtype=F64)
    at = (at - at.mean()) / (at - at.mean()).square().sum()

    def fit(rows: list[Tensor]) -> float:
        return -float((at * torch.stack([0.5 * torch.log2(r.mean()) for r in rows])).sum())

    groups = [fit([s.chunk(8)[k] for s in squares]) for k in range(8)]
    spread = float(torch.tensor(groups).std()) / math.sqrt(8)
    return Slope(fit(squares), spread, tuple(float(s.mean().sqrt()) for s in squares))
