r"""Trigonometric multistep samplers: predictor, one evaluation, free corrector.

With z = x/alpha, rho = sigma/alpha, a scale c and the denoiser D,

    S = sqrt(c^2 + rho^2),  phi = atan2(rho, c),  y = z/S,  F = S/(rho c) (D - (c/S)^2 z),
    dy/dphi = -F    exactly, on the probability flow.

F is the normalised v-prediction (Karras et al. 2022, equation 7; Lu and Song 2024). In x-space, with
N = sqrt(alpha^2 c^2 + sigma^2) = alpha S, everything is finite at alpha = 0:

    y = x/N,   F = N/(sigma c) D - alpha c/(sigma N) x.

One step from node i to i + 1:
    1. predict   p = N' (y_i - sum_j w_j F_j)   with the newest nodes up to i;
    2. evaluate  D' = D(p), the step's only network call;
    3. correct   x' = N' (y_i - sum_j w'_j F_j) with node i + 1 among the nodes, F' from (p, D');
    4. F_{i+1} is recomputed from (x', D'), without another call.
The last step is not corrected. A step to sigma' = 0 gives clean data: x' = alpha' D.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from torch import Tensor

from sdekit._math import exp, expm1, log1p, sqrt, table, value
from sdekit._typing import Number
from sdekit.errors import check_count
from sdekit.samplers.base import Path, Sampler, move
from sdekit.samplers.grids import Grid
from sdekit.samplers.multistep import spaced
from sdekit.samplers.plan import Instruction, combine, state
from sdekit.samplers.weights import kernel, lagrange

__all__ = ["KernelQuadrature", "TrigAdams", "Trigonometric", "expected_error", "kernel_nodes"]

Rule: TypeAlias = "tuple[int, tuple[int, ...]]"


@dataclass(frozen=True)
class Trigonometric(Sampler):
    """The recipe; a subclass gives the scale c, the number of nodes and the weights of a step."""

    uses_data: ClassVar[bool] = True
    #: Whether the node at rho = infinity may serve as history.
    uses_infinite_node: ClassVar[bool] = True

    def scale(self, path: Path) -> float:
        raise NotImplementedError

    def history(self, path: Path) -> int:
        """Nodes of the predictor."""
        raise NotImplementedError

    def behind(self, path: Path) -> int:
        """Nodes of the corrector beside the new one."""
        return self.history(path) - 1

    def stochasticity(self, path: Path) -> float:
        """eta: 0 is the probability flow (see `sdekit.samplers.gaussian_split` for the rest)."""
        return 0.0

    def quadrature(
        self, path: Path, c: float, phi: Tensor, rho: Tensor, width: Tensor, ends: tuple[Tensor, Tensor]
    ) -> Tensor:
        """(m, k) weights of m steps with k nodes each: phi, rho (m, k); width and the ends' rho (m,)."""
        raise NotImplementedError

    def weights(self, path: Path, rules: Sequence[Rule], c: float) -> list[Sequence[Number]]:
        """For each rule (i, nodes) the weights of F at ``nodes`` over the step from i to i + 1."""
        kept = [
            tuple(j for j in nodes if self.uses_infinite_node or path.rho[j] != math.inf) or nodes
            for _, nodes in rules
        ]
        found: list[Sequence[Number]] = [()] * len(rules)
        for size in {len(nodes) for nodes in kept}:
            group = [k for k, nodes in enumerate(kept) if len(nodes) == size]
            steps = [rules[k][0] for k in group]
            width = table([path.angle(i + 1, i, c) for i in steps])
            w = self.quadrature(
                path,
                c,
                table([[path.angle(j, i, c) for j in kept[k]] for k, i in zip(group, steps, strict=True)]),
                table([[path.rho[j] for j in kept[k]] for k in group]),
                width,
                (table([path.rho[i] for i in steps]), table([path.rho[i + 1] for i in steps])),
            )
            rows: list[Sequence[Number]] = list(w) if w.requires_grad else w.tolist()
            for k, row in zip(group, rows, strict=True):
                # A node that was dropped is the oldest: its weight is zero.
                found[k] = [*row, *[0.0] * (len(rules[k][1]) - size)]
        return found

    def recipe(self, path: Path) -> Iterator[Instruction]:
        c, eta = self.scale(path), self.stochasticity(path)
        k, m = self.history(path), self.behind(path)
        old = [spaced(i, max(k, m), lambda a, b: path.angle(a, b, c)) for i in range(path.steps)]
        noisy = path.steps - int(value(path[path.steps].sigma) == 0)
        predictors = self.weights(path, [(i, old[i][:k]) for i in range(noisy)], c)
        correctors = self.weights(path, [(i, (i + 1, *old[i][:m])) for i in range(path.steps - 1)], c)
        yield path.evaluate("D[0]", state(0), 0)
        yield _normalised("F[0]", path, 0, state(0), "D[0]", c)
        for i in range(path.steps):
            history = [f"F[{j}]" for j in old[i]]
            if i == noisy:
                yield move(path[i], path[i + 1], state(i), f"D[{i}]", state(i + 1))
                return
            if i + 1 == path.steps:
                yield _advance(state(i + 1), path, i, predictors[i], history[:k], c, eta)
                return
            guess, denoised, fresh = f"p[{i + 1}]", f"D[{i + 1}]", f"P[{i + 1}]"
            yield _advance(guess, path, i, predictors[i], history[:k], c, eta)
            yield path.evaluate(denoised, guess, i + 1)
            yield _normalised(fresh, path, i + 1, guess, denoised, c)
            yield _advance(state(i + 1), path, i, correctors[i], [fresh, *history[:m]], c, eta)
            yield _normalised(f"F[{i + 1}]", path, i + 1, state(i + 1), denoised, c)


