"""One step of a registered solver as formulas: the solver's own ``step``, run on symbols.

A state is a `Vector` of symbols, so that the code of the method is that of the torch back end, and the
formula has its order of operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sdekit.errors import CapabilityError, ShapeError
from sdekit.solvers.base import Interval, Solver
from sdekit.solvers.compiled.reads import readings
from sdekit.solvers.compiled.symbols import (
    CONDITIONS,
    Symbol,
    Untraceable,
    apply,
    as_symbol,
    differentiate,
    fingerprint,
    postorder,
)
from sdekit.solvers.compiled.system import ROLES, CompiledSDE, check_values

__all__ = ["Step", "Vector", "claims_hold", "read", "signature", "trace", "watched"]

METHODS = (
    *("euler-heun", "euler-maruyama", "heun", "midpoint", "milstein", "milstein-free"),
    *("sosra", "sosri", "sra1", "sra3", "sriw1"),
)
"""The solvers whose step is known to be readable as formulas."""


class Vector:
    """The elements of a state, or the rows of a matrix, with elementwise arithmetic."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[Any]:
        return iter(self.parts)

    def _with(self, other: Any, op: Callable[[Any, Any], Any]) -> Vector:
        others = other.parts if isinstance(other, Vector) else (other,) * len(self.parts)
        if len(others) == 1:
            others *= len(self.parts)
        mine = self.parts * len(others) if len(self.parts) == 1 else self.parts
        return Vector(*(op(a, b) for a, b in zip(mine, others, strict=True)))

    def __add__(self, other: Any) -> Vector:
        return self._with(other, lambda a, b: a + b)

    def __sub__(self, other: Any) -> Vector:
        return self._with(other, lambda a, b: a - b)

    def __mul__(self, other: Any) -> Vector:
        return self._with(other, lambda a, b: a * b)

    def __rmul__(self, other: Any) -> Vector:
        return self._with(other, lambda a, b: b * a)

    def __truediv__(self, other: Any) -> Vector:
        return self._with(other, lambda a, b: a / b)

    def abs(self) -> Vector:
        return Vector(*(abs(a) for a in self.parts))


def fold(parts: list[Any]) -> Any:
    """The sum, in the order of `sdekit.sde.rows.fold`."""
    while len(parts) > 1:
        half = len(parts) // 2
        parts = [a + b for a, b in zip(parts[:half], parts[half : 2 * half], strict=True)] + parts[2 * half :]
    return parts[0]


def read(system: CompiledSDE, role: int, calls: dict[str, Any]) -> Callable[[Any, Any], tuple[Any, ...]]:
    """The drift (role 0) or diffusion (1) on symbols: x, t -> dim values, or dim rows of m.

    A function that cannot be read becomes a call, entered in ``calls`` under its name. Raises what the
    function raises.
    """
    columns = system.columns if role else None

    def rows(x: tuple[Any, ...], t: Any) -> tuple[Any, ...]:
        out = system.fields[role](x[0] if system.dim == 1 else x, t)
        found = [out] if system.dim == 1 else check_values(out, system.dim, role, "x")
        if columns is None:
            return tuple(map(as_symbol, found))
        lists = (check_values(row, columns, role, "its row") for row in found)
        return tuple(Vector(*map(as_symbol, row)) for row in lists)

    def call(x: tuple[Any, ...], t: Any) -> tuple[Any, ...]:
        both, part = getattr(system.fields[role], "joint", (system.fields[role], None))
        name = ROLES[role]
        calls[name] = (both, part)
        args = (*map(as_symbol, x), as_symbol(t))
        if columns is None:
            return tuple(Symbol("call", name, (i,), args) for i in range(system.dim))
        parts = [[Symbol("call", name, (i, k), args) for k in range(columns)] for i in range(system.dim)]
        return tuple(Vector(*row) for row in parts)

    def field(x: tuple[Any, ...], t: Any) -> tuple[Any, ...]:
        if ROLES[role] in calls:
            return call(x, t)
        try:
            return rows(x, t)
        except ShapeError:
            raise
        except (
            TypeError,
            AttributeError,
            RuntimeError,
        ):  # it branches, or calls math.exp: numba may know better
            return call(x, t)

    return field


