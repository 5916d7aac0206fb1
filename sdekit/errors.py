"""Typed errors, and the checks at the door that raise them.

Every message says what was expected, what came, the likely cause and the next action.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from sdekit.solution import Solution

T = TypeVar("T")

__all__ = [
    "ArgumentOrderError",
    "CapabilityError",
    "DirectionError",
    "EndpointError",
    "NonFiniteError",
    "NotAffineError",
    "NotPositiveDefiniteError",
    "OptionalDependencyError",
    "SdekitError",
    "ShapeError",
    "SolveError",
    "UnknownNameError",
    "as_number",
    "check_argument_order",
    "check_call",
    "check_count",
    "check_first_id",
    "check_not_negative",
    "check_output",
    "check_positive",
    "check_state",
    "check_state_time",
    "check_time",
    "out_of_place",
    "unknown_name",
]


class SdekitError(Exception):
    """Root of every error that sdekit raises on purpose."""


class ArgumentOrderError(SdekitError, TypeError):
    """A callable takes (t, x) where the equations, and sdekit, have (x, t)."""


class ShapeError(SdekitError, ValueError):
    """A tensor has the wrong shape or dtype."""


class DirectionError(SdekitError, ValueError):
    """A time span runs the wrong way for the system it was given with."""


class CapabilityError(SdekitError, ValueError):
    """A solver cannot do this system: its kind, its noise or its calculus."""


class EndpointError(SdekitError, ValueError):
    """A quantity has no finite value at this end of the process (alpha = 0 or sigma = 0)."""


class NotPositiveDefiniteError(SdekitError, ValueError):
    """A covariance is not symmetric positive definite."""


class NotAffineError(SdekitError, TypeError):
    """An exact certificate was asked of something that is not affine in its noise."""


class UnknownNameError(SdekitError, KeyError):
    """A name is not in its registry; the message lists the nearest ones."""

    def __str__(self) -> str:
        return str(self.args[0])


class OptionalDependencyError(SdekitError, ImportError):
    """An optional package is needed and absent; the message holds the install command."""


class SolveError(SdekitError, RuntimeError):
    """A run did not reach its end. ``.solution`` holds everything computed until then."""

    def __init__(self, message: str, solution: Solution | None = None) -> None:
        super().__init__(message)
        self.solution = solution


class NonFiniteError(SolveError, ArithmeticError):
    """NaN or infinity appeared; the message names sample, time and step."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UnknownNameError:
    """The error for a name outside its registry, with the nearest known names."""
    names = sorted(known)
    lower = {own.lower(): own for own in names}
    near = [lower[n] for n in difflib.get_close_matches(str(name).lower(), lower, n=3, cutoff=0.4)]
    hint = f"Nearest: {', '.join(map(repr, near))}. " if near else ""
    return UnknownNameError(f"unknown {kind} {name!r}. {hint}Known: {', '.join(names)}.")


def check_argument_order(fn: Callable[..., Any], role: str) -> None:
    """Refuse ``fn(t, x)``: callables take (x, t), the order of the equations.

    Raises ArgumentOrderError when the first positional parameter of ``fn`` is named ``t`` or ``time``.
    """
    target = _called(fn)
    try:
        parameters = list(inspect.signature(target, follow_wrapped=False).parameters.values())
        if parameters and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:  # it hands on what it gets
            parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        return
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if positional and positional[0] in ("t", "time", "timestep"):
        raise ArgumentOrderError(
            f"{role} must take (x, t), state first, but its first parameter is named "
            f"{positional[0]!r}. Likely cause: written for a library with the order (t, x). "
            f"Next: swap the parameters, or wrap it: lambda x, t: fn(t, x)."
        )


