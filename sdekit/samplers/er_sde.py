r"""ER-SDE-Solver: reverse SDEs given by a noise-scale function phi, in the x0-form.

With z = x/alpha and rho = sigma/alpha, every phi whose phi(rho)/rho does not decrease gives a reverse SDE
with the right marginals, d(z/phi) = D d(1/phi) + noise, solved by

    z' = (phi'/phi) z + phi' \int D d(1/phi) + sqrt(rho'^2 - (phi'/phi)^2 rho^2) xi.

phi = rho is the probability flow, phi = rho^2 the reverse SDE of eta = 1. The paper recommends
phi = rho g, g = exp((rho/unit)^0.3) + 10: little noise, most of it early.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sdekit._math import exp, expm1, log1p, sqrt, table
from sdekit._typing import Number
from sdekit.errors import check_count, check_positive, unknown_name
from sdekit.samplers.base import Path, Sampler, step
from sdekit.samplers.grids import Grid
from sdekit.samplers.multistep import grouped, newest
from sdekit.samplers.plan import Instruction, state
from sdekit.samplers.weights import lagrange_basis

__all__ = ["ERSDE"]

_X, _W = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(16))


def _log_growth(a: Number, b: Number) -> Number:
    """ln(g(a) / g(b)), accurate for a near b."""
    top = exp(b**0.3)
    return log1p(top * expm1(a**0.3 - b**0.3) / (top + 10))


def _integrals(nodes: Tensor, first: Tensor, last: Tensor, published: bool) -> Tensor:
    r"""w_j = phi' \int l_j(r) d(1/phi) from r = first (m,) to r = last, Lagrange in r on nodes (m, k)."""
    span = torch.log(first / last)
    panels = max(1, math.ceil(float(span.detach().max())))
    v = ((torch.arange(panels)[:, None] + (_X + 1) / 2) / panels).reshape(-1)
    weight = (_W / 2 / panels).repeat(panels)
    r = first[:, None] * torch.exp(-span[:, None] * v)
    root, top = r**0.3, torch.exp(r**0.3)
    end = last[:, None] * (torch.exp(last[:, None] ** 0.3) + 10)
    decay = end / (r * (top + 10)) * (1 + 0.3 * root * top / (top + 10))  # phi'/phi dln(phi)/dln(r)
    basis = lagrange_basis(nodes, r)
    if published and nodes.shape[1] == 3:
        # Their parabola lacks (rho_i - rho_{i-1}) f_{012} (r - rho_i).
        a, b, c = nodes.unbind(1)
        second = torch.stack([1 / ((a - b) * (a - c)), 1 / ((b - a) * (b - c)), 1 / ((c - a) * (c - b))], 1)
        basis = basis - ((a - b)[:, None] * (r - a[:, None]))[..., None] * second[:, None]
    w: Tensor = ((weight * decay)[..., None] * basis).sum(1) * span[:, None]
    return w


@dataclass(frozen=True)
class ERSDE(Sampler):
    """ER-SDE-Solver-k with k = ``nodes``, 1 to 3: the polynomial in rho through the newest D (see module).

    unit: the rho at which g = e + 10; None takes 2 s, the published function where the data have a standard
    deviation of 1/2. compat = "published" leaves out, for three nodes, the term that their backward
    differences lack.

    Weak order 2 from two nodes on; the noise is small, so that on usual grids three nodes show order 3.
    """

    name: ClassVar[str] = "er-sde"
    order: ClassVar[float] = 2
    reference: ClassVar[str] = "Cui et al. 2023 (ER-SDE-Solver-1, 2, 3)"
    stochastic: ClassVar[bool] = True
    uses_data: ClassVar[bool] = True
    default_grid: ClassVar[Grid] = Grid("karras")
    exact_for: ClassVar[frozenset[str]] = frozenset({"point"})

    nodes: int = 3
    unit: float | None = None
    compat: str | None = None

    def __post_init__(self) -> None:
        if check_count(self.nodes, "nodes") > 3:
            raise ValueError(f"nodes must be at most 3, got {self.nodes}.")
        if self.unit is not None:
            check_positive(self.unit, "unit")
        if self.compat not in (None, "published"):
            raise unknown_name("compat", self.compat, ("published",))
        object.__setattr__(self, "order", min(self.nodes, 2))

    def recipe(self, path: Path) -> Iterator[Instruction]:
        unit = 2 * path.data_std if self.unit is None else self.unit
        rho = [value / unit for value in path.rho]
        rules = [(i, newest(path, i, self.nodes)) for i in range(path.steps)]

        def weights(ks: list[int]) -> Tensor:
            nodes = table([[rho[j] for j in rules[k][1]] for k in ks])
            first, last = table([rho[k] for k in ks]), table([rho[k + 1] for k in ks])
            return _integrals(nodes, first, last, self.compat == "published")

        found: list[Sequence[Number]] = grouped(rules, weights)
        for i, nodes in rules:
            (_, alpha, sigma, *_), (_, ahead, clean, *_) = path[i], path[i + 1]
            yield path.evaluate(f"D[{i}]", state(i), i)
            if not nodes:
                fresh = clean if alpha == 0 else 0.0
                keep = 0.0 if alpha == 0 else clean / sigma
                yield step(i, [(keep, state(i)), (ahead - alpha * keep, f"D[{i}]")], [(fresh, i)])
                continue
            growth = _log_growth(rho[i + 1], rho[i])
            terms = [(ahead * w, f"D[{j}]") for w, j in zip(found[i], nodes, strict=True)]
            noise = clean * sqrt(-expm1(2 * growth))
            yield step(i, [(clean / sigma * exp(growth), state(i)), *terms], [(noise, i)])
