"""Solvers of torchdiffeq and scipy by name, on ODEs: "torchdiffeq:dopri5", "scipy:RK45".

Both take the whole batch as one vector, with one step and one error norm for all: a sample depends on
the batch around it. They are here as references; `rk45` controls each sample by itself. Both packages
are imported at first use.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sdekit.errors import unknown_name
from sdekit.solution import Status
from sdekit.solvers.base import Solver
from sdekit.solvers.problem import Outcome, Problem
from sdekit.solvers.rows import finite_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["External", "Scipy", "TorchDiffEq", "external", "external_names"]

# Method -> (order, adaptive). Chen et al. 2018 (arXiv:1806.07366), torchdiffeq 0.2.
TORCHDIFFEQ: dict[str, tuple[int, bool]] = {
    "adaptive_heun": (2, True),
    "bosh3": (3, True),
    "dopri5": (5, True),
    "dopri8": (8, True),
    "euler": (1, False),
    "explicit_adams": (4, False),
    "fehlberg2": (2, True),
    "heun2": (2, False),
    "heun3": (3, False),
    "implicit_adams": (4, False),
    "midpoint": (2, False),
    "rk4": (4, False),
}
# Order; None where it varies. Virtanen et al. 2020, scipy.integrate.
SCIPY: dict[str, int | None] = {"BDF": None, "DOP853": 8, "LSODA": None, "RK23": 3, "RK45": 5, "Radau": 5}


class External(Solver):
    """A solver with a loop of its own."""

    kind = "ode"

    def run(self, p: Problem) -> Outcome:
        """The whole run. Raises ValueError for a gradient that the library cannot give."""
        raise NotImplementedError


@dataclass(frozen=True)
class TorchDiffEq(External):
    """torchdiffeq's ``odeint`` with this method, gradients by backprop."""

    method: str = "dopri5"
    name: str = field(init=False)
    order: int | None = field(init=False)
    adaptive: bool = field(init=False)

    reference = "Chen et al. 2018 (torchdiffeq); one step for the batch"

    def __post_init__(self) -> None:
        if self.method not in TORCHDIFFEQ:
            raise unknown_name("torchdiffeq method", self.method, TORCHDIFFEQ)
        order, adaptive = TORCHDIFFEQ[self.method]
        for name, value in (("name", f"torchdiffeq:{self.method}"), ("order", order), ("adaptive", adaptive)):
            object.__setattr__(self, name, value)

    def run(self, p: Problem) -> Outcome:
        from torchdiffeq import odeint

        if p.gradient == "checkpoint":
            raise ValueError(f"{self.name!r} has no gradient='checkpoint'. Next: 'backprop', or 'rk45'.")
        inner = p.save[(p.save != p.t0) & (p.save != p.t1)]
        times = torch.from_numpy(np.concatenate([[p.t0], inner, [p.t1]])).to(p.x0.device)
        if p.grid is None:
            follow: _Follow = _FollowAdaptive(p)
            options: dict[str, Any] = {"step_t": times[-1:], "max_num_steps": p.max_steps}
            tolerances = {"rtol": p.rtol, "atol": p.atol}
        else:
            grid = torch.from_numpy(p.grid).to(p.x0.device)
            h = np.diff(p.grid)
            if self.method.endswith("adams") and np.ptp(h) > 1e-6 * np.abs(h).max():
                raise ValueError(
                    f"{self.name!r} has formulas for equal steps only, and these differ. Likely cause: "
                    f"save_at between the nodes, dt that does not divide the span, or a grid. Next: save at "
                    f"nodes, or 'torchdiffeq:rk4'."
                )
            follow, options, tolerances = _Follow(p), {"grid_constructor": lambda f, y, t: grid}, {}
            if self.method.endswith("adams"):
                options["max_order"] = self.order  # its default, 12, is unstable at ordinary steps
        try:
            xs = odeint(follow, p.x0, times, method=self.method, options=options, **tolerances)
        except AssertionError as error:  # how torchdiffeq reports that it cannot go on
            status = Status.MAX_STEPS if "max_num_steps" in str(error) else Status.STEP_UNDERFLOW
            if "non-finite" in str(error) or "in dt 0.0" in str(error):
                status = Status.NON_FINITE
            xs = p.x0.detach().new_full((p.save.size, *p.x0.shape), torch.nan)
            xs[p.save == p.t0] = p.x0.detach()
            return _stopped(p, follow, status, str(error).partition(":")[0], xs)
        keep = slice(0 if p.save.size and p.save[0] == p.t0 else 1, len(xs) if p.t1 in p.save else -1)
        return _ended(p, follow, xs[-1], xs[keep] if p.save.size else None)


