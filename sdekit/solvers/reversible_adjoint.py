"""The exact gradient of a run whose steps can be undone: undo one, differentiate it, undo the next.

    (x, c)_k = reverse_step((x, c)_{k+1}),    (a, b)_k = (a, b)_{k+1} d(x, c)_{k+1}/d(x, c)_k,

with c the carry of the method and (a, b) the derivatives of the loss in (x, c). Kidger, Foster, Li and Lyons
2021 (arXiv:2105.13493), algorithm 2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdekit.solvers import fixed
from sdekit.solvers.adjoint_equation import backwards
from sdekit.solvers.base import Carry
from sdekit.solvers.leaves import Gradients
from sdekit.solvers.problem import Problem

__all__ = ["pull"]


def pull(
    p: Problem, end: tuple[Tensor, Carry], slopes: tuple[Tensor, Tensor | None], grads: Gradients
) -> Tensor:
    """dL/dx0, (B, *event), from the state and carry at the end of the run; fills ``grads``."""
    assert p.grid is not None
    walk, at_node = fixed._Walk(p), fixed._at_node(p.grid, p.save)
    solver: Any = p.solver
    (x, carry), (a, axs) = end, slopes
    b = tuple(torch.zeros_like(c) for c in carry)

    def enter(node: int, a: Tensor) -> Tensor:
        for i in at_node.get(node, ()):
            a = a if axs is None else a + axs[i]
        return a

    a = enter(len(walk), a)
    for k, interval in backwards(walk):
        x, carry = solver.reverse_step(p.system, x, interval, carry)
        with torch.enable_grad():
            x, *carry_ = (v.detach().requires_grad_() for v in (x, *carry))
            after, carry_after = solver.step(p.system, x, interval, tuple(carry_))
        a, *b_ = _vjp((after, *carry_after), (a, *b), (x, *carry_), grads)
        b, a = tuple(b_), enter(k, a)
        x, carry = x.detach(), tuple(c.detach() for c in carry_)
    with torch.enable_grad():
        x = p.x0.detach().requires_grad_()
        carry = solver.init(p.system, x, walk.table[0, 0])
    return a + _vjp(carry, b, (x,), grads)[0]


def _vjp(
    outputs: tuple[Tensor, ...], slopes: tuple[Tensor, ...], inputs: tuple[Tensor, ...], grads: Gradients
) -> list[Tensor]:
    """dL/d inputs from dL/d outputs; that of the parameters goes to ``grads``."""
    grads.check(outputs, inputs)
    pairs = [(y, s) for y, s in zip(outputs, slopes, strict=True) if y.requires_grad]
    if not pairs:
        return [torch.zeros_like(v) for v in inputs]
    found = torch.autograd.grad(
        [y for y, _ in pairs],
        [*inputs, *grads.parameters],
        [s for _, s in pairs],
        retain_graph=True,
        allow_unused=True,
    )
    grads.add(found[len(inputs) :])
    own = zip(found[: len(inputs)], inputs, strict=True)
    return [torch.zeros_like(v) if g is None else g for g, v in own]
