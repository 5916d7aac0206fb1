"""From the text of a kernel to machine code, kept on disk and in memory."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numba
import numpy as np
from numba.core.errors import NumbaError

from sdekit import noise
from sdekit._version import __version__
from sdekit.errors import CapabilityError, ShapeError
from sdekit.solvers import compiled
from sdekit.solvers.compiled import elementary  # noqa: F401  (numba comes to know our functions)
from sdekit.solvers.compiled.reads import readings
from sdekit.solvers.compiled.system import ROLES, CompiledSDE

njit: Any = numba.njit
types: Any = numba.types

__all__ = ["callbacks", "folder", "kernel"]


def folder() -> Path:
    """Where kernels are kept: NUMBA_CACHE_DIR, or the user's cache directory."""
    given = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "sdekit"


@cache
def _foundations() -> str:
    """What a kernel inlines: compiled code of another state of it must not be taken for this one's."""
    texts = [
        path.read_text()
        for module in (noise, compiled)
        for path in sorted(Path(next(iter(module.__path__))).glob("*.py"))
    ]
    return "".join([__version__, numba.__version__, np.__version__, *texts])


_made: dict[Any, Any] = {}


def kernel(text: str, calls: dict[str, Any] | None = None) -> Any:
    """The compiled ``kernel`` of a module's text; ``calls``: compiled functions that it calls by name.

    Without calls the machine code is kept in `folder` for later processes, where that can be written.
    """
    key = (text, tuple(sorted((name, id(f)) for name, f in (calls or {}).items())))
    if key not in _made:
        module = None if calls else _stored(text)
        if module is not None:
            try:
                _made[key] = njit(module.kernel, cache=True, nogil=True, error_model="numpy"), calls
                return _made[key][0]
            except RuntimeError:  # numba finds no folder for compiled code
                pass
        scope: dict[str, Any] = {**(calls or {}), "__name__": "sdekit.solvers.compiled.generated"}
        exec(compile(text, "<compiled ensemble>", "exec"), scope)
        _made[key] = njit(scope["kernel"], nogil=True, error_model="numpy"), calls
    return _made[key][0]


def _stored(text: str) -> ModuleType | None:
    """The text as a module in a file of its own, None where none can be written."""
    name = "sdekit_kernel_" + hashlib.sha256((_foundations() + text).encode()).hexdigest()[:32]
    try:
        path = folder() / f"{name}.py"
        if not path.is_file() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as part:
                part.write(text)
            os.replace(part.name, path)  # whole or not at all, whoever else writes it
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module  # where numba looks for it when it loads the machine code
    except (OSError, RuntimeError):  # Path.home knows of none
        return None
    return module


_wrapped: dict[Any, Any] = {}


def callbacks(system: CompiledSDE, calls: dict[str, Any], real: type) -> dict[str, Any]:
    """Functions that could not be read as formulas, compiled: name -> function of x0, ..., t.

    Raises CapabilityError with numba's reason, ShapeError for another number of values than the system has.
    """
    out = {}
    for name, (function, part) in calls.items():
        key = function, readings(function), part, name, system.dim, system.columns, real
        if key[1] is None:  # numba fixes what a function reads, and that may have changed
            out[name] = _callback(system, name, function, part, real)
            continue
        if key not in _wrapped:
            _wrapped[key] = _callback(system, name, function, part, real)
        out[name] = _wrapped[key]
    return out


def _callback(
    system: CompiledSDE, name: str, function: Callable[..., Any], part: int | None, real: type
) -> Any:
    if not isinstance(function, FunctionType):
        raise CapabilityError(
            f"the {name} is no formula of numbers, and numba compiles plain functions alone, got "
            f"{type(function).__name__}. Next: a def or lambda of (x, t), or functions of "
            f"sdekit.solvers.compiled such as where in place of if and math.exp."
        )
    inner = njit(function, error_model="numpy")
    number = numba.from_dtype(np.dtype(real))
    state = number if system.dim == 1 else types.UniTuple(number, system.dim)
    try:
        inner.compile((state, number))
    except NumbaError as error:
        reason = " ".join(str(error).partition("\nFile ")[0].split())
        raise CapabilityError(
            f"numba cannot compile the {name}, and it is no formula of numbers either. Its reason: "
            f"{reason[:400]}. Next: plain arithmetic and the functions of sdekit.solvers.compiled, or "
            f"backend='eager'."
        ) from error
    found = inner.overloads[(state, number)].signature.return_type
    _check(system, name, found if part is None else _part(found, part))
    names = [f"x{i}" for i in range(system.dim)]
    x = names[0] if system.dim == 1 else f"({', '.join(names)})"
    value = f"inner({x}, t)" + ("" if part is None else f"[{part}]")
    text = f"def wrapped({', '.join(names)}, t):\n    return {f'({value},)' if system.dim == 1 else value}\n"
    scope: dict[str, Any] = {"inner": inner}
    exec(text, scope)
    return njit(scope["wrapped"], error_model="numpy", forceinline=True)


def _part(found: Any, part: int) -> Any:
    if not isinstance(found, types.BaseTuple) or len(found) != 2:
        raise ShapeError(f"a function given to compiled alone must return (drift, diffusion), got {found}.")
    return found[part]


def _check(system: CompiledSDE, name: str, found: Any) -> None:
    """Hold the type that a compiled function returns to the system."""
    columns = system.columns if name == ROLES[1] else None

    def is_row(kind: Any) -> bool:
        if columns is None:
            return isinstance(kind, (types.Float, types.Integer))
        return (
            isinstance(kind, types.BaseTuple)
            and len(kind) == columns
            and all(isinstance(k, (types.Float, types.Integer)) for k in kind)
        )

    rows = [found] if system.dim == 1 else found
    whole = isinstance(found, types.BaseTuple) if system.dim > 1 else True
    if not whole or len(rows) != system.dim or not all(map(is_row, rows)):
        each = "one number" if columns is None else f"a tuple of {columns} numbers"
        wanted = each if system.dim == 1 else f"a tuple of {system.dim}, each {each}"
        raise ShapeError(
            f"{name} must return {wanted} for dim={system.dim} and noise_type={system.noise_type!r}, got "
            f"{found}. Next: return that, or another dim or noise_type."
        )
