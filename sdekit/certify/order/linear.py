r"""Linear test problems, and the exact flow seen through the noise that a step is given.

With X extended by a last entry 1 every linear SDE is homogeneous,

    dX = A(t) X dt + sum_k B_k(t) X dW_k,      A(t) = A0 + cos(2 t) A1,  B_k(t) = B0_k + sin(3 t) B1_k.

Its flow over a step, X(t + h) = Phi X(t), is random and in general has no closed form: it depends on the
whole path of W. What a mean-square error needs is less: Phi projected on the variables xi that the solver is
given, the shifted Legendre coefficients of dW over the step (W and H are the first two):

    xi_kj = h^(-1/2) int e_j(s/h) dW_k,    e_j(u) = (-1)^j sqrt(2 j + 1) P_j(2 u - 1).

By Girsanov's theorem E[Phi exp(eps xi - eps^2/2)] = U(eps) solves an ordinary equation,

    dU/du = (h A + sqrt(h) sum_kj eps_kj e_j(u) B_k) U,

and its power series U = sum_alpha c_alpha eps^alpha gives E[Phi He_alpha(xi)] = alpha! c_alpha, with He_alpha
the Hermite polynomials. `projected` computes the c_alpha by Gauss collocation, degree after degree.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sdekit.sde.base import SDE
from sdekit.sde.langevin import Langevin, UnderdampedLangevin

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["LinearProblem", "hermite", "indices", "moments", "projected", "second_moment"]

DEGREES = {1: 6, 2: 6}
"""Of the Hermite polynomials kept, by the number of variables; 4 beyond. Exact for steps that are polynomials
of at most this degree n in the noise; otherwise E|X - Y|^2 misses terms of size h^(n + 1)/(n + 1)!."""

STAGES = 8
"""Of the Gauss collocation: order 16."""


@dataclass(frozen=True, eq=False)
class LinearProblem:
    """dX = A(t) X dt + sum_k B_k(t) X dW_k, X = (x, 1), from x0 at t = 0 to t = 1, in Ito or Stratonovich
    form.

    drift: A0, A1, (2, d + 1, d + 1); noise: B0_k, B1_k, (2, m, d + 1, d + 1); their last rows are 0.
    noise_type: as in `SDE`; for "additive" and "diagonal" m = d and B_k fills row k alone.
    form: "langevin" or "underdamped": the system is a `Langevin`, or an `UnderdampedLangevin` with states
    (q, v), of this drift and noise; "" for a plain SDE.
    """

    name: str
    noise_type: str
    sde_type: str
    drift: Floats
    noise: Floats
    x0: tuple[float, ...]
    form: str = ""

    @property
    def channels(self) -> int:
        """m, the number of Wiener processes."""
        return int(self.noise.shape[1])

    @property
    def autonomous(self) -> bool:
        """Whether A and B are constant."""
        return not self.drift[1].any() and not self.noise[1].any()

    @property
    def start(self) -> Floats:
        """(x0, 1)."""
        return np.array([*self.x0, 1.0])

    def at(self, t: float) -> tuple[Floats, Floats]:
        """A (d + 1, d + 1) of the Ito form, and B (m, d + 1, d + 1), at time t."""
        a = self.drift[0] + math.cos(2 * t) * self.drift[1]
        b = self.noise[0] + math.sin(3 * t) * self.noise[1]
        return (a + 0.5 * (b @ b).sum(0) if self.sde_type == "stratonovich" else a), b

    @cached_property
    def system(self) -> SDE:
        """The problem as solvers are given it."""
        if self.form == "underdamped":
            slope, shift, friction = -self.drift[0, 1, 0], self.drift[0, 1, 2], -self.drift[0, 1, 1]
            heat = self.noise[0, 1, 1, 2] ** 2 / (2.0 * friction)
            return UnderdampedLangevin(
                lambda q: (shift - slope * q) / heat, friction=float(friction), temperature=float(heat)
            )
        if self.form == "langevin":
            a, shift = (torch.from_numpy(part) for part in (self.drift[0, :-1, :-1], self.drift[0, :-1, -1]))
            return Langevin(
                lambda x: x @ a.T + shift,
                log_prob=lambda x: (0.5 * x * (x @ a.T) + x * shift).sum(1),
            )
        return _System(self)


class _System(SDE):
    def __init__(self, problem: LinearProblem) -> None:
        self._problem = problem
        matrix = problem.noise_type in ("commutative", "general")
        super().__init__(
            noise_type=problem.noise_type,
            sde_type=problem.sde_type,
            noise_dim=problem.channels if matrix else None,
        )

    def drift(self, x: Tensor, t: Any) -> Tensor:
        return _affine(x, self._problem.drift, torch.cos(2 * torch.as_tensor(t)))

    def diffusion(self, x: Tensor, t: Any) -> Tensor:
        fields = self._problem.noise
        if self.noise_type in ("additive", "diagonal"):  # B_k fills row k alone
            fields = fields.sum(axis=1, keepdims=True)
        profile = torch.sin(3 * torch.as_tensor(t))
        columns = [_affine(x, fields[:, k], profile) for k in range(fields.shape[1])]
        return torch.stack(columns, dim=-1) if self.noise_dim is not None else columns[0]


def _affine(x: Tensor, pair: Floats, profile: Tensor) -> Tensor:
    """(C0 + profile C1) (x, 1) without its last entry; profile of shape () or (B,)."""
    first, second = (torch.as_tensor(c[:-1], dtype=x.dtype) for c in pair)
    parts = [x @ c[:, :-1].T + c[:, -1] for c in (first, second)]
    return parts[0] + profile.to(x).reshape(-1, 1) * parts[1]


# -- the flow --------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _gauss() -> tuple[Floats, Floats, Floats]:
    """Nodes u_i on [0, 1], weights w_i, and Q_ij = int_0^(u_i) l_j, l_j the Lagrange basis."""
    x, w = np.polynomial.legendre.leggauss(STAGES)
    basis = np.linalg.inv(np.polynomial.legendre.legvander(x, STAGES - 1))
    below = np.stack([np.polynomial.legendre.legval(x, c) for c in _antiderivatives()], axis=1)
    return (x + 1) / 2, w / 2, 0.5 * below @ basis


def _antiderivatives() -> list[Floats]:
    return [np.asarray(np.polynomial.legendre.legint(row, lbnd=-1.0)) for row in np.eye(STAGES)]


def _collocate(fields: Floats, sources: Floats, start: Floats) -> tuple[Floats, Floats]:
    """Y' = F(u) Y + g(u), Y(0) = start on [0, 1]: Y at the nodes (s, N, M) and at 1 (N, M).

    fields: (s, N, N); sources: (s, N, M) at the nodes.
    """
    _, w, q = _gauss()
    s, n = fields.shape[:2]
    system = np.eye(s * n) - np.einsum("ab,bij->aibj", q, fields).reshape(s * n, s * n)
    right = start + np.einsum("ab,bim->aim", q, sources)
    inside = np.linalg.solve(system, right.reshape(s * n, -1)).reshape(s, n, -1)
    return inside, start + np.einsum("b,bim->im", w, np.einsum("bij,bjm->bim", fields, inside) + sources)


def _coefficients(problem: LinearProblem, t: float, h: float) -> tuple[Floats, Floats]:
    """A (s, N, N) and B (s, m, N, N) at the collocation nodes of [t, t + h]."""
    pairs = [problem.at(t + h * u) for u in _gauss()[0].tolist()]
    return np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs])


@lru_cache(maxsize=64)
def indices(dimension: int) -> tuple[tuple[int, ...], ...]:
    """Multi-indices alpha up to the degree kept, by degree."""
    degree = DEGREES.get(dimension, 4)
    found = itertools.product(range(degree + 1), repeat=dimension)
    return tuple(sorted((a for a in found if sum(a) <= degree), key=lambda a: (sum(a), a)))


@lru_cache(maxsize=4096)
def projected(problem: LinearProblem, t: float, h: float, normals: int) -> Floats:
    """c_alpha = E[Phi He_alpha(xi)]/alpha! over [t, t + h], (len(indices), N, N).

    alpha runs over `indices(m normals)`, xi_kj at position j m + k.
    """
    a, b = _coefficients(problem, t, h)
    s, m, n = b.shape[:3]
    u = _gauss()[0]
    legendre = np.polynomial.legendre.legvander(2 * u - 1, normals - 1)
    signs = [(-1) ** j * math.sqrt(2 * j + 1) for j in range(normals)]
    drive = math.sqrt(h) * np.einsum("sj,j,skab->jksab", legendre, signs, b).reshape(normals * m, s, n, n)
    alphas = indices(m * normals)
    inside: dict[tuple[int, ...], Floats] = {}
    ends = np.empty((len(alphas), n, n))
    for degree, group in itertools.groupby(enumerate(alphas), key=lambda pair: sum(pair[1])):
        members = list(group)
        if degree == 0:
            sources, start = np.zeros((s, n, n)), np.eye(n)
        else:
            sources = np.concatenate([_source(alpha, drive, inside) for _, alpha in members], axis=2)
            start = np.zeros((n, n * len(members)))
        values, end = _collocate(h * a, sources, start)
        for k, (at, alpha) in enumerate(members):
            inside[alpha], ends[at] = values[:, :, k * n : (k + 1) * n], end[:, k * n : (k + 1) * n]
    return ends


def _source(alpha: tuple[int, ...], drive: Floats, inside: dict[tuple[int, ...], Floats]) -> Floats:
    """sum_i sqrt(h) e_i B_i c_(alpha - delta_i) at the nodes."""
    parts = []
    for i, power in enumerate(alpha):
        if power:
            lower = (*alpha[:i], power - 1, *alpha[i + 1 :])
            parts.append(drive[i] @ inside[lower])
    total: Floats = np.sum(parts, axis=0)
    return total


def hermite(points: Floats) -> Floats:
    """He_alpha at points (Q, dimension), (Q, len(indices))."""
    alphas = np.array(indices(points.shape[1]))
    single = np.polynomial.hermite_e.hermevander(points, int(alphas.max()))  # (Q, dimension, degree + 1)
    factors = [single[:, i, alphas[:, i]] for i in range(points.shape[1])]
    out: Floats = np.prod(factors, axis=0)
    return out


@lru_cache(maxsize=4096)
def second_moment(problem: LinearProblem, t: float, h: float) -> Floats:
    """E[Phi (x) Phi] over [t, t + h], (N^2, N^2): d/dt = A (x) I + I (x) A + sum_k B_k (x) B_k."""
    a, b = _coefficients(problem, t, h)
    n = a.shape[1]
    eye = np.eye(n)
    fields = np.einsum("sab,cd->sacbd", a, eye) + np.einsum("ab,scd->sacbd", eye, a)
    fields = (fields + np.einsum("skab,skcd->sacbd", b, b)).reshape(len(a), n * n, n * n)
    return _collocate(h * fields, np.zeros((len(a), n * n, n * n)), np.eye(n * n))[1]


@lru_cache(maxsize=64)
def moments(problem: LinearProblem, degree: int) -> Floats:
    """E[X (x) ... (x) X] at t = 1, (N, ..., N): all moments of x up to ``degree``, by scipy's DOP853.

    d/dt E[X^(x)p] = (L(A) + sum_k (L(B_k)^2 - L(B_k^2))/2) E[X^(x)p], L(M) = sum_i M on factor i.
    """
    from scipy.integrate import solve_ivp

    n = len(problem.start)
    eye = np.eye(n**degree)
    lift: Floats = np.zeros((n, n, n**degree, n**degree))
    for i in range(degree):
        outer = eye.reshape(n**i, n, -1, n**degree)
        for row in range(n):
            for column in range(n):
                part = np.zeros((n**i, n, n ** (degree - 1 - i), n**degree))
                part[:, row] = outer[:, column]
                lift[row, column] += part.reshape(n**degree, n**degree)
    lift = lift.reshape(n * n, n**degree, n**degree)

    def lifted(matrix: Floats) -> Floats:
        return np.asarray(np.tensordot(matrix.reshape(-1), lift, axes=1))

    def slope(t: float, v: Floats) -> Floats:
        a, b = problem.at(t)
        out = lifted(a - 0.5 * (b @ b).sum(0)) @ v
        for z in b:
            each = lifted(z)
            out = out + 0.5 * (each @ (each @ v))
        return np.asarray(out)

    v: Floats = problem.start
    for _ in range(degree - 1):
        v = np.multiply.outer(v, problem.start)
    run = solve_ivp(slope, (0.0, 1.0), v.reshape(-1), method="DOP853", rtol=1e-13, atol=1e-13)
    if not run.success:
        raise RuntimeError(f"the reference of {problem.name!r} failed: {run.message}")
    return np.asarray(run.y[:, -1]).reshape((n,) * degree)
