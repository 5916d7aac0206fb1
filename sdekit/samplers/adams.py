r"""Adams-Bashforth on eps: LMS, improved PNDM and DEIS, which differ in the variable of the polynomial.

With z = x/alpha, rho = sigma/alpha, lambda = -ln rho, the flow is dz/drho = eps and a step is

    x' = alpha' (x/alpha + sum_j w_j eps_j),   w_j = \int_rho^rho' L_j drho,

L_j the Lagrange basis on the newest nodes, polynomials in rho (`LMS`, DEIS form "rho"), in lambda (`IPNDM`,
DEIS form "lambda") or in t (DEIS form "t"). Each has sum_j w_j = rho' - rho. The order rises 1, 2, 3, ...
with the history; nodes of infinite lambda are no history, and a step to or from one is of first order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from sdekit._math import table
from sdekit._typing import Number
from sdekit.errors import check_count, unknown_name
from sdekit.samplers.base import Path, Sampler
from sdekit.samplers.grids import Grid
from sdekit.samplers.multistep import exponential_weights, grouped, newest
from sdekit.samplers.plan import Instruction, state
from sdekit.samplers.stages import first_order, transfer, width
from sdekit.samplers.weights import lagrange, lagrange_basis

__all__ = ["DEIS", "IPNDM", "LMS", "check_compat", "constant_weights", "lambda_weights"]

Rules: TypeAlias = "Sequence[tuple[int, tuple[int, ...]]]"

_GAUSS = tuple(torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(16))

CONSTANT = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""Adams-Bashforth weights of equal steps, newest first."""


def rho_weights(path: Path, rules: Rules) -> list[Sequence[Number]]:
    r"""\int L_j drho, L_j polynomials in rho."""
    rho = path.rho

    def weights(ks: list[int]) -> Tensor:
        nodes = [[rho[j] - rho[rules[k][0]] for j in rules[k][1]] for k in ks]
        return lagrange(table(nodes), table([rho[rules[k][0] + 1] - rho[rules[k][0]] for k in ks]))

    return grouped(rules, weights)


def lambda_weights(path: Path, rules: Rules) -> list[Sequence[Number]]:
    r"""\int L_j drho = -rho' \int_0^h e^{h - u} L_j(u) du, L_j polynomials in lambda."""
    found = exponential_weights(path, rules, -1.0)
    return [[-path.rho[i + 1] * w for w in row] for (i, _), row in zip(rules, found, strict=True)]


def time_weights(path: Path, rules: Rules) -> list[Sequence[Number]]:
    r"""\int L_j drho, L_j polynomials in t: Gauss-Legendre in lambda, on panels of at most 2."""
    assert path.process is not None, "polynomials in t need the process"
    process, lam = path.process, path.lam

    def weights(ks: list[int]) -> Tensor:
        steps = [rules[k][0] for k in ks]
        start, end = table([lam[i] for i in steps]), table([lam[i + 1] for i in steps])
        h = end - start
        panels = max(1, math.ceil(float(h.detach().abs().max()) / 2))
        x, mass = _GAUSS
        u = ((torch.arange(panels)[:, None] + (x + 1) / 2) / panels).reshape(-1)
        points = start[:, None] + h[:, None] * u
        drho = -torch.exp(-points) * h[:, None] * (mass / (2 * panels)).repeat(panels)
        times = process.t_of_half_log_snr(points.reshape(-1)).reshape(points.shape)
        origin = table([path[i].t for i in steps])[:, None]
        nodes = table([[path[j].t for j in rules[k][1]] for k in ks])
        return (drho[:, :, None] * lagrange_basis(nodes - origin, times - origin)).sum(1)

    return grouped(rules, weights)


def constant_weights(path: Path, rules: Rules) -> list[Sequence[Number]]:
    """(rho' - rho) times the weights of equal steps."""
    return [
        [width(path[i], path[i + 1]) * b for b in CONSTANT[len(nodes)]] if nodes else [] for i, nodes in rules
    ]


def check_compat(compat: str | None) -> None:
    """None or "published". Raises UnknownNameError."""
    if compat not in (None, "published"):
        raise unknown_name("compat", compat, ("published",))


