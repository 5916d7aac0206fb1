r"""Impulses in place of noise: a run of any code with the normals of our choice, sample by sample.

A run that makes K normal draws is a function x(xi_1, ..., xi_K), one row a sample. Here each row gets

    xi_k = sum_b a_k^(b) e^(b),   k = 1, ..., K,

with few directions e^(b) and coefficients a_k^(b) of its own: zero everywhere for the row without noise, one
at a single draw for an impulse. Draws through torch are caught by a dispatch mode, draws through a `Noise`
object by the object handed to the run; each keeps the shape, dtype and device that were asked for.

Draws are numbered by first use. A generator that is set back to an earlier state repeats a draw, and so does
a `Noise` asked for the same number: they are one draw, as in the sampler's own law.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sdekit.errors import NotAffineError
from sdekit.noise import Noise

__all__ = ["Fill", "Impulses", "Layout", "Normals", "layout_of"]

NORMAL = {torch.ops.aten.randn, torch.ops.aten.randn_like, torch.ops.aten.normal, torch.ops.aten.normal_}
SEEDS = {torch.ops.aten.randint, torch.ops.aten.random_}
"""Ops whose single integers are seeds; a run whose law depends on them does not repeat itself."""

Fill: TypeAlias = Callable[[Hashable, torch.Size], Tensor]
"""(key of the draw, its shape) -> its standard normals, float64. Equal keys are the same draw."""


class Normals(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Replaces what torch draws from normal laws inside the context: mean + std fill(k, shape).

    Catches randn, randn_like, normal and normal_ of any overload, dtype, device and generator, hence
    `torch.distributions.Normal` too. Any other random operation raises NotAffineError.
    """

    def __init__(self, fill: Fill, elements: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fill, self.elements = fill, elements
        self.made: dict[Hashable, tuple[torch.Size, torch.dtype]] = {}
        #: The coarsest floating dtype of a tensor of ``elements`` elements that the run made.
        self.dtype = torch.float64

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _random(func):
            out = func(*args, **kwargs)
            if isinstance(out, Tensor) and out.is_floating_point() and out.numel() == self.elements:
                self.dtype = _coarser(self.dtype, out.dtype)
            return out
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        state = _state(given) if func.overloadpacket in NORMAL else None
        out = func(*args, **kwargs)
        if not isinstance(out, Tensor) or not out.numel():
            return out
        if func.overloadpacket in NORMAL:
            return self._replace(out, given, state)
        if func.overloadpacket in SEEDS and out.numel() == 1:
            return out
        raise NotAffineError(
            f"expected a run whose only random numbers are normal, got torch's "
            f"{func.overloadpacket.__name__!r} for shape {tuple(out.shape)}: its law is not Gaussian. "
            f"Likely cause: random steps, dropout of a network in training mode, or normals made from "
            f"uniforms. Next: net.eval(); draw by torch.randn; or sdekit.certify_monte_carlo(run, target)."
        )

    def _replace(self, out: Tensor, given: dict[str, Any], state: Hashable | None) -> Tensor:
        if out.is_complex():
            raise NotAffineError(
                f"expected real normals, got a draw of dtype {out.dtype}. Next: draw real and imaginary "
                f"parts apart, or sdekit.certify_monte_carlo(run, target)."
            )
        key: Hashable = ("unknown", len(self.made)) if state is None else state
        kind = (out.shape, out.dtype)
        if self.made.setdefault(key, kind) != kind:
            raise NotAffineError(
                f"expected a generator set back to an earlier state to repeat its draw of {self.made[key]}, "
                f"got {kind}: such normals are partly the same. Likely cause: one seed used for two "
                f"purposes. Next: seed once, before the first draw."
            )
        if out.numel() == self.elements:
            self.dtype = _coarser(self.dtype, out.dtype)
        xi = self.fill(key, out.shape).to(device=out.device, dtype=out.dtype)
        return out.copy_(given.get("mean", 0.0) + given.get("std", 1.0) * xi)


@cache
def _random(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


def _state(given: dict[str, Any]) -> Hashable | None:
    """The state of the generator that a call is about to use; None where torch does not tell."""
    generator = given.get("generator")
    if generator is None:
        like = given.get("self", given.get("mean"))
        like = like if isinstance(like, Tensor) else given.get("std")
        device = like.device if isinstance(like, Tensor) else torch.device(given.get("device") or "cpu")
        if device.type == "cpu":
            generator = torch.default_generator
        elif device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            generator = torch.cuda.default_generators[index]
        else:
            return None
    return bytes(generator.get_state().numpy())


def _coarser(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    return max(a, b, key=lambda dtype: torch.finfo(dtype).eps)


@dataclass(frozen=True)
class Layout:
    """Where the samples of a draw are: ``axis`` holds each ``repeats`` times; None: it is for one sample.

    normals: of D numbers each, that a sample has in the draw. inner: the repeats of a sample lie side by
    side along the axis, (n, repeats) rather than (repeats, n).
    """

    axis: int | None
    normals: int
    repeats: int = 1
    inner: bool = False

    def place(self, values: Tensor, shape: torch.Size) -> Tensor:
        """values (n, normals, D) -> a draw of ``shape``."""
        if self.axis is None:
            return values.reshape(shape)
        rest = [size for k, size in enumerate(shape) if k != self.axis]
        parts = values.reshape(len(values), self.repeats, *rest)
        ordered = parts if self.inner else parts.transpose(0, 1)
        return ordered.reshape(len(values) * self.repeats, *rest).movedim(0, self.axis)


def layout_of(few: torch.Size, more: torch.Size, rows: tuple[int, int], dimension: int) -> Layout | None:
    """The layout of a draw that has these shapes in runs of ``rows`` samples; None where samples share it."""
    if len(few) != len(more):
        return None
    grown = [k for k, (a, b) in enumerate(zip(few, more, strict=True)) if a != b]
    if len(grown) != 1:
        return None
    [axis] = grown
    repeats, left = divmod(few[axis], rows[0])
    if left or more[axis] != repeats * rows[1]:
        return None
    rest = few.numel() // few[axis]
    normals, left = divmod(repeats * rest, dimension)
    return None if left else Layout(axis, normals, repeats, inner=rest % dimension != 0)


class Impulses(Noise):
    """A `Noise` whose row i belongs to sample id i, by ``fill``; ids beyond ``rows`` are padding, zero."""

    def __init__(self, fill: Fill, rows: int) -> None:
        self.fill, self.rows = fill, rows

    def normal(self, draw: int, like: Tensor, ids: Tensor) -> Tensor:
        """Rows ``ids`` of draw ``draw``."""
        return self._rows(("draw", int(draw)), like, ids)

    def initial(self, like: Tensor, ids: Tensor) -> Tensor:
        """Rows ``ids`` of the initial normal."""
        return self._rows("initial", like, ids)

    def _rows(self, key: Hashable, like: Tensor, ids: Tensor) -> Tensor:
        whole = self.fill(key, torch.Size([self.rows, *like.shape[1:]]))
        ids = ids.to(whole.device)
        inside = ids < self.rows
        out = torch.zeros(like.shape, dtype=whole.dtype)
        out[inside] = whole[ids[inside]]
        return out.to(like)
