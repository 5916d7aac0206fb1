"""A package that is also a function: ``sdekit.solvers`` holds solvers, ``sdekit.solvers()`` lists them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

__all__ = ["callable_module"]


def callable_module(name: str, fn: Callable[..., Any]) -> None:
    """Make the imported module ``name`` callable: ``module(*args)`` returns ``fn(*args)``.

    Python looks ``__call__`` up on the type, so the module gets its own subclass of ModuleType.
    Everything else about the module stays as it was.
    """

    class CallableModule(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return fn(*args, **kwargs)

    CallableModule.__call__.__doc__ = fn.__doc__
    module = sys.modules[name]
    module.__class__ = CallableModule
    module.__signature__ = inspect.signature(fn)  # type: ignore[attr-defined]
