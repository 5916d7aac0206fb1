"""Sampler: a recipe that turns a grid into a plan, with its orders and needs declared on the class."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from sdekit._math import atan2, exp, log, sqrt, table, value
from sdekit._typing import Number
from sdekit.errors import check_not_negative
from sdekit.samplers.grids import AMPLIFIED, Grid
from sdekit.samplers.plan import Combine, Evaluate, Instruction, combine, state
from sdekit.score.predictions import Node

if TYPE_CHECKING:
    from sdekit.sde.gaussian import GaussianDiffusion

__all__ = ["Path", "Sampler", "nodes_at"]


def nodes_at(process: GaussianDiffusion, times: Tensor) -> list[Node]:
    """The nodes of ``process`` at float64 times (n,); tensors inside if ``times`` requires grad."""
    columns = [times, *(f(times) for f in (process.alpha, process.sigma, process.dalpha, process.dsigma))]
    rows = torch.stack(columns, dim=1)
    return [Node(*(row.unbind() if rows.requires_grad else row.tolist())) for row in rows]


@dataclass(frozen=True)
class Path:
    """The nodes that a recipe walks, noise first, with the coordinates that the papers use.

    data_std s and data_spread s2: what is known of the data (see `Denoiser`). process: needed by methods
    that evaluate between the nodes. clean: whether the node of clean data follows (``end="clean"``).
    predicts: what the network returns, None where that is not known.
    """

    nodes: tuple[Node, ...]
    data_std: float = 1.0
    data_spread: float = 1.0
    process: GaussianDiffusion | None = None
    clean: bool = False
    predicts: str | None = None

    @property
    def amplified(self) -> bool:
        """Whether the network's error enters D multiplied by rho: it predicts eps or the score."""
        return self.predicts in AMPLIFIED

    def __getitem__(self, i: int) -> Node:
        return self.nodes[i]

    @property
    def steps(self) -> int:
        """Intervals."""
        return len(self.nodes) - 1

    @cached_property
    def lam(self) -> tuple[Number, ...]:
        """Half log-SNR lambda = log(alpha / sigma); -inf at alpha = 0."""
        return tuple(log(alpha) - log(sigma) for _, alpha, sigma, *_ in self.nodes)

    @cached_property
    def rho(self) -> tuple[Number, ...]:
        """Noise-to-signal ratio sigma / alpha; inf at alpha = 0."""
        return tuple(math.inf if alpha == 0 else sigma / alpha for _, alpha, sigma, *_ in self.nodes)

    def angle(self, i: int, j: int, scale: Number) -> Number:
        """phi_i - phi_j with phi = atan2(rho, scale), without cancellation and exact at alpha = 0."""
        (_, ai, si, *_), (_, aj, sj, *_) = self.nodes[i], self.nodes[j]
        return atan2(scale * (si * aj - sj * ai), scale * scale * ai * aj + si * sj)

    def norm(self, i: int, scale: Number) -> Number:
        """N_i = sqrt(alpha^2 scale^2 + sigma^2), so that x / N is the y-form of the state."""
        _, alpha, sigma, *_ = self.nodes[i]
        return sqrt(alpha * alpha * scale * scale + sigma * sigma)

    def back(self, i: int, j: int) -> tuple[Number, Number]:
        """(a, v) of the forward transition from the less noisy node j to node i.

        x_i = a x_j + sqrt(v) xi, a = alpha_i / alpha_j, v = sigma_i^2 - a^2 sigma_j^2. From pure noise,
        alpha_i = 0, neither depends on j.
        """
        (_, ai, si, *_), (_, aj, sj, *_) = self.nodes[i], self.nodes[j]
        if value(ai) == 0:
            return 0.0, si * si
        a = ai / aj
        v = (si - a * sj) * (si + a * sj)
        return a, v if isinstance(v, Tensor) else max(v, 0.0)

    def finite(self, i: int) -> bool:
        """Whether lambda is finite at both ends of the step from i: neither alpha = 0 nor sigma' = 0.

        Where it is not, the first-order step x' = (sigma'/sigma) x + (alpha' - alpha sigma'/sigma) D is the
        exact limit of every exponential integrator (`move`).
        """
        return math.isfinite(value(self.lam[i])) and math.isfinite(value(self.lam[i + 1]))

    def at(self, rho: Sequence[Number]) -> list[Node]:
        """Nodes of the process with sigma / alpha = rho, anywhere within its range."""
        assert self.process is not None, "nodes off the grid need the process"
        times = self.process.t_of_rho(table(rho)) if len(rho) else torch.empty(0, dtype=torch.float64)
        return nodes_at(self.process, times)

    def between(self, fractions: Sequence[float]) -> list[list[Node]]:
        """For each step i the nodes at lambda_i + r (lambda_{i+1} - lambda_i), one for each r in (0, 1).

        A step that is not `finite` has none: an empty list.
        """
        steps = [i for i in range(self.steps) if self.finite(i)]
        rho = [exp(-self.lam[i] - r * (self.lam[i + 1] - self.lam[i])) for i in steps for r in fractions]
        nodes, m = self.at(rho), len(fractions)
        found: list[list[Node]] = [[] for _ in range(self.steps)]
        for k, i in enumerate(steps):
            found[i] = nodes[k * m : (k + 1) * m]
        return found

    def evaluate(self, out: str, x: str, i: int | Node, predicts: str = "x0") -> Evaluate:
        """The model's ``predicts`` on register ``x`` at node i, or at a node off the grid."""
        node = self.nodes[i] if isinstance(i, int) else i
        return Evaluate(out, x, node.t, predicts, node)


