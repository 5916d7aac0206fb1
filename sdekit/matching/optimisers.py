"""The optimiser of a training run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sdekit.errors import check_positive

__all__ = ["make_optimiser", "trainable"]

RATE = 1e-3
DTYPES = (torch.float32, torch.float64)


def trainable(module: object, role: str = "fit", example: str = "sdekit.nets.MLP or UNet") -> Tensor:
    """The first trainable parameter: dtype and device of the training.

    Raises TypeError for anything but an nn.Module; ValueError for one without trainable parameters, with lazy
    ones, or with weights that are not float32 or float64.
    """
    if not isinstance(module, nn.Module):
        got, hint = type(module).__name__, example
        if isinstance(module, type):
            got, hint = f"the class {module.__name__}", f"{module.__name__}(...), a network made of it"
        elif hasattr(module, "model"):
            hint = "its model"
        raise TypeError(f"{role} trains an nn.Module, got {got}. Next: {hint}.")
    name = type(module).__name__
    if any(is_lazy(p) for p in module.parameters()):
        raise ValueError(
            f"{name} has lazy layers, whose shapes are not known yet. Next: call it once, net(x, t), before."
        )
    small = next((p.dtype for p in module.parameters() if p.requires_grad and p.dtype not in DTYPES), None)
    if small is not None:
        raise ValueError(
            f"{name} has {small} weights, in which small updates are rounded away. Next: net.float(), with "
            f"autocast=torch.bfloat16 for mixed precision."
        )
    like = next((p for p in module.parameters() if p.requires_grad), None)
    if like is None:
        raise ValueError(f"{name} has no trainable parameters. Next: requires_grad_(True).")
    return like


def make_optimiser(
    module: nn.Module, lr: float | None, optimiser: Callable[..., torch.optim.Optimizer] | None
) -> torch.optim.Optimizer:
    """Adam with betas 0.9, 0.99 at ``lr``, or what ``optimiser`` makes of the parameters.

    Raises TypeError for lr beside an optimiser, and for an optimiser that is none, trains nothing of the
    network, or evaluates the loss itself.
    """
    rate = RATE if lr is None else check_positive(lr, "lr")
    parameters = list(module.parameters())
    if optimiser is None:
        fused = trainable(module).device.type in ("cpu", "cuda")
        return torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.99), fused=fused)
    if lr is not None:
        raise TypeError("lr belongs to Adam, and an optimiser was given. Next: put the rate into it.")
    if isinstance(optimiser, torch.optim.Optimizer) or not callable(optimiser):
        raise TypeError(
            f"optimiser must be a function of the parameters, got {type(optimiser).__name__}. Next: "
            f"optimiser=lambda p: torch.optim.AdamW(p, lr=1e-3)."
        )
    made = optimiser(module.parameters())
    if not isinstance(made, torch.optim.Optimizer) or isinstance(made, torch.optim.LBFGS):
        raise TypeError(
            f"optimiser must return a torch.optim.Optimizer that takes steps without evaluating the loss "
            f"again, got {type(made).__name__}. Next: lambda p: torch.optim.AdamW(p, lr=1e-3)."
        )
    own = {id(p) for p in parameters}
    if not all(id(p) in own for group in made.param_groups for p in group["params"]):
        raise TypeError(
            "the optimiser trains parameters that are not the network's. Next: use those it is given."
        )
    return made
