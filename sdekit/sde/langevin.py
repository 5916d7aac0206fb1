"""Overdamped Langevin dynamics: the SDE whose stationary law is a given density."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdekit._typing import Number
from sdekit.errors import CapabilityError, ShapeError, check_argument_order
from sdekit.sde.base import SDE

__all__ = ["Langevin"]


class Langevin(SDE):
    """dX = grad log p(X) dt + sqrt(2) dW, which leaves the law p as it is.

    score: callable x (B, *event) -> grad log p, of the same shape; or an object with ``log_prob``, such as
    a closed-form target. log_prob: callable (B, *event) -> (B,), in nats, up to a constant; then the
    score may be left out and comes from autograd. "mala" needs log_prob, "ula" and other solvers do not.

    The score of data has no time: fix that of a diffusion's, ``lambda x: model.score(x, t)``.
    Roberts and Tweedie 1996, Exponential convergence of Langevin distributions, equation 1.

    Raises TypeError when both are missing or a score takes (x, t), ArgumentOrderError for (t, x).
    """

    noise_type: str = "additive"
    _claims_checked: bool = True

    def __init__(self, score: Any = None, *, log_prob: Callable[[Tensor], Tensor] | None = None) -> None:
        if log_prob is None and callable(getattr(score, "log_prob", None)):
            score, log_prob = None, score.log_prob
        if score is None and log_prob is None:
            raise TypeError(
                "Langevin needs a score or log_prob. Next: Langevin(target), or Langevin(lambda x: -x)."
            )
        for role, fn in (("score", score), ("log_prob", log_prob)):
            if fn is not None:
                _check_stationary(fn, role)
        self._score, self._log_prob = score, log_prob
        super().__init__()

    @property
    def has_density(self) -> bool:
        """Whether `log_prob` is known."""
        return self._log_prob is not None

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) up to a constant, (B, *event) -> (B,).

        Raises CapabilityError where only the score is known, ShapeError for any other shape.
        """
        if self._log_prob is None:
            raise CapabilityError("this Langevin knows its score only. Next: Langevin(score, log_prob=...).")
        out = self._log_prob(x)
        if out.shape != x.shape[:1]:
            raise ShapeError(
                f"log_prob must return shape {tuple(x.shape[:1])}, one number a sample, got "
                f"{tuple(out.shape)}. Likely cause: a density of each element. Next: sum it over the event."
            )
        return out

    def score(self, x: Tensor) -> Tensor:
        """grad log p(x), shape of x."""
        if self._score is not None:
            out: Tensor = self._score(x)
            return out
        graph = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            y = x if graph else x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.log_prob(y).sum(), y, create_graph=graph)
        return slope

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """The score, whatever the time."""
        return self.score(x)

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """sqrt(2)."""
        return torch.full_like(x, math.sqrt(2.0))

    def __repr__(self) -> str:
        return f"Langevin({'log_prob' if self._score is None else self._score!r})"


def _check_stationary(fn: Any, role: str) -> None:
    """A callable of x alone. Raises TypeError."""
    if not callable(fn):
        raise TypeError(f"{role} must be callable as {role}(x), got {type(fn).__name__}.")
    check_argument_order(fn, role)
    target = fn.forward if isinstance(fn, torch.nn.Module) else fn
    try:
        given = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return
    needed = [
        p for p in given if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(needed) > 1:
        raise TypeError(
            f"{role} must take x alone, since a stationary law has no time; it takes "
            f"({', '.join(p.name for p in needed)}). Next: fix the time, lambda x: {role}(x, 0.01)."
        )
