r"""Orders of step functions, measured on problems where both the numerical and the true law are exact.

On a linear problem one step is an affine map with random entries, (x, 1)' = M(xi) (x, 1). Gauss-Hermite nodes
for xi through the step as it is, a black box, give E[M (x) ... (x) M], and iterating them the moments of the
numerical solution. With Phi the exact flow of the same step (`sdekit.certify.order.linear`),

    E[Phi (x) M] = sum_alpha alpha! c_alpha (x) m_alpha,      alpha! m_alpha = E[M He_alpha(xi)],

carries E[X Y^T], hence E|X - Y|^2 on one Brownian motion. No random numbers enter.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sdekit.certify.order import linear
from sdekit.certify.order.linear import LinearProblem
from sdekit.certify.order.problems import FlowProblem, flow_problems, langevin_problems, linear_problems
from sdekit.certify.order.sampler import sampler_rows
from sdekit.certify.order.slopes import OrderRow
from sdekit.certify.order.step import NoiseLaw, Stepper, check_laws, check_step
from sdekit.errors import CapabilityError, check_count
from sdekit.samplers.base import Sampler
from sdekit.samplers.registry import SAMPLERS, as_sampler
from sdekit.sde.gaussian import GaussianDiffusion
from sdekit.solvers.base import NOISE_TYPES, Solver, get
from sdekit.solvers.external import External
from sdekit.solvers.problem import Counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["OrderCertificate", "certify_order"]

MOMENTS = 4
"""Degree of the moments compared: E[x^alpha] for all |alpha| <= 4."""

SDE_STEPS = (16, 32, 64, 128)
ODE_STEPS = {1: (8, 16, 32, 64, 128, 256), 5: (16, 32, 64, 96), 7: (4, 6, 8, 10)}
"""By the least declared order: high orders reach rounding in few steps, which then add little of it."""


@dataclass(frozen=True)
class OrderCertificate:
    """Orders of one method, and the errors behind them.

    weak, strong, deterministic: the least order over the problems of that measure, None where there is none,
    inf where every error is rounding. rows: one `OrderRow` a problem and measure.
    """

    name: str
    rows: tuple[OrderRow, ...]

    @property
    def weak(self) -> float | None:
        """Of all moments up to degree 4; for samplers, of the output's law."""
        return self._least("weak")

    @property
    def strong(self) -> float | None:
        """Of (E|X - Y|^2)^(1/2) at the end, on the same Brownian motion."""
        return self._least("strong")

    @property
    def deterministic(self) -> float | None:
        """Of the distance to the exact flow's end point."""
        return self._least("deterministic")

    def _least(self, measure: str) -> float | None:
        return min((row.order for row in self.rows if row.measure == measure), default=None)

    def __str__(self) -> str:
        titles = ("measure", "problem", "noise", "form", "order", "errors at the two finest steps")
        lines = [titles, *(row.cells() for row in self.rows)]
        widths = [max(len(line[k]) for line in lines) for k in range(len(titles))]
        body = ("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
        return "\n".join([repr(self), *body])

    def __repr__(self) -> str:
        measured = {"weak": self.weak, "strong": self.strong, "deterministic": self.deterministic}
        orders = ", ".join(f"{key}={value:.2f}" for key, value in measured.items() if value is not None)
        return f"OrderCertificate({self.name!r}, {orders}; {len(self.rows)} measurements)"


def certify_order(
    method: str | Solver | Sampler | Callable[..., Tensor],
    *,
    kind: str | None = None,
    noise_types: str | Iterable[str] | None = None,
    sde_types: str | Iterable[str] | None = None,
    laws: Sequence[NoiseLaw] | None = None,
    steps: Sequence[int] | None = None,
    process: GaussianDiffusion | None = None,
) -> OrderCertificate:
    r"""Order p of |error| = O(h^p): weak and mean-square of an SDE step, of an ODE step, or of a sampler.

    On SDEs the problems are linear (additive, diagonal, scalar, commutative, general noise, in Ito and in
    Stratonovich form, with coefficients in time, d = 1 and 2, drift and noise that do not commute), and both
    errors are exact up to quadrature of the step's noise (exact for polynomial steps) and rounding. The
    mean-square error needs only E[flow | W, H], so it holds for non-commuting noise too. Linear problems
    do not see every order condition of a nonlinear one: an order certified here is an upper bound that the
    nonlinear order cannot exceed. ODEs are linear (d = 1 and 2, in time) and nonlinear (d = 3).

    Parameters
    ----------
    method
        A solver's name or object; a sampler's name or object (a name of both means the solver, unless
        ``process`` is given); or ``step(system, x, t, h, *noise)`` -> x at t + h, with x (B, d) float64, t
        of shape (), h a float, the system an `SDE` or `ODE`, and noise tensors of its noise shape:
        W = sqrt(h) xi_0, H = sqrt(h/12) xi_1, K = sqrt(h/720) xi_2, as many as there are ``laws``.
    kind
        "sde" or "ode", for a step function (default "sde") and of two solvers that share a name (default
        "ode").
    noise_types, sde_types
        Which problems; by default what the solver declares, and for a step function all in Ito form.
    laws
        Law of each xi, independent of each other: "normal", "two-point" (-1, 1), "three-point" (0 and
        +-sqrt 3) or (values, probabilities). Default: what the solver declares, one normal for a step
        function. Where one is not normal there is no mean-square error.
    steps
        Numbers of equal steps over [0, 1], at least two, increasing. Samplers: intervals of the grid.
    process
        Of a sampler, VP by default.

    Raises
    ------
    NotAffineError: a step that is not affine on a linear problem (MALA). CapabilityError: no problem fits, or
    the solver hides its steps. ShapeError, NonFiniteError: what a step returned. UnknownNameError,
    ValueError, TypeError: arguments that do not fit.
    """
    if process is not None and not isinstance(process, GaussianDiffusion):
        raise TypeError(
            f"process must be a GaussianDiffusion (VP, VE, EDM, ...) or None, got {type(process).__name__}."
        )
    found = _resolve(method, process, kind)
    counts = None if steps is None else _check_steps(steps)
    if isinstance(found, Sampler):
        if any(value is not None for value in (kind, noise_types, sde_types, laws)):
            raise ValueError(
                f"{found.name!r} is a sampler: kind, noise_types, sde_types and laws are of steps. Next: "
                f"only steps and process; a solver of the same name is meant without process."
            )
        return OrderCertificate(found.name, tuple(sampler_rows(found, process, counts)))
    if isinstance(found, External):
        raise CapabilityError(
            f"{found.name!r} chooses its own steps: it has no step to certify. Next: its package's tests."
        )
    solver = isinstance(found, Solver)
    name = found.name if solver else getattr(found, "__name__", "step")
    kind = kind or (found.kind if solver else "sde")
    if kind not in ("sde", "ode"):
        raise ValueError(f"kind must be 'sde' or 'ode', got {kind!r}.")
    own = (found.laws or ("normal",) * found.normals) if solver else ("normal",)
    given = own if laws is None else check_laws(laws)
    if not solver:
        check_step(found, 0 if kind == "ode" else len(given))
    if kind == "ode":
        declared = max(found.order or 1, 1) if solver else 1
        plan = counts or ODE_STEPS[max(least for least in ODE_STEPS if least <= declared)]
        rows = [_flow_row(found, p, plan) for p in flow_problems()]
        return OrderCertificate(name, tuple(rows))
    wanted = _words(noise_types, found.noise_types if solver else NOISE_TYPES)
    forms = _words(sde_types, found.sde_types if solver else ("ito",))
    rows = []
    for problem in _fitting(found, wanted, forms):
        rows += _sde_rows(Stepper(found, problem, given), counts or SDE_STEPS)
    return OrderCertificate(name, tuple(rows))


def _resolve(method: Any, process: GaussianDiffusion | None, kind: str | None) -> Any:
    if isinstance(method, Sampler):
        return method
    if isinstance(method, str):
        if process is not None:
            return as_sampler(method)
        try:
            return get(method, kind)
        except KeyError:
            if method in SAMPLERS:
                return as_sampler(method)
            raise
    if isinstance(method, Solver) or (isinstance(method, type) and issubclass(method, Solver)):
        return get(method)
    return method


def _words(given: str | Iterable[str] | None, default: Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(default if given is None else given)


def _check_steps(steps: Sequence[int]) -> tuple[int, ...]:
    if isinstance(steps, int):
        raise ValueError(
            f"steps must be two or more increasing counts, got {steps}. Next: (steps, 2 * steps)."
        )
    counts = tuple(check_count(n, "steps") for n in steps)
    if len(counts) < 2 or any(a >= b for a, b in itertools.pairwise(counts)):
        raise ValueError(f"steps must be two or more increasing counts, got {counts}.")
    return counts


def _fitting(method: Any, noise_types: tuple[str, ...], sde_types: tuple[str, ...]) -> list[LinearProblem]:
    """The problems of these types that the solver accepts."""
    fit = [p for p in linear_problems() if p.noise_type in noise_types and p.sde_type in sde_types]
    taken = [p for p in fit if _accepts(method, p)] or [p for p in langevin_problems() if _accepts(method, p)]
    if not taken or not fit:
        raise CapabilityError(
            f"no problem has noise_type in {noise_types} and sde_type in {sde_types}. Next: noise types "
            f"{NOISE_TYPES}, sde types ('ito', 'stratonovich')."
        )
    return taken


def _accepts(method: Any, problem: LinearProblem) -> bool:
    if not isinstance(method, Solver):
        return not problem.form
    x = torch.tensor([problem.x0], dtype=torch.float64)
    try:
        method.init(Counted(problem.system), x, torch.zeros((), dtype=torch.float64))
    except CapabilityError:
        return False
    return True


# -- SDEs ------------------------------------------------------------------------------------------------


def _sde_rows(stepper: Stepper, counts: tuple[int, ...]) -> list[OrderRow]:
    """Weak errors, and mean-square errors where the noise is normal."""
    problem = stepper.problem
    pairs = [_errors(stepper, n) for n in counts]
    tags = (problem.name, problem.noise_type, problem.sde_type)
    rows = [OrderRow("weak", *tags, counts, tuple(w for w, _ in pairs), floor=1e-12)]
    if all(law == "normal" for law in stepper.laws):
        rows.append(OrderRow("strong", *tags, counts, tuple(s for _, s in pairs), floor=2e-7))
    return rows


def _errors(stepper: Stepper, n: int) -> tuple[float, float]:
    """(norm of the differences of moments, root-mean-square distance) at t = 1 after n steps."""
    problem, h = stepper.problem, 1.0 / n
    normal = all(law == "normal" for law in stepper.laws)
    count = len(stepper.laws)
    y = stepper.start
    power = y
    for _ in range(MOMENTS - 1):
        power = np.multiply.outer(power, y)
    x = problem.start
    xx, xy = np.outer(x, x), np.outer(x, y)
    maps, weights, nodes = stepper.maps(0.0, h)
    for k in range(n):
        t = k * h
        if k and not problem.autonomous:
            maps, weights, nodes = stepper.maps(t, h)
        at = 0.0 if problem.autonomous else t
        power = _push(maps, weights, power)
        if normal:
            second = linear.second_moment(problem, at, h)
            flow = linear.projected(problem, at, h, count)
            projections = np.tensordot(weights[:, None] * linear.hermite(nodes), maps, axes=(0, 0))
            xx = (second @ xx.reshape(-1)).reshape(xx.shape)
            xy = np.einsum("aij,jk,alk->il", flow, xy, projections, optimize=True)
    d = len(problem.x0)
    kept = [*range(d), len(y) - 1]
    weak = power[np.ix_(*[kept] * MOMENTS)] - linear.moments(problem, MOMENTS)
    yy = power.reshape(len(y), len(y), -1)[:, :, -1]
    square = sum(xx[i, i] - 2 * xy[i, i] + yy[i, i] for i in range(d))
    return float(np.linalg.norm(weak)), math.sqrt(max(float(square), 0.0))


def _push(maps: Floats, weights: Floats, power: Floats) -> Floats:
    """E[M (x) ... (x) M] applied to a tensor (N, ..., N)."""
    n = power.shape[0]
    out = np.broadcast_to(power.reshape(1, n, -1), (len(maps), n, power.size // n))
    for _ in range(power.ndim):
        # Multiply the first axis, then move it to the end: after a full turn every axis is done.
        out = (maps @ out).reshape(len(maps), n, -1)
        out = np.swapaxes(out, 1, 2).reshape(len(maps), n, -1)
    return np.asarray(np.tensordot(weights, out, axes=1)).reshape(power.shape)


# -- ODEs ------------------------------------------------------------------------------------------------


@torch.no_grad()
def _flow_row(
    method: Solver | Callable[..., Tensor], problem: FlowProblem, counts: tuple[int, ...]
) -> OrderRow:
    errors = tuple(_flow_error(method, problem, n) for n in counts)
    floor = 1e-14 if max(counts) <= 100 else 1e-11
    return OrderRow("deterministic", problem.name, "", "", counts, errors, floor=floor)


def _flow_error(method: Any, problem: FlowProblem, n: int) -> float:
    from sdekit.solvers.base import Interval

    system: Any = Counted(problem.system)
    x, h = torch.tensor([problem.x0], dtype=torch.float64), 1.0 / n
    solver = isinstance(method, Solver)
    carry = method.init(system, x, torch.zeros((), dtype=torch.float64)) if solver else ()
    for k in range(n):
        if solver:
            times = tuple(torch.tensor((k + c) * h, dtype=torch.float64) for c in method.nodes)
            x, carry = method.step(system, x, Interval(times, h), carry)
        else:
            x = method(system, x, torch.tensor(k * h, dtype=torch.float64), h)
    return float((x[0] - torch.tensor(problem.end, dtype=torch.float64)).norm())