def check_call(fn: Callable[..., Any], call: Iterable[str], role: str, cause: str, action: str) -> None:
    """Refuse a callable that does not take these positional arguments. Raises TypeError.

    What may take others than it shows passes: without a signature, or with one by declaration, or a module
    behind hooks that change its arguments. A wrapper is read itself, not what it wraps.
    role: what it is, "net"; cause and action end the message.
    """
    call, target = tuple(call), _called(fn)
    if hasattr(target, "__signature__") or (target is not fn and _hooked(fn)):
        return
    try:
        signature = inspect.signature(target, follow_wrapped=False)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*call)
    except TypeError as error:
        name = getattr(fn, "__name__", type(fn).__name__).replace("<lambda>", "a lambda")
        raise TypeError(
            f"{role} is called as {role.split()[-1]}({', '.join(call)}), and {name} cannot be: {error}. "
            f"Likely cause: {cause}. Next: {action}."
        ) from None


def _called(fn: Callable[..., Any]) -> Callable[..., Any]:
    """What gets the arguments of fn(...): a module's forward, where its class has no __call__ of its own."""
    if isinstance(fn, torch.nn.Module) and type(fn).__call__ is torch.nn.Module.__call__:
        return fn.forward
    return fn


def _hooked(module: Any) -> bool:
    """Whether hooks run before the module's forward, which may change what it is given."""
    return bool(module._forward_pre_hooks or torch.nn.modules.module._global_forward_pre_hooks)


def check_state(x: object, name: str = "x0") -> torch.Tensor:
    """A state (B, *event): floating and finite; numpy arrays become tensors.

    Raises ShapeError for integers and 0-d input, NonFiniteError for NaN or infinity, naming the sample.
    """
    if not isinstance(x, torch.Tensor):
        try:
            x = torch.as_tensor(x)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ShapeError(
                f"{name} must be a tensor or array of shape (B, *event), got {type(x).__name__}. "
                f"Next: pass torch.as_tensor(...) of floating dtype."
            ) from error
    if not x.is_floating_point():
        raise ShapeError(
            f"{name} must be floating, got dtype {x.dtype}. Likely cause: integer literals or raw 8-bit "
            f"data. Next: {name.split()[-1]}.float(), scaled to the range the model was trained on."
        )
    if x.ndim < 1:
        raise ShapeError(
            f"{name} must have shape (B, *event), got a 0-d tensor. Next: {name.split()[-1]}.reshape(1, 1) "
            f"for one sample of a scalar process."
        )
    readable = not torch._C._functorch.is_functorch_wrapped_tensor(x)  # no numbers inside torch.func
    if x.numel() and readable and not math.isfinite(x.detach().sum()):  # which may overflow
        finite = torch.isfinite(x.detach()).reshape(x.shape[0], -1).all(dim=1)
        bad = (~finite).nonzero().flatten().tolist()
        if bad:
            raise NonFiniteError(
                f"{name} holds NaN or infinity in {len(bad)} of {x.shape[0]} samples (first: sample "
                f"{bad[0]}). Likely cause: an earlier computation failed. Next: drop or repair those rows."
            )
    return x


def check_time(t: object, name: str = "t") -> None:
    """Refuse negative and non-finite times. Raises ValueError."""
    values = t.detach().to(torch.float64) if isinstance(t, torch.Tensor) else torch.tensor(float(t))  # type: ignore[arg-type]
    if bool(torch.isnan(values).any()) or bool(torch.isinf(values).any()):
        raise ValueError(f"{name} must be finite, got {t}.")
    if bool((values < 0).any()):
        raise ValueError(
            f"{name} must be >= 0, got {float(values.min()):g}. Time runs from data (t_min) to noise "
            f"(t_max). Next: check for an overshooting grid or a swapped argument."
        )


def check_state_time(x: object, t: object, call: str) -> torch.Tensor:
    """The state of a method (x, t), numpy arrays as tensors; swapped arguments are named as such.

    Raises ArgumentOrderError when x is a number where t has axes, ShapeError for an x without axes.
    """
    state = x if isinstance(x, torch.Tensor) else torch.as_tensor(x)
    if state.ndim == 0 and getattr(t, "ndim", 0) > 0:
        raise ArgumentOrderError(
            f"{call} takes (x, t), state first, got a number for x and shape "
            f"{tuple(t.shape)} for t. Likely cause: swapped arguments. Next: {call}(x, t)."  # type: ignore[attr-defined]
        )
    if state.ndim == 0:
        raise ShapeError(f"{call}: x must have shape (B, *event), got a number. Next: x.reshape(1, 1).")
    return state