class _Adams(Sampler):
    """The recipe; a subclass gives the number of nodes and the weights."""

    exact_for: ClassVar[frozenset[str]] = frozenset({"point"})

    def history(self) -> int:
        raise NotImplementedError

    def weights(self, path: Path, rules: Rules) -> list[Sequence[Number]]:
        raise NotImplementedError

    def recipe(self, path: Path) -> Iterator[Instruction]:
        rules = [(i, newest(path, i, self.history())) for i in range(path.steps)]
        for (i, nodes), w in zip(rules, self.weights(path, rules), strict=True):
            if not nodes:
                yield from first_order(path, path[i], path[i + 1], state(i), f"[{i}]", state(i + 1))
                continue
            yield path.evaluate(f"e[{i}]", state(i), i, "eps")
            history = [(c, f"e[{j}]") for c, j in zip(w, nodes, strict=True)]
            yield transfer(path[i], path[i + 1], state(i), history, state(i + 1))


def _check_nodes(nodes: int, most: int = 4) -> None:
    if check_count(nodes, "nodes") > most:
        raise ValueError(f"nodes must be at most {most}, the order of the method, got {nodes}.")


@dataclass(frozen=True)
class LMS(_Adams):
    r"""x' = alpha' (x/alpha + sum_j eps_j \int_rho^rho' L_j(r) dr): linear multistep in rho.

    nodes: 1 to 4, of the polynomial, and the order. Equal to DEIS in its rho form.
    """

    name: ClassVar[str] = "lms"
    order: ClassVar[float] = 4
    reference: ClassVar[str] = "Adams-Bashforth on Karras et al. 2022, equation 1"
    default_grid: ClassVar[Grid] = Grid("karras")

    nodes: int = 4

    def __post_init__(self) -> None:
        _check_nodes(self.nodes)
        object.__setattr__(self, "order", self.nodes)

    def history(self) -> int:
        return self.nodes

    def weights(self, path: Path, rules: Rules) -> list[Sequence[Number]]:
        return rho_weights(path, rules)


@dataclass(frozen=True)
class IPNDM(_Adams):
    r"""x' = (alpha'/alpha) x - sigma' sum_j eps_j \int_0^h e^{h - u} L_j(u) du, h the step in lambda.

    Improved PNDM: Adams-Bashforth from the first step, its order rising with the history, one evaluation a
    step. The weights are those of the steps as they are. compat="published" keeps the constant weights
    1, (3, -1)/2, (23, -16, 5)/12, (55, -59, 37, -9)/24 times rho' - rho, right for equal steps only: of
    order 2 on other grids. nodes: 1 to 4, and otherwise the order.
    """

    name: ClassVar[str] = "ipndm"
    order: ClassVar[float] = 4
    reference: ClassVar[str] = "Liu et al. 2022 (PNDM), equation 12; Zhang and Chen 2023, appendix"

    nodes: int = 4
    compat: str | None = None

    def __post_init__(self) -> None:
        _check_nodes(self.nodes)
        check_compat(self.compat)
        object.__setattr__(self, "order", min(self.nodes, 2) if self.compat else self.nodes)

    def history(self) -> int:
        return self.nodes

    def weights(self, path: Path, rules: Rules) -> list[Sequence[Number]]:
        return (constant_weights if self.compat else lambda_weights)(path, rules)


_FORMS = {"t": time_weights, "rho": rho_weights, "lambda": lambda_weights}


@dataclass(frozen=True)
class DEIS(_Adams):
    r"""x' = alpha' (x/alpha + sum_j eps_j \int L_j drho), L_j of degree r: tAB-DEIS and rhoAB-DEIS.

    degree: r, 0 to 3, as in the paper's tAB0 (DDIM) to tAB3; the order is r + 1. form: "t" (the paper's
    tAB), "rho" (its rhoAB) or "lambda", the variable of the polynomial.
    """

    name: ClassVar[str] = "deis"
    order: ClassVar[float] = 4
    reference: ClassVar[str] = "Zhang and Chen 2023, equations 13 to 15 and 18"
    default_grid: ClassVar[Grid] = Grid("quadratic")

    degree: int = 3
    form: str = "t"

    def __post_init__(self) -> None:
        if check_count(self.degree, "degree", minimum=0) > 3:
            raise ValueError(f"degree must be 0 to 3 (the paper's tAB0 to tAB3), got {self.degree}.")
        if self.form not in _FORMS:
            raise unknown_name("form", self.form, _FORMS)
        object.__setattr__(self, "order", self.degree + 1)

    def history(self) -> int:
        return self.degree + 1

    def weights(self, path: Path, rules: Rules) -> list[Sequence[Number]]:
        return _FORMS[self.form](path, rules)
