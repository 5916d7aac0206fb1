"""Solvers and the loop that runs them. ``sdekit.solvers()`` is the table of their names and orders."""

from __future__ import annotations

from sdekit._callable import callable_module
from sdekit.solvers.base import Attempt, EmbeddedSolver, Interval, Solver, SolverTable, get, register, solvers
from sdekit.solvers.control import Controller
from sdekit.solvers.euler import EulerMaruyama
from sdekit.solvers.external import Scipy, TorchDiffEq
from sdekit.solvers.langevin import MALA, ULA, Acceptance
from sdekit.solvers.runge_kutta import DormandPrince, Euler, Heun, RungeKutta
from sdekit.solvers.solve import solve
from sdekit.solvers.tableaus import Tableau

__all__ = [
    "MALA",
    "ULA",
    "Acceptance",
    "Attempt",
    "Controller",
    "DormandPrince",
    "EmbeddedSolver",
    "Euler",
    "EulerMaruyama",
    "Heun",
    "Interval",
    "RungeKutta",
    "Scipy",
    "Solver",
    "SolverTable",
    "Tableau",
    "TorchDiffEq",
    "get",
    "register",
    "solve",
    "solvers",
]

callable_module(__name__, solvers)