class _Traced:
    """What a solver sees of the system (`Counted`), on vectors."""

    def __init__(self, system: CompiledSDE, calls: dict[str, Any]) -> None:
        self.system, self.own = self, system
        self.noise_type, self.sde_type = system.noise_type, system.sde_type
        self._drift, self._diffusion = (read(system, role, calls) for role in (0, 1))
        self.calls = 0

    def drift(self, x: Vector, t: Any) -> Vector:
        self.calls += 1
        return Vector(*self._drift(x.parts, t))

    def diffusion(self, x: Vector, t: Any) -> Vector:
        return Vector(*self._diffusion(x.parts, t))

    def apply_noise(self, g: Vector, w: Vector) -> Vector:
        if self.own.columns is None:
            return g * w
        return Vector(*(fold(list((row * w).parts)) for row in g))

    def correction(self, x: Vector, t: Any) -> Vector:
        """1/2 sum_j g_j d_j g_i for scalar noise, 1/2 g_i d_i g_i for diagonal."""
        g = self.diffusion(x, t).parts
        out = []
        for i, own in enumerate(g):
            total: Any = None
            for j in range(len(g)) if self.noise_type == "scalar" else (i,):
                slope = differentiate(own, x.parts[j])
                if slope is not None:
                    total = g[j] * slope if total is None else total + g[j] * slope
            out.append(as_symbol(0.0) if total is None else 0.5 * total)
        return Vector(*out)


@dataclass(frozen=True)
class Step:
    """x' as formulas of the inputs x0..., t0... (nodes), h, z0... (normals), s0... (deviations).

    calls: functions that numba has to compile as they are, (function, None or which of its two results).
    drifts: calls of the drift in a step.
    """

    new: tuple[Symbol, ...]
    noise: int
    calls: dict[str, Any]
    drifts: int


def trace(system: CompiledSDE, solver: Solver) -> Step:
    """The step of the solver for this system. Raises CapabilityError, naming what cannot be read."""
    dim, normals = system.dim, solver.normals
    noise = 1 if system.noise_type == "scalar" else system.columns or dim
    calls: dict[str, Any] = {}
    seen = _Traced(system, calls)
    x = Vector(*_inputs(system))
    h = Symbol("input", "h")
    areas = [
        Vector(*(Symbol("input", f"z{j * noise + i}") * Symbol("input", f"s{j}") for i in range(noise)))
        for j in range(normals)
    ]
    times = tuple(Symbol("input", f"t{i}") for i in range(len(solver.nodes)))
    if solver.name not in METHODS:
        raise _unable(solver, "its step is not made of formulas alone")
    try:
        new, carry = solver.step(seen, x, Interval(times, Positive(h), *areas), ())  # type: ignore[arg-type]
    except Untraceable as error:
        raise _unable(solver, f"it differentiates a function, and {error}") from error
    assert not carry
    return Step(tuple(map(as_symbol, new)), noise, calls, seen.calls)


def watched(system: CompiledSDE, passage: Callable[[Any, Any], Any]) -> Symbol:
    """The formula of a passage in x0..., t0, positive where a condition holds. Raises CapabilityError."""
    x, t = _inputs(system), Symbol("input", "t0")
    try:
        value = as_symbol(passage(x[0] if system.dim == 1 else x, t))
    except (TypeError, AttributeError) as error:
        raise CapabilityError(
            f"passage must be a formula (x, t) -> number, and {error}. Next: arithmetic and the functions of "
            f"sdekit.solvers.compiled."
        ) from error
    return apply("where", value, 1.0, -1.0) if value.op in CONDITIONS else value


def _inputs(system: CompiledSDE) -> tuple[Symbol, ...]:
    return tuple(Symbol("input", f"x{i}") for i in range(system.dim))


def claims_hold(system: CompiledSDE) -> bool:
    """Whether the formulas show that noise is "additive" or "diagonal"; False where they do not tell."""
    calls: dict[str, Any] = {}
    x = _inputs(system)
    rows = read(system, 1, calls)(x, Symbol("input", "t0"))
    if calls or system.noise_type not in ("additive", "diagonal") or system.columns is not None:
        return False
    for i, formula in enumerate(rows):
        foreign = {id(y) for k, y in enumerate(x) if system.noise_type == "additive" or k != i}
        if any(id(node) in foreign for node in postorder([formula])):
            return False
    return True


def signature(system: CompiledSDE, passage: Callable[[Any, Any], Any] | None) -> tuple[Any, ...] | None:
    """Equal while the functions compute the same, with the same numbers; None where that cannot be told."""
    calls: dict[str, Any] = {}
    x, t = _inputs(system), Symbol("input", "t0")
    roots: list[Symbol] = []
    for role in (0, 1):
        for row in read(system, role, calls)(x, t):
            roots += row.parts if isinstance(row, Vector) else (row,)
    found = [readings(function) for function, _ in calls.values()]
    if None in found:
        return None
    if passage is not None:
        roots.append(watched(system, passage))
    return (fingerprint(roots), *calls.items(), *found)


class Positive(Symbol):
    """The length of a step, known to be positive."""

    __slots__ = ()

    def __init__(self, h: Symbol) -> None:
        super().__init__(h.op, *h.args)

    def __abs__(self) -> Symbol:
        return self


def _unable(solver: Solver, why: str) -> CapabilityError:
    return CapabilityError(
        f"backend 'numba' cannot run solver {solver.name!r} here: {why}. It runs "
        f"{', '.join(repr(name) for name in METHODS if name != solver.name)}. Next: one of them, or "
        f"backend='eager'."
    )