def check_first_id(first_id: object, samples: int) -> int:
    """A first sample id with room for ``samples`` ids below 2^63. Raises ValueError."""
    first = check_count(first_id, "first_id", minimum=0)
    if first + samples > 2**63:
        raise ValueError(f"first_id must leave room for {samples} ids below 2^63, got {first}.")
    return first


def check_count(value: object, name: str, minimum: int = 1) -> int:
    """A whole number of at least ``minimum``. Raises ValueError."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{name} must be a whole number >= {minimum}, got {value!r}.")
    number = int(value.__index__())
    if number < minimum:
        raise ValueError(f"{name} must be a whole number >= {minimum}, got {number}.")
    return number


def check_positive(value: float, name: str) -> float:
    """A finite number > 0. Raises ValueError."""
    number = as_number(value)
    if not (number > 0 and math.isfinite(number)):
        raise ValueError(f"{name} must be finite and > 0, got {value!r}.")
    return number


def check_not_negative(value: float, name: str) -> float:
    """A finite number >= 0. Raises ValueError."""
    number = as_number(value)
    if not (number >= 0 and math.isfinite(number)):
        raise ValueError(f"{name} must be finite and >= 0, got {value!r}.")
    return number


def as_number(value: object) -> float:
    """value as a float, NaN where it is no number."""
    if isinstance(value, str | bool | None):
        return math.nan
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def changed_in_place(role: str) -> ValueError:
    """The error of a network that writes to its input."""
    return ValueError(
        f"{role} changed its input x in place, and x is the state of the run. Likely cause: an in-place "
        f"operation (x.mul_, x += ..., ReLU(inplace=True)) as the first layer. Next: make it out of "
        f"place, or wrap it: lambda x, t: {role}(x.clone(), t)."
    )


def overwritten(role: str) -> ValueError:
    """The error of a network that writes to what it returned before."""
    return ValueError(
        f"{role} wrote to a tensor that it returned at an earlier step, and this sampler still needs that "
        f"output. Likely cause: a buffer that the network fills at each call. Next: return a new tensor, or "
        f"wrap it: lambda x, t: {role}(x, t).clone()."
    )


def check_output(out: object, x: torch.Tensor, role: str) -> torch.Tensor:
    """A network's or drift's output must have the state's shape. Raises ShapeError."""
    if not isinstance(out, torch.Tensor):
        cause, action = "the network returns a tuple or an output object", "wrap it and return the tensor"
        if type(out).__module__ == "numpy":
            cause, action = "a function written in numpy", "sdekit.numpy_score(fn) wraps it"
        raise ShapeError(
            f"{role} must return a tensor of shape {tuple(x.shape)}, got {type(out).__name__}. Likely "
            f"cause: {cause}. Next: {action}."
        )
    if out.shape != x.shape:
        cause = "a missing reshape, or a time of shape () broadcast against the batch"
        if out.ndim == x.ndim and out.ndim > 1 and out.shape[1] == 2 * x.shape[1]:
            cause = "a network that also predicts variances (twice the channels); keep the first half"
        raise ShapeError(
            f"{role} must return shape {tuple(x.shape)}, the shape of x, got {tuple(out.shape)}. "
            f"Likely cause: {cause}. Next: return one value for each element of x."
        )
    return out


def out_of_place(call: Callable[[torch.Tensor], T], x: torch.Tensor, role: str) -> T:
    """call(x), which leaves x as it is. Raises ValueError where x changes, unchecked inside torch.compile."""
    if torch.compiler.is_compiling():
        return call(x)
    before = None if x.is_inference() else x._version
    message = (
        f"{role} must leave its input x as it is, and changed it in place. Likely cause: an in-place "
        f"operation (x.mul_, x += ..., ReLU(inplace=True)) as the first layer. Next: make it out of place, "
        f"or wrap it: lambda x, t: net(x.clone(), t)."
    )
    try:
        out = call(x)
    except RuntimeError as error:  # torch refuses it itself where x needs a gradient
        if "in-place operation" not in str(error):
            raise
        raise ValueError(message) from error
    if before is not None and x._version != before:
        raise ValueError(message)
    return out
