"""Gradients whose memory does not grow with the number of steps: the run is traced back, not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdekit.errors import CapabilityError
from sdekit.noise.source import TorchNoise
from sdekit.sde.base import ODE
from sdekit.solvers import adjoint_equation, reversible_adjoint
from sdekit.solvers.base import Carry, EmbeddedSolver, Interval, Solver, get, named
from sdekit.solvers.leaves import Gradients, parameters_of
from sdekit.solvers.problem import Outcome, Problem
from sdekit.solvers.runge_kutta import RungeKutta

if TYPE_CHECKING:
    from sdekit.noise.source import Noise
    from sdekit.sde.base import SDE

__all__ = ["Adjoint", "integrate"]

STRATONOVICH = ("euler-heun", "heun", "midpoint")
"""SDE methods made of drifts and of products G dW alone, so that they run on the adjoint equation."""


@dataclass(frozen=True, eq=False)
class Adjoint:
    r"""da/dt = -a df/dx, dL/dtheta = int a df/dtheta dt: gradients from an equation solved backwards.

    ``gradient="adjoint"`` of `sdekit.solve`, with options. The run is made without a graph. In the backward
    pass x, the adjoint a = dL/dx(t) and the gradients of the parameters are solved together from t1 to t0:

        dx = f dt + G o dW,    da = -a (df/dx dt + dG/dx o dW),    a(t1) = dL/dx(t1),
        dL/dtheta = int a (df/dtheta dt + dG/dtheta o dW) over the span, dL/dx(t0) = a(t0),

    in the Stratonovich sense and on the same Brownian path, read backwards: its increments are drawn again.
    An Ito system takes part in its Stratonovich form. At saved times a jumps by their dL/dx, and x is set to
    the saved state. Memory does not grow with the steps; the gradient carries the discretisation error of the
    solver, unlike backprop's, which is that of the numbers computed. With a solver that can be undone
    (``reverse_step``: "reversible-heun") each step is undone and differentiated on its own instead, and the
    gradient is backprop's to rounding.

    Parameters
    ----------
    params
        The tensors whose gradients are wanted. None: the leaves of the autograd graph of drift and diffusion
        at (x0, t0), and the parameters of modules that the system holds. A leaf that turns up later, in a
        branch not taken at (x0, t0), raises in the backward pass. A list may hold tensors that are not
        leaves; gradients of tensors outside it are not computed.
    solver
        For the backward pass: on an ODE an explicit Runge-Kutta method, by default the solver of the run, and
        "rk45" where that is another adaptive one; on an SDE "euler-heun", "heun" or "midpoint", by default
        the solver of the run if it is one of them, else "heun".

    Raises (at the door of `solve`) CapabilityError for a solver that has no adjoint, TypeError for params
    that are no tensors.

    ODEs: Chen, Rubanova, Bettencourt and Duvenaud 2018 (arXiv:1806.07366), algorithm 1. SDEs: Li, Wong, Chen
    and Duvenaud 2020 (arXiv:2001.01328), section 3. Reversible: Kidger, Foster, Li and Lyons 2021
    (arXiv:2105.13493), algorithm 2.
    """

    params: Iterable[Tensor] | None = None
    solver: str | Solver | None = None

    def __post_init__(self) -> None:
        if self.params is None:
            return
        given = [None] if isinstance(self.params, Tensor) else list(self.params)
        if not all(isinstance(p, Tensor) for p in given):
            raise TypeError(
                f"params must be a list of tensors, got {type(self.params).__name__}. Next: "
                f"Adjoint(params=list(module.parameters()))."
            )
        object.__setattr__(self, "params", tuple({id(p): p for p in given}.values()))

    def method(self, system: SDE | ODE, solver: Solver, noise: Noise, stepping: bool) -> Solver:
        """The solver of the backward pass; the run's own where its steps can be undone. Raises
        CapabilityError."""
        if isinstance(noise, TorchNoise) and solver.normals:
            raise CapabilityError(
                "gradient='adjoint' draws the noise again in the backward pass, which TorchNoise cannot. "
                "Next: seed= or noise=Philox(seed), or gradient='backprop'."
            )
        if self.solver is None and hasattr(solver, "reverse_step"):
            return solver
        make = _ode if isinstance(system, ODE) else _sde
        return make(solver, self.solver, stepping)


def _ode(run: Solver, wanted: str | Solver | None, stepping: bool) -> Solver:
    fallback = "rk45" if stepping else run
    found = get((run if _explicit(run) else fallback) if wanted is None else wanted, "ode")
    if _explicit(found) and (isinstance(found, EmbeddedSolver) or not stepping):
        return found
    kind = "an adaptive explicit" if stepping else "an explicit"
    raise CapabilityError(
        f"the adjoint of this run needs {kind} Runge-Kutta method, got {found.name!r}. Next: "
        f"gradient=Adjoint(solver='rk45'), or gradient='checkpoint'."
    )


def _explicit(solver: Solver) -> bool:
    """Whether its step is the weighted sum of explicit slopes: implicit ones have steps of their own."""
    return isinstance(solver, RungeKutta) and type(solver).step in (RungeKutta.step, EmbeddedSolver.step)


def _sde(run: Solver, wanted: str | Solver | None, stepping: bool) -> Solver:
    if run.strong_order is None or stepping:
        raise CapabilityError(
            f"solver {run.name!r} does not follow the Brownian path at fixed steps, and the adjoint equation "
            f"is solved on that path. Next: gradient='checkpoint', or solver='heun'."
        )
    usual = run if run.name in STRATONOVICH else named("heun", "sde")
    found = usual if wanted is None else get(wanted, "sde")
    if found is None or found.name not in STRATONOVICH:
        raise CapabilityError(
            f"the adjoint equation of an SDE is solved by one of {', '.join(map(repr, STRATONOVICH))}, got "
            f"{None if found is None else found.name!r}. Next: drop Adjoint(solver=...)."
        )
    return found


def integrate(p: Problem, drive: Callable[[Problem], Outcome], options: Adjoint, method: Solver) -> Outcome:
    """The run without a graph, joined to x0 and to the parameters by its adjoint."""
    start = torch.as_tensor(p.t0, dtype=p.x0.dtype, device=p.x0.device)
    found = parameters_of(p.system.system, p.x0, start) if options.params is None else options.params
    parameters = [v for v in found if v.requires_grad]
    keeper = _Keeper(p.solver) if method is p.solver and hasattr(method, "reverse_step") else None
    quiet = replace(p, x0=p.x0.detach(), gradient=None)
    with torch.no_grad():
        outcome = drive(quiet if keeper is None else replace(quiet, solver=keeper))

    def pull(x: Tensor, xs: Tensor | None, carry: Carry, ax: Tensor, axs: Tensor | None) -> Any:
        grads = Gradients(parameters, complete=options.params is not None)
        if keeper is None:
            return adjoint_equation.pull(quiet, method, (x, xs), (ax, axs), grads), grads.totals
        return reversible_adjoint.pull(quiet, (x, carry), (ax, axs), grads), grads.totals

    carry = () if keeper is None else keeper.carry
    joined: Any = _Joined.apply
    x, xs = joined(pull, outcome.x, outcome.xs, carry, p.x0, *parameters)
    return replace(outcome, x=x, xs=xs)


class _Keeper(Solver):
    """A solver that holds on to its last carry."""

    def __init__(self, solver: Solver) -> None:
        self.inner = solver
        self.carry: Carry = ()
        for name in ("name", "kind", "nodes", "normals", "adaptive"):
            setattr(self, name, getattr(solver, name))

    def init(self, system: Any, x: Tensor, t: Tensor) -> Carry:
        self.carry = self.inner.init(system, x, t)
        return self.carry

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> tuple[Tensor, Carry]:
        x, self.carry = self.inner.step(system, x, interval, carry)
        return x, self.carry


class _Joined(torch.autograd.Function):
    """(x, xs) as functions of x0 and the parameters, by ``pull``."""

    @staticmethod
    def forward(
        ctx: Any, pull: Any, x: Tensor, xs: Tensor | None, carry: Carry, x0: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.pull, ctx.first = pull, 1 if xs is None else 2
        ctx.last = ctx.first + len(carry)
        states = (x,) if xs is None else (x, xs)
        ctx.save_for_backward(*states, *carry, *parameters)  # parameters: so that torch sees them change
        return x, xs

    @staticmethod
    def backward(ctx: Any, ax: Tensor | None, axs: Tensor | None = None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise CapabilityError(
                "gradient='adjoint' gives first derivatives only, and create_graph=True asks for more. Next: "
                "gradient='backprop' or 'checkpoint'."
            )
        saved = ctx.saved_tensors
        x, xs = saved[0], saved[1] if ctx.first == 2 else None
        a, totals = ctx.pull(
            x, xs, saved[ctx.first : ctx.last], torch.zeros_like(x) if ax is None else ax, axs
        )
        return None, None, None, None, a, *totals
