"""Ensembles of paths, compiled: SDEs from functions of numbers (`compiled`), their elementary functions, and
statistics that keep no paths (`ensemble`)."""

from __future__ import annotations

from sdekit._callable import callable_module
from sdekit.solvers.compiled.expectation import Ensemble, ensemble
from sdekit.solvers.compiled.functions import cos, exp, log, maximum, minimum, sin, sqrt, tanh, where
from sdekit.solvers.compiled.system import CompiledSDE, compiled

__all__ = [
    "CompiledSDE",
    "Ensemble",
    "compiled",
    "cos",
    "ensemble",
    "exp",
    "log",
    "maximum",
    "minimum",
    "sin",
    "sqrt",
    "tanh",
    "where",
]

callable_module(__name__, compiled)
