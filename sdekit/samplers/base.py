"""Sampler: a recipe that turns a grid into a plan, with its orders and needs declared on the class."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from torch import Tensor

from sdekit._math import atan2, log, sqrt
from sdekit._typing import Number
from sdekit.samplers.grids import Grid
from sdekit.samplers.plan import Combine, Evaluate, Instruction, combine, state
from sdekit.score.predictions import Node

__all__ = ["Path", "Sampler"]


@dataclass(frozen=True)
class Path:
    """The nodes that a recipe walks, noise first, with the coordinates that the papers use.

    data_std s and data_spread s2: what is known of the data (see `Denoiser`).
    """

    nodes: tuple[Node, ...]
    data_std: float = 1.0
    data_spread: float = 1.0

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

        x_i = a x_j + sqrt(v) xi, a = alpha_i / alpha_j, v = sigma_i^2 - a^2 sigma_j^2.
        """
        (_, ai, si, *_), (_, aj, sj, *_) = self.nodes[i], self.nodes[j]
        a = ai / aj
        v = (si - a * sj) * (si + a * sj)
        return a, v if isinstance(v, Tensor) else max(v, 0.0)

    def evaluate(self, out: str, x: str, i: int, predicts: str = "x0") -> Evaluate:
        """The model's ``predicts`` on register ``x`` at node i."""
        return Evaluate(out, x, self.nodes[i].t, predicts, self.nodes[i])


@dataclass(frozen=True)
class Sampler:
    """Base of every sampler: a frozen dataclass of its options and a `recipe`.

    Class attributes, verified by tests: ``name``; ``order``, the interior order on smooth problems
    (deterministic samplers: of the map; stochastic ones: weak); ``evaluations`` a step; ``reference``;
    ``stochastic``, whether it injects noise at its defaults; ``needs_finite_drift``, True where f and g
    enter, which are infinite at alpha = 0; ``uses_data``, True where data_std and data_spread enter;
    ``default_grid``.
    """

    name: ClassVar[str]
    order: ClassVar[int]
    reference: ClassVar[str]
    evaluations: ClassVar[int] = 1
    stochastic: ClassVar[bool] = False
    needs_finite_drift: ClassVar[bool] = False
    uses_data: ClassVar[bool] = False
    default_grid: ClassVar[Grid] = Grid("uniform-lambda")

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
        if not (eta >= 0 and math.isfinite(eta)):
            raise ValueError(f"eta must be finite and >= 0, got {eta}.")
        if "eta" not in self.__dataclass_fields__:
            fixed = 1.0 if self.stochastic else 0.0
            if eta == fixed:
                return self
            raise ValueError(
                f"{self.name!r} has no eta (it runs at eta = {fixed:g}), got eta = {eta}. Next: use 'ddim' "
                f"or 'euler-maruyama', which take any eta."
            )
        from dataclasses import replace

        return replace(self, eta=eta)  # type: ignore[call-arg]


def step(i: int, terms: list[tuple[Number, str]], noise: list[tuple[Number, int]] | None = None) -> Combine:
    """x[i + 1] = sum of terms + noise."""
    return combine(state(i + 1), terms, noise or ())
