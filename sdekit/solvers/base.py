"""Solver: one step of a method as a pure function, its capabilities declared on the class; the registry.

A solver never loops, draws or counts: `sdekit.solve` does, once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

from torch import Tensor

from sdekit.errors import unknown_name
from sdekit.solvers.control import Controller, error_norm

__all__ = [
    "Attempt",
    "Carry",
    "EmbeddedSolver",
    "Interval",
    "Solver",
    "SolverTable",
    "get",
    "named",
    "register",
    "solvers",
]

NOISE_TYPES = ("additive", "scalar", "diagonal", "commutative", "general")

Carry: TypeAlias = tuple[Tensor, ...]
"""What a method keeps from one step to the next; each tensor has the batch as its first dimension."""


class Interval(NamedTuple):
    """One step of the time axis and the Brownian motion over it.

    times: t + c h for each node c of the solver, of the state's dtype and device; shape () with a common
    step, (B,) with per-sample steps. h: the signed length, a float, or (B, 1, ..., 1). W: the increment
    W(t + h) - W(t) = sqrt|h| N(0, I), of the noise shape; None on an ODE. H: space-time Levy area,
    sqrt(|h|/12) N(0, I), independent of W; None unless the solver declares ``normals = 2``. K: the
    space-time-time one, sqrt(|h|/720) N(0, I), independent of both, with ``normals = 3`` (`Increments`). All
    three are of the path in the direction of the run: where h < 0 its clock runs down.
    """

    times: tuple[Tensor, ...]
    h: Any
    W: Tensor | None = None
    H: Tensor | None = None
    K: Tensor | None = None


class Attempt(NamedTuple):
    """A step that may be rejected: where it leads, its error estimate, and its stages for dense output."""

    x: Tensor
    carry: Carry
    error: Tensor
    stages: tuple[Tensor, ...]


class Solver:
    """Base of every solver: a frozen dataclass of its options, `init` and `step`.

    Class attributes, verified by tests and checked once when `solve` is entered:
    ``name``; ``kind``, "sde" or "ode"; ``noise_types`` and ``sde_types`` accepted; ``order`` on ODEs,
    ``weak_order`` and ``strong_order`` on SDEs, None where they do not apply; ``adaptive``, whether the
    method carries an error estimate and chooses its steps; ``nodes``, the c_i of its stages;
    ``normals``, how many normal draws a step takes (1: W; 2: W and H; 3: and K; step k draws k normals + j);
    ``laws``, of W, H, K in units of their standard deviations, where the method needs no normals for its
    weak order ("two-point", "three-point"; see `sdekit.certify_order`); ``reference``.

    Two solvers may share a name, one for each ``kind``: the system decides.
    """

    name: str
    kind: str
    reference: str
    noise_types: tuple[str, ...] = ()
    sde_types: tuple[str, ...] = ()
    order: int | None = None
    weak_order: float | None = None
    strong_order: float | None = None
    adaptive: bool = False
    nodes: tuple[float, ...] = (0.0,)
    normals: int = 0
    laws: tuple[str, ...] = ()

    def init(self, system: Any, x: Tensor, t: Tensor) -> Carry:
        """What the first step needs from (x0, t0): () for one-step methods."""
        return ()

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> tuple[Tensor, Carry]:
        """x (B, *event) at t -> (x at t + h, carry). Pure: no draw, no count, nothing overwritten."""
        raise NotImplementedError

    def unsolved(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> Tensor | None:
        """Of an implicit method: which samples (B,) this step could not solve; they are NaN."""
        return None


class EmbeddedSolver(Solver):
    """A solver with an error estimate of size h^error_order and dense output, for adaptive steps.

    Every sample has its own t and h, so the drift is given t of shape (B,). ``controller`` chooses the
    steps; ``compact``: finished samples leave the batch.
    """

    adaptive = True
    error_order: float
    controller: Controller
    compact: bool

    def attempt(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> Attempt:
        """The step, with its error estimate (B, *event)."""
        raise NotImplementedError

    def interpolate(self, x: Tensor, h: Any, attempt: Attempt, theta: Any) -> Tensor:
        """The state at t + theta h, 0 <= theta <= 1, from the stages of the step that began at x."""
        raise NotImplementedError

    def bound(self, rtol: float, atol: float) -> EmbeddedSolver:
        """The solver for a run with these tolerances: itself, unless it solves equations within its steps."""
        return self

    def first(self, x: Tensor, span: float) -> Tensor | None:
        """The first steps (B,), signed like ``span``; None: from the sizes of the drift (`first_step`)."""
        return None

    def norm(self, x: Tensor, h: Any, attempt: Attempt, rtol: float, atol: float) -> Tensor:
        """The error of the step h from x, per sample (B,) float64: good when <= 1 (`error_norm`)."""
        return error_norm(attempt.error, x, attempt.x, rtol, atol)

    def complete(self, system: Any, x: Tensor, interval: Interval, attempt: Attempt) -> Attempt:
        """The attempt with the stages that only dense output needs; asked for once, where output is due."""
        return attempt

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Carry) -> tuple[Tensor, Carry]:
        attempt = self.attempt(system, x, interval, carry)
        return attempt.x, attempt.carry


_REGISTRY: dict[tuple[str, str], type[Solver]] = {}
S = TypeVar("S", bound=type[Solver])


def register(cls: S) -> S:
    """Class decorator: the solver becomes reachable by its ``name`` and ``kind``, with default options."""
    _REGISTRY[cls.name, cls.kind] = cls
    return cls


def named(name: str, kind: str) -> Solver | None:
    """The registered solver of a name and kind, None where there is none."""
    cls = _REGISTRY.get((name, kind))
    return None if cls is None else cls()


def get(solver: str | Solver | type[Solver], kind: str | None = None) -> Solver:
    """A solver from its name; an instance passes through.

    kind: "ode" or "sde", of two that share the name; by default the one for ODEs. Names of other libraries'
    methods are "torchdiffeq:dopri5" and "scipy:RK45".
    Raises UnknownNameError with the nearest names, TypeError for anything else.
    """
    if isinstance(solver, Solver):
        return solver
    if isinstance(solver, type) and issubclass(solver, Solver):
        return solver()
    if not isinstance(solver, str):
        raise TypeError(
            f"solver must be a name or a Solver, got {type(solver).__name__}. Next: print sdekit.solvers()."
        )
    for wanted in ("ode", "sde") if kind is None else (kind,):
        if (found := named(solver, wanted)) is not None:
            return found
    from sdekit.solvers.external import external, external_names

    other = external(solver)
    if other is None:
        raise unknown_name(
            "solver", solver, [*dict.fromkeys(name for name, _ in _REGISTRY), *external_names()]
        )
    return other


class Row(NamedTuple):
    """One line of the table of solvers."""

    name: str
    cls: str
    solves: str
    order: str
    adaptive: bool
    reference: str


class SolverTable(tuple[Row, ...]):
    """The rows of `solvers()`; prints as a table."""

    def __repr__(self) -> str:
        head = Row("name", "class", "solves", "order", False, "reference")
        lines = [(*r[:4], "adaptive" if r.adaptive or r is head else "", r.reference) for r in (head, *self)]
        widths = [max(len(line[i]) for line in lines) for i in range(6)]
        return "\n".join(
            "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
        )

    __str__ = __repr__


def _row(solver: Solver) -> Row:
    if solver.kind == "ode":
        solves, order = "ODE", "" if solver.order is None else str(solver.order)
    else:
        noise = "any" if set(solver.noise_types) == set(NOISE_TYPES) else ", ".join(solver.noise_types)
        solves = f"SDE ({noise} noise, {' or '.join(solver.sde_types)})"
        pair = (("weak", solver.weak_order), ("strong", solver.strong_order))
        order = ", ".join(f"{word} {value:g}" for word, value in pair if value is not None)
    return Row(solver.name, type(solver).__name__, solves, order, solver.adaptive, solver.reference)


def solvers() -> SolverTable:
    """The table of every solver that `solve` knows by name: name, class, orders, adaptive, reference."""
    from sdekit.solvers.external import external, external_names

    own: list[Callable[[], Solver]] = [_REGISTRY[key] for key in sorted(_REGISTRY)]
    others = [external(name) for name in external_names()]
    return SolverTable([*(_row(make()) for make in own), *(_row(s) for s in others if s is not None)])


def names_for(system: Any, adaptive: bool = False) -> str:
    """The registered solvers that take this SDE, or any ODE when None, as a list in words; with ``adaptive``
    those that choose their steps."""

    def able(cls: type[Solver]) -> bool:
        if adaptive and not cls.adaptive:
            return False
        if system is None:
            return cls.kind == "ode"
        form = system.sde_type in cls.sde_types or system.noise_type == "additive"
        return cls.kind == "sde" and system.noise_type in cls.noise_types and form

    return ", ".join(repr(name) for (name, _), cls in sorted(_REGISTRY.items()) if able(cls)) or "none yet"