@dataclass(frozen=True)
class Sampler:
    """Base of every sampler: a frozen dataclass of its options and a `recipe`.

    Class attributes, verified by tests: ``name``; ``order``, the interior order on smooth problems
    (deterministic samplers: of the map; stochastic ones: weak); ``evaluations`` a step; ``reference``;
    ``stochastic``, whether it injects noise at its defaults; ``needs_finite_drift``, True where f and g
    enter, which are infinite at alpha = 0; ``uses_data``, True where data_std and data_spread enter;
    ``default_grid``; ``exact_for``, the data on which it makes no error at any number of steps: "point" (a
    point mass), "normal" (N(0, I) under a variance-preserving process, sample by sample).
    """

    name: ClassVar[str]
    order: ClassVar[float]
    reference: ClassVar[str]
    evaluations: ClassVar[int] = 1
    stochastic: ClassVar[bool] = False
    needs_finite_drift: ClassVar[bool] = False
    uses_data: ClassVar[bool] = False
    default_grid: ClassVar[Grid] = Grid("uniform-lambda")
    exact_for: ClassVar[frozenset[str]] = frozenset()

    def recipe(self, path: Path) -> Iterator[Instruction]:
        """The instructions from x[0] to x[path.steps]."""
        raise NotImplementedError

    @property
    def cost(self) -> int:
        """Evaluations a step of this object, where an option changes it."""
        return self.evaluations

    def with_eta(self, eta: float | None) -> Sampler:
        """The same sampler at stochasticity ``eta``: 0 probability flow, 1 reverse SDE.

        Raises ValueError where the sampler has no such option, or eta is negative or not finite.
        """
        if eta is None:
            return self
        eta = check_not_negative(eta, "eta")
        if "eta" not in self.__dataclass_fields__:
            fixed = 1.0 if self.stochastic else 0.0
            if eta == fixed:
                return self
            raise ValueError(
                f"{self.name!r} has no eta (it runs at eta = {fixed:g}), got eta = {eta}. Next: "
                f"'gaussian-split', 'ddim' or 'euler-maruyama', which have one."
            )
        from dataclasses import replace

        return replace(self, eta=eta)  # type: ignore[call-arg]


def move(
    here: Node, ahead: Node, x: str, denoised: str, out: str, noise: list[tuple[Number, int]] | None = None
) -> Combine:
    """out = (sigma'/sigma) x + (alpha' - alpha sigma'/sigma) D: DDIM's step between any two nodes."""
    shrink = ahead.sigma / here.sigma
    return combine(out, [(shrink, x), (ahead.alpha - here.alpha * shrink, denoised)], noise or ())


def step(i: int, terms: list[tuple[Number, str]], noise: list[tuple[Number, int]] | None = None) -> Combine:
    """x[i + 1] = sum of terms + noise."""
    return combine(state(i + 1), terms, noise or ())
