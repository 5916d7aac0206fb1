"""Scores that equations know by themselves: of the law from a point."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdekit._typing import Field, Number
from sdekit.errors import CapabilityError, ShapeError, check_state, check_state_time

__all__ = ["transition_score"]


def transition_score(process: Any, x0: Any, start: float = 0.0) -> Field:
    """(x, t) -> grad log p(X_t = x | X_start = x0), shape of x: the score that reverses runs from a point.

    process: with ``transition(x, s, t)``, such as `GeometricBrownian`, `CIR`, `LinearSDE`. x0: the point,
    (*event) for all samples, or (B, *event) with one for each. The score tends to infinity as t falls to
    ``start``, so a reversed run ends above it. Of laws without a closed score it is the gradient of
    `log_prob`.

    Raises CapabilityError for a process without a transition law in closed form, ShapeError for an x0 that
    does not fit x.
    """
    if not callable(getattr(process, "transition", None)):
        raise CapabilityError(
            f"{type(process).__name__} has no transition(x, s, t), so the score of its law is not known. "
            f"Next: fit one, sdekit.fit, or take a process with an exact law."
        )
    point = torch.as_tensor(x0)
    given = check_state(point.reshape(1) if point.ndim == 0 else point, "x0")

    def score(x: Tensor, t: Number) -> Tensor:
        x = check_state_time(x, t, "score")
        point = given.to(x) if given.ndim == x.ndim else given.to(x)[None]
        try:
            point = point.expand(x.shape)
        except RuntimeError:
            raise ShapeError(
                f"x0 must have the shape of an event {tuple(x.shape[1:])} or of the state {tuple(x.shape)}, "
                f"got {tuple(given.shape)}."
            ) from None
        law = process.transition(point, start, t)
        if hasattr(law, "score"):
            out: Tensor = law.score(x)
            return out
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(law.log_prob(y).sum(), y)
        return slope

    return score
