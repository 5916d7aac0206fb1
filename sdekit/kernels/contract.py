"""What the back ends of `combine` share: the noise of a step, and which back end serves a state."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from torch import Tensor

from sdekit.errors import CapabilityError

__all__ = ["BACKENDS", "Draws", "choose", "module"]

BACKENDS = {"eager": "sdekit.kernels.eager", "numba": "sdekit.kernels.cpu", "triton": "sdekit.kernels.cuda"}
"""Name -> module with ``combine`` and ``serves``."""


class Draws(NamedTuple):
    """The draws of one `combine`, in order.

    numbers: of the draws. ids: (B,) int64, the absolute sample ids, contiguous, on the state's device.
    key: of the Philox stream, None where the noise is none. normal: draw -> (B, *event), what any back end
    may call instead.
    """

    numbers: tuple[int, ...]
    ids: Tensor
    key: Any
    normal: Callable[[int], Tensor]


def module(name: str) -> Any:
    """The module of a back end."""
    return import_module(BACKENDS[name])


def choose(backend: str, x: Tensor, compilable: str | None = None) -> str:
    """The back end for states like x: ``backend`` by name, or the fastest that serves for "auto".

    compilable: why no compiled back end can run this at all, None where they can. Raises CapabilityError for
    one that was asked for by name and cannot serve.
    """
    if backend == "eager":
        return backend
    if backend == "auto":
        name = "triton" if x.is_cuda else "numba"
        return name if compilable is None and _refusal(name, x) is None else "eager"
    refusal = compilable or _refusal(backend, x)
    if refusal is not None:
        raise CapabilityError(
            f"backend={backend!r} cannot run this: {refusal}. Next: backend='auto' takes the fastest that "
            f"can, 'eager' serves everything."
        )
    return backend


def _refusal(name: str, x: Tensor) -> str | None:
    try:
        reason: str | None = module(name).serves(x)
    except ImportError as error:
        return f"its module does not import ({error})"
    return reason