def _advance(
    out: str, path: Path, i: int, weights: Sequence[Number], values: Sequence[str], c: float, eta: float
) -> Instruction:
    """N' ((u'/u)^(eta^2/2) x/N - sum_j w_j F_j + sqrt(1 - (u'/u)^(eta^2)) xi), u = (N/alpha)^2."""
    grow = path.norm(i + 1, c)
    keep, noise = _decay(path, i, c, eta)
    terms = [(-grow * w, name) for w, name in zip(weights, values, strict=True)]
    return combine(out, [(grow * keep / path.norm(i, c), state(i)), *terms], [(grow * noise, i)])


def _decay(path: Path, i: int, c: float, eta: float) -> tuple[Number, Number]:
    """(u'/u)^(eta^2/2) and sqrt(1 - (u'/u)^(eta^2)), by 1 - u'/u = v/N^2 without cancellation."""
    if eta == 0:
        return 1.0, 0.0
    if path[i].alpha == 0:
        return 0.0, 1.0
    change = eta * eta * log1p(-path.back(i, i + 1)[1] / path.norm(i, c) ** 2)
    return exp(change / 2), sqrt(-expm1(change))


def kernel_nodes(path: Path) -> int:
    """Nodes of the kernel's predictor: a sixth pays where steps are small."""
    return 5 if path.steps < 40 else 6


def expected_error(path: Path) -> float:
    """Relative error to expect of F: 0.03 where the network's error is amplified; else 0.003, falling with
    the square of the number of intervals from 20 on, where samples shall be better than the network.
    """
    return 0.03 if path.amplified else 0.003 / max(1.0, path.steps / 20) ** 2


def _normalised(out: str, path: Path, i: int, x: str, denoised: str, c: float) -> Instruction:
    """F = N/(sigma c) D - alpha c/(sigma N) x."""
    _, alpha, sigma, *_ = path[i]
    norm = path.norm(i, c)
    return combine(out, [(norm / (sigma * c), denoised), (-alpha * c / (sigma * norm), x)])


@dataclass(frozen=True)
class TrigAdams(Trigonometric):
    """Variable-step Adams predictor-corrector in phi (order p = 4; 3 below 6 evaluations).

    nodes: how many the predictor and the corrector use, 1 to 8, which is the order; None takes 4, or 3 on
    fewer than 6 intervals. The order rises 1, 2, 3, ... with the history.
    """

    name: ClassVar[str] = "trig-adams"
    order: ClassVar[float] = 4
    reference: ClassVar[str] = "sdekit; coordinate of Lu and Song 2024 (TrigFlow)"
    default_grid: ClassVar[Grid] = Grid("quantile-narrow")
    exact_for: ClassVar[frozenset[str]] = frozenset({"normal"})

    nodes: int | None = None

    def __post_init__(self) -> None:
        if self.nodes is not None and check_count(self.nodes, "nodes") > 8:
            raise ValueError(f"nodes must be at most 8, got {self.nodes}.")
        if self.nodes is not None:
            object.__setattr__(self, "order", self.nodes)

    def scale(self, path: Path) -> float:
        return path.data_std

    def history(self, path: Path) -> int:
        if self.nodes is not None:
            return self.nodes
        return 3 if path.steps < 6 else 4

    def quadrature(
        self, path: Path, c: float, phi: Tensor, rho: Tensor, width: Tensor, ends: tuple[Tensor, Tensor]
    ) -> Tensor:
        return lagrange(phi, width)


@dataclass(frozen=True)
class KernelQuadrature(Trigonometric):
    """Bayesian quadrature of F with the covariance of `weights.features`; the default sampler.

    c = sqrt(s s2). Large gaps and noisy nodes lose weight by themselves; on fine grids the weights tend
    to those of Adams, with 5 nodes to predict (6 from 40 intervals on) and 6 to correct. noise: relative
    error expected of the network, None for `expected_error`; kappa: weight of the Gaussian-data term.
    """

    name: ClassVar[str] = "kernel-quadrature"
    uses_infinite_node: ClassVar[bool] = False
    order: ClassVar[float] = 5
    reference: ClassVar[str] = "sdekit; Bayesian quadrature after O'Hagan 1991"
    default_grid: ClassVar[Grid] = Grid("quantile")
    exact_for: ClassVar[frozenset[str]] = frozenset({"normal"})

    noise: float | None = None
    kappa: float = 1.0

    def scale(self, path: Path) -> float:
        return math.sqrt(path.data_std * path.data_spread)

    def history(self, path: Path) -> int:
        return kernel_nodes(path)

    def behind(self, path: Path) -> int:
        return 5

    def quadrature(
        self, path: Path, c: float, phi: Tensor, rho: Tensor, width: Tensor, ends: tuple[Tensor, Tensor]
    ) -> Tensor:
        if phi.shape[-1] == 1:
            return width[:, None]
        noise = expected_error(path) if self.noise is None else self.noise
        s, s2 = path.data_std, path.data_spread
        return kernel(phi, rho, width, *ends, c=c, s=s, s2=s2, noise=noise, kappa=self.kappa)
