"""The tensors that a system depends on and that require a gradient, read off its autograd graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.sde.base import ODE, SDE

__all__ = ["leaves", "parameters_of"]


def leaves(outputs: Iterable[Tensor]) -> list[Tensor]:
    """The leaf tensors that require a gradient and enter the outputs, each once."""
    todo = [y.grad_fn for y in outputs if y.grad_fn is not None]
    seen, found = set(todo), [y for y in outputs if y.grad_fn is None and y.requires_grad]
    while todo:
        node = todo.pop()
        if isinstance(variable := getattr(node, "variable", None), Tensor):
            found.append(variable)
        fresh = {parent for parent, _ in node.next_functions if parent is not None and parent not in seen}
        seen |= fresh
        todo += [parent for parent, _ in node.next_functions if parent in fresh]
    return list({id(v): v for v in found}.values())


def parameters_of(system: SDE | ODE, x: Tensor, t: Tensor) -> list[Tensor]:
    """What the fields of a system depend on: leaves of drift and diffusion at (x, t), and the parameters of
    the modules that the system holds (itself, its attributes, and modules whose bound methods it calls).
    """
    with torch.enable_grad():
        fields = [system.drift(x.detach(), t)]
        if isinstance(system, SDE):
            fields.append(system.noise_field(x.detach(), t))
    held = (p for module in _modules(system) for p in module.parameters() if p.requires_grad)
    return list({id(v): v for v in (*leaves(fields), *held)}.values())


def _modules(system: Any) -> Iterator[nn.Module]:
    for value in (system, *vars(system).values()):
        owner = getattr(value, "__self__", value)
        if isinstance(owner, nn.Module):
            yield owner


class Gradients:
    """dL/dtheta of each parameter, added up step by step; None where nothing depended on it.

    complete: the list is the caller's own, so that other leaves are none of our business.
    """

    def __init__(self, parameters: list[Tensor], complete: bool) -> None:
        self.parameters, self.complete = parameters, complete
        self.known = {id(p) for p in parameters}
        self.totals: list[Tensor | None] = [None] * len(parameters)

    def add(self, grads: Iterable[Tensor | None]) -> None:
        for i, g in enumerate(grads):
            if g is not None:
                total = self.totals[i]
                self.totals[i] = g.clone() if total is None else total.add_(g)

    def check(self, outputs: Iterable[Tensor], own: Iterable[Tensor]) -> None:
        """Every leaf of the outputs is a parameter or one of ``own``. Raises ValueError."""
        if self.complete:
            return
        mine = self.known | {id(v) for v in own}
        lost = [v for v in leaves(outputs) if id(v) not in mine]
        if lost:
            shapes = ", ".join(str(tuple(v.shape)) for v in lost)
            raise ValueError(
                f"gradient='adjoint' met {len(lost)} tensor(s) that require a gradient and that drift and "
                f"diffusion did not use at (x0, t0), of shape {shapes}. Likely cause: a branch on t or x, or "
                f"a module that the system does not hold. Next: gradient=Adjoint(params=[...]) with all "
                f"tensors whose gradients you want."
            )
