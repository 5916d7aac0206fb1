"""What a function reads from outside: numba fixes it when it compiles the function."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

__all__ = ["readings"]

FIXED = ("math", "numpy", "torch", "sdekit", "builtins")
"""Packages whose contents do not change."""


def readings(function: Callable[..., Any]) -> tuple[Any, ...] | None:
    """The code, defaults, closed-over and global values of a function, and of the functions that it calls.

    Two equal results mean that numba makes the same of it. None where that cannot be told: where it reads
    anything but numbers, strings, arrays, tuples, functions and modules.
    """
    found: list[Any] = []
    return tuple(found) if _read(function, set(), found, set()) else None


def _read(value: Any, names: set[str], found: list[Any], seen: set[int]) -> bool:
    """names: what the code may ask of a module."""
    kind = type(value)
    found.append(kind)
    if isinstance(value, (bool, int, float, complex, str, type(None))):
        found.append(repr(value))  # 0.0 and -0.0 are equal, and differ
        return True
    if isinstance(value, np.ndarray):
        found.append((value.shape, value.dtype.str, value.tobytes()))
        return not value.dtype.hasobject
    if isinstance(value, np.generic):
        found.append(value.tobytes())
        return True
    if isinstance(value, tuple):
        found.append(len(value))
        return all(_read(v, names, found, seen) for v in value)
    value = getattr(value, "py_func", value)  # what numba.njit has decorated
    home = getattr(value, "__name__" if isinstance(value, ModuleType) else "__module__", None) or ""
    if home.split(".")[0] in FIXED:
        found.append(value)
        return isinstance(value, (FunctionType, ModuleType, BuiltinFunctionType, type, np.ufunc))
    if isinstance(value, FunctionType):
        return _function(value, found, seen)
    if isinstance(value, ModuleType):
        if id(value) in seen:
            return True
        seen.add(id(value))
        return all(_read(vars(value)[n], names, found, seen) for n in sorted(names & vars(value).keys()))
    return False


def _function(f: FunctionType, found: list[Any], seen: set[int]) -> bool:
    if id(f) in seen:
        return True
    seen.add(id(f))
    found.append(f.__code__)
    names = _names(f.__code__)
    try:
        cells = [cell.cell_contents for cell in f.__closure__ or ()]
    except ValueError:  # not bound yet
        return False
    used = [f.__globals__.get(n, getattr(builtins, n, None)) for n in sorted(names)]
    options = [v for pair in sorted((f.__kwdefaults__ or {}).items()) for v in pair]
    return all(_read(v, names, found, seen) for v in [*cells, *(f.__defaults__ or ()), *options, *used])


def _names(code: CodeType) -> set[str]:
    """Every global name, and attributes, of the code and of functions within it."""
    inner = (_names(c) for c in code.co_consts if isinstance(c, CodeType))
    return set(code.co_names).union(*inner)
