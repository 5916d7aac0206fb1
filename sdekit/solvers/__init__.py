"""Solvers and the loop that runs them. ``sdekit.solvers()`` is the table of their names and orders."""

from __future__ import annotations

from sdekit._callable import callable_module
from sdekit.solvers.adjoint import Adjoint
from sdekit.solvers.base import Attempt, EmbeddedSolver, Interval, Solver, SolverTable, get, register, solvers
from sdekit.solvers.compiled.system import CompiledSDE
from sdekit.solvers.control import Controller
from sdekit.solvers.euler import EulerMaruyama
from sdekit.solvers.events import Event
from sdekit.solvers.exponential import ExponentialEuler
from sdekit.solvers.external import Scipy, TorchDiffEq
from sdekit.solvers.implicit import ImplicitEuler, ImplicitMilstein, Theta
from sdekit.solvers.kvaerno import Kvaerno5
from sdekit.solvers.langevin import MALA, ULA, Acceptance
from sdekit.solvers.milstein import Milstein, MilsteinFree
from sdekit.solvers.multistep import AdamsBashforthMoulton
from sdekit.solvers.reversible import ReversibleHeun
from sdekit.solvers.runge_kutta import (
    RK4,
    BogackiShampine,
    DormandPrince,
    DormandPrince8,
    Euler,
    Heun,
    Midpoint,
    RungeKutta,
    Tsitouras,
)
from sdekit.solvers.shark import ShARK, SlowRK, SPaRK
from sdekit.solvers.solve import solve
from sdekit.solvers.splitting import ABOBA, BAOAB, OABAO, OBABO, Splitting
from sdekit.solvers.srk import SOSRA, SOSRI, SRA1, SRA3, SRIW1, SRK
from sdekit.solvers.stratonovich import EulerHeun, StratonovichHeun, StratonovichMidpoint
from sdekit.solvers.tableaus import Tableau
from sdekit.solvers.tamed import TamedEuler
from sdekit.solvers.weak import DRI1, Platen

__all__ = [
    "ABOBA",
    "BAOAB",
    "DRI1",
    "MALA",
    "OABAO",
    "OBABO",
    "RK4",
    "SOSRA",
    "SOSRI",
    "SRA1",
    "SRA3",
    "SRIW1",
    "SRK",
    "ULA",
    "Acceptance",
    "AdamsBashforthMoulton",
    "Adjoint",
    "Attempt",
    "BogackiShampine",
    "CompiledSDE",
    "Controller",
    "DormandPrince",
    "DormandPrince8",
    "EmbeddedSolver",
    "Euler",
    "EulerHeun",
    "EulerMaruyama",
    "Event",
    "ExponentialEuler",
    "Heun",
    "ImplicitEuler",
    "ImplicitMilstein",
    "Interval",
    "Kvaerno5",
    "Midpoint",
    "Milstein",
    "MilsteinFree",
    "Platen",
    "ReversibleHeun",
    "RungeKutta",
    "SPaRK",
    "Scipy",
    "ShARK",
    "SlowRK",
    "Solver",
    "SolverTable",
    "Splitting",
    "StratonovichHeun",
    "StratonovichMidpoint",
    "Tableau",
    "TamedEuler",
    "Theta",
    "TorchDiffEq",
    "Tsitouras",
    "get",
    "register",
    "solve",
    "solvers",
]

callable_module(__name__, solvers)
