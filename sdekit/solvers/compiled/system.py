"""`compiled`: an SDE from functions of plain numbers, for torch and for numba."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sdekit._typing import Number
from sdekit.errors import CapabilityError, ShapeError, check_count
from sdekit.sde.base import SDE
from sdekit.sde.contract import check_callable
from sdekit.sde.rows import as_time, over_event

__all__ = ["CompiledSDE", "compiled"]

LARGEST = 16
"""Elements of a state, and Brownian motions: their formulas are written out in full."""


class CompiledSDE(SDE):
    """The SDE that `compiled` makes. `solve` takes it in both back ends, for states (B, dim), or (B,).

    drift(x, t), diffusion(x, t): of tensors, as those of any `SDE`.
    """

    def __init__(
        self,
        fields: tuple[Callable[..., Any], Callable[..., Any]],
        *,
        dim: int,
        noise_type: str,
        sde_type: str,
        noise_dim: int | None,
        t_min: float | None = None,
        t_max: float | None = None,
    ) -> None:
        self.dim = check_count(dim, "dim")
        self.fields = fields
        self.kept: dict[Any, Any] = {}
        super().__init__(
            noise_type=noise_type, sde_type=sde_type, noise_dim=noise_dim, t_min=t_min, t_max=t_max
        )
        if max(self.dim, self.noise_dim or 1) > LARGEST:
            raise ValueError(
                f"compiled equations have up to {LARGEST} elements and as many Brownian motions, got "
                f"dim={dim}, noise_dim={noise_dim}. Next: sdekit.SDE(drift, diffusion), whose fields take "
                f"tensors."
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"kept": {}}  # machine code stays behind

    @property
    def columns(self) -> int | None:
        """m for a matrix diffusion, else None."""
        return self.noise_dim if self._is_matrix else None

    def _parts(self, x: Tensor) -> Any:
        if self.dim == 1:
            return x
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ShapeError(
                f"x must have shape (B, {self.dim}) for an equation with dim={self.dim}, got "
                f"{tuple(x.shape)}."
            )
        return tuple(x.t().contiguous().unbind())  # the same bits whatever the batch

    def _values(self, role: int, x: Tensor, t: Number, columns: int | None) -> Tensor:
        at = over_event(as_time(t, x), x) if self.dim == 1 else as_time(t, x)
        try:
            out = self.fields[role](self._parts(x), at)
        except (TypeError, ValueError, RuntimeError) as error:
            if not any(words in str(error) for words in OF_ONE):
                raise
            raise CapabilityError(
                f"the {ROLES[role]} needs the value of one number (if, a loop, math.exp), and plain torch "
                f"gives it those of all samples. Next: backend='numba', with fixed steps and no callback, "
                f"event or gradient; or where, exp and the like of sdekit.solvers.compiled."
            ) from error
        rows = [out] if self.dim == 1 else check_values(out, self.dim, role, "x")
        like = x if self.dim == 1 else x[:, 0]
        if columns is None:
            full = [_like(value, like) for value in rows]
        else:
            pairs = [check_values(row, columns, role, "its row") for row in rows]
            full = [torch.stack([_like(v, like) for v in row], dim=-1) for row in pairs]
        return full[0] if self.dim == 1 else torch.stack(full, dim=1)

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """Drift at (x, t), the shape of x."""
        return self._values(0, x, t, None)

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """Diffusion at (x, t), the shape of x, or with an axis of m more."""
        return self._values(1, x, t, self.columns)

    def __repr__(self) -> str:
        return f"CompiledSDE(dim={self.dim}, {super().__repr__().partition('(')[2]}"


ROLES = ("drift", "diffusion")
OF_ONE = ("Boolean value of Tensor", "can be converted to", "cannot be converted to Scalar")
"""What torch says where a tensor of many numbers is asked for the value of one."""


def check_values(out: Any, count: int, role: int, of: str) -> Sequence[Any]:
    """The values that a function returned: a sequence of ``count``. Raises ShapeError."""
    length = len(out) if isinstance(out, (tuple, list)) else None
    if length != count:
        got = f"{length} values" if length is not None else type(out).__name__
        raise ShapeError(
            f"{ROLES[role]} must return a tuple of {count} numbers, one for each element of {of}, got {got}. "
            f"Likely cause: another dim, noise_dim or noise_type is meant. Next: return a tuple of {count}."
        )
    found: Sequence[Any] = out
    return found


def _like(value: Any, x: Tensor) -> Tensor:
    out = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    return out.expand(x.shape) if out.ndim == 0 else out


class _Half:
    """The drift (role 0) or diffusion (1) of a function that returns both."""

    def __init__(self, both: Callable[..., Any], role: int) -> None:
        self.joint = both, role

    def __call__(self, x: Any, t: Any) -> Any:
        both, role = self.joint
        pair = both(x, t)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ShapeError(
                f"a function given to compiled alone must return (drift, diffusion), got "
                f"{type(pair).__name__}. Next: return both, or compiled(drift, diffusion)."
            )
        return pair[role]


def compiled(
    drift: Callable[..., Any] | None = None,
    diffusion: Callable[..., Any] | None = None,
    *,
    dim: int = 1,
    noise_type: str = "diagonal",
    sde_type: str = "ito",
    noise_dim: int | None = None,
    t_min: float | None = None,
    t_max: float | None = None,
) -> Any:
    r"""dX = f(X, t) dt + G(X, t) dW from functions of numbers, for compiled ensembles of paths.

    Parameters
    ----------
    drift, diffusion
        f(x, t) and G(x, t). With dim = 1 x is a number and f returns one; with dim = d > 1 x is a tuple of d
        numbers, and f returns d of them. G returns as many, and for "general" and "commutative" noise
        rows of m numbers: one row with dim = 1, d rows else. Arithmetic, comparisons and the functions of
        `sdekit.solvers.compiled` (exp, log, sin, cos, sqrt, tanh, where, maximum, minimum), of torch
        (torch.exp, ...) or numpy: such functions take tensors as well, so that both back ends solve the
        equation. Functions with ``if`` or math.exp are compiled by numba as they are; only the back end
        "numba" solves these, and methods that differentiate cannot.
        One function alone, (x, t) -> (drift, diffusion), may be given too, so that ``compiled`` decorates it.
    dim
        d, the elements of a state, up to 16. States are (B, d), or (B,) with d = 1.
    noise_type, sde_type, noise_dim, t_min, t_max
        As for `SDE`.

    Returns
    -------
    CompiledSDE
        For `solve` and `ensemble`. Numbers in formulas become parameters of the compiled code: other values
        do not compile again. What the functions read from outside is read when a run begins; a function that
        numba compiles as it is, is compiled again where that has changed.

    Raises
    ------
    TypeError for what is no function, ShapeError for a wrong number of returned values (when it is solved),
    ValueError and UnknownNameError for the other arguments.
    """
    options: dict[str, Any] = {
        "dim": dim,
        "noise_type": noise_type,
        "sde_type": sde_type,
        "noise_dim": noise_dim,
        "t_min": t_min,
        "t_max": t_max,
    }
    if drift is None:
        if diffusion is not None:
            raise TypeError("compiled got a diffusion without a drift. Next: compiled(drift, diffusion).")
        return lambda both: compiled(both, **options)
    check_callable(drift, "drift")
    if diffusion is None:
        both = getattr(drift, "py_func", drift)
        return CompiledSDE((_Half(both, 0), _Half(both, 1)), **options)
    check_callable(diffusion, "diffusion")
    # What numba.njit has decorated is taken from before it.
    return CompiledSDE(
        (getattr(drift, "py_func", drift), getattr(diffusion, "py_func", diffusion)), **options
    )