@dataclass(frozen=True)
class Scipy(External):
    """scipy's `solve_ivp` method of this name, on the batch as one float64 vector; no gradients."""

    method: str = "RK45"
    name: str = field(init=False)
    order: int | None = field(init=False)

    adaptive = True
    reference = "Virtanen et al. 2020 (scipy); one step for the batch"

    def __post_init__(self) -> None:
        if self.method not in SCIPY:
            raise unknown_name("scipy method", self.method, SCIPY)
        object.__setattr__(self, "name", f"scipy:{self.method}")
        object.__setattr__(self, "order", SCIPY[self.method])

    def run(self, p: Problem) -> Outcome:
        import scipy.integrate

        if torch.is_grad_enabled():
            raise ValueError(f"{self.name!r} gives no gradients. Next: 'rk45' or 'torchdiffeq:dopri5'.")
        x, follow = p.x0, _FollowAdaptive(p)
        explicit = self.method in ("RK23", "RK45", "DOP853")

        def state(y: Floats) -> Tensor:
            return torch.from_numpy(y).to(x.device).to(x.dtype).reshape(x.shape)

        def slope(t: float, y: Floats) -> Floats:
            out = follow(x.new_full((), t), state(y)).to(torch.float64).cpu().reshape(-1).numpy()
            if not (explicit and follow.accepted) and not np.isfinite(out).all():
                raise _NonFinite  # scipy would not return
            return out

        xs = x.new_full((p.save.size, *x.shape), torch.nan)
        xs[p.save == p.t0] = x
        sign = np.sign(p.t1 - p.t0)
        try:
            with np.errstate(all="ignore"):
                start = x.detach().to(torch.float64).cpu().reshape(-1).numpy()
                run = getattr(scipy.integrate, self.method)(
                    slope, p.t0, start, p.t1, rtol=p.rtol, atol=p.atol
                )
                while run.status == "running" and follow.accepted < p.max_steps:
                    message = run.step()
                    if run.status == "failed":
                        return _stopped(p, follow, Status.STEP_UNDERFLOW, str(message), xs)
                    due = (sign * p.save > sign * run.t_old) & (sign * p.save <= sign * run.t)
                    for i in np.flatnonzero(due):
                        xs[i] = state(run.y if p.save[i] == run.t else run.dense_output()(p.save[i]))
                    follow.callback_accept_step(run.t, state(run.y), 0.0)
        except _NonFinite:
            return _stopped(p, follow, Status.NON_FINITE, "the drift is not finite", xs)
        if run.status == "running":
            return _stopped(p, follow, Status.MAX_STEPS, "max_steps exceeded", xs)
        return _ended(p, follow, state(run.y), xs if p.save.size else None)


class _NonFinite(Exception):
    """Leaves scipy's loop."""


class _Follow:
    """The drift as those libraries call it, f(t, y), and where they are."""

    def __init__(self, p: Problem) -> None:
        self.p, self.low, self.high = p, min(p.t0, p.t1), max(p.t0, p.t1)
        self.t, self.x, self.accepted, self.rejected = p.t0, p.x0, 0, 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        return self.p.system.drift(x, t.clamp(self.low, self.high).to(x.dtype))


class _FollowAdaptive(_Follow):
    """torchdiffeq calls these two, with the state at the beginning of the step."""

    def callback_accept_step(self, t: Any, x: Tensor, h: Any) -> None:
        self.x, self.accepted = x.detach(), self.accepted + 1
        self.t = float(t.detach() if isinstance(t, Tensor) else t)
        if self.p.report is not None:
            self.p.report(self.accepted, self.t, x)

    def callback_reject_step(self, t: Any, x: Tensor, h: Any) -> None:
        self.rejected += 1


def _ended(p: Problem, follow: _Follow, x: Tensor, xs: Tensor | None) -> Outcome:
    good = finite_rows(x.detach()).cpu().numpy()
    status = np.where(good, Status.OK, Status.NON_FINITE).astype(np.int64)
    unknown = np.full(good.shape, np.nan)
    accepted = follow.accepted if p.grid is None else p.grid.size - 1
    cause = "an unstable step or a singular drift. Next: more steps, or 'rk45'"
    return Outcome(x, xs, status, unknown, np.full(good.shape, -1), accepted, follow.rejected, cause)


def _stopped(p: Problem, follow: _Follow, status: Status, message: str, xs: Tensor) -> Outcome:
    """The batch is one vector, so it stops as one."""
    rows = len(p.x0)
    return Outcome(
        follow.x,
        xs if p.save.size else None,
        np.full(rows, status.value),
        np.full(rows, follow.t),
        np.full(rows, follow.accepted),
        follow.accepted,
        follow.rejected,
        f"{message} ({p.solver.name} takes the batch as one vector, so that one sample stops all). "
        f"Next: 'rk45', which controls each sample by itself",
    )


def external_names() -> list[str]:
    """All names that `external` knows."""
    return [*(f"torchdiffeq:{m}" for m in TORCHDIFFEQ), *(f"scipy:{m}" for m in SCIPY)]


def external(name: str) -> External | None:
    """The solver named "library:method", None for other names. Raises UnknownNameError for the method."""
    library, colon, method = name.partition(":")
    makers: dict[str, type[TorchDiffEq] | type[Scipy]] = {"torchdiffeq": TorchDiffEq, "scipy": Scipy}
    return makers[library](method) if colon and library in makers else None
