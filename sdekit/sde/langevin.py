"""Langevin dynamics, overdamped and underdamped: the SDEs whose stationary law is a given density."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdekit._typing import Number
from sdekit.errors import CapabilityError, ShapeError, check_argument_order, check_positive
from sdekit.sde.base import SDE
from sdekit.sde.phase import join, split, velocity_noise

__all__ = ["Langevin", "UnderdampedLangevin"]


class _Stationary(SDE):
    """What is known of a density p: its score, its logarithm, or both."""

    noise_type: str = "additive"
    _claims_checked: bool = True

    def __init__(self, score: Any = None, *, log_prob: Callable[[Tensor], Tensor] | None = None) -> None:
        name = type(self).__name__
        if log_prob is None and callable(getattr(score, "log_prob", None)):
            score, log_prob = None, score.log_prob
        if score is None and log_prob is None:
            raise TypeError(
                f"{name} needs a score or log_prob. Next: {name}(target), or {name}(lambda x: -x)."
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
            name = type(self).__name__
            raise CapabilityError(f"this {name} knows its score only. Next: {name}(score, log_prob=...).")
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


class Langevin(_Stationary):
    """dX = grad log p(X) dt + sqrt(2) dW, which leaves the law p as it is.

    score: callable x (B, *event) -> grad log p, of the same shape; or an object with ``log_prob``, such as
    a closed-form target. log_prob: callable (B, *event) -> (B,), in nats, up to a constant; then the
    score may be left out and comes from autograd. "mala" needs log_prob, "ula" and other solvers do not.

    The score of data has no time: fix that of a diffusion's, ``lambda x: model.score(x, t)``.
    Roberts and Tweedie 1996, Exponential convergence of Langevin distributions, equation 1.

    Raises TypeError when both are missing or a score takes (x, t), ArgumentOrderError for (t, x).
    """

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """The score, whatever the time."""
        return self.score(x)

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """sqrt(2)."""
        return torch.full_like(x, math.sqrt(2.0))

    def __repr__(self) -> str:
        return f"Langevin({'log_prob' if self._score is None else self._score!r})"


class UnderdampedLangevin(_Stationary):
    """dQ = V dt, dV = (T grad log p(Q) - gamma V) dt + sqrt(2 gamma T) dW, stationary at p(q) N(v; 0, T I).

    score, log_prob: of p, functions of the positions, as for `Langevin`. friction: gamma > 0 (1/time);
    temperature: T > 0, the stationary variance of a velocity. States are (B, 2, *event), positions Q in
    [:, 0] and velocities V in [:, 1]; `join` makes them. Of the noise, of the same shape, only the half
    that belongs to the velocities acts. p = N(0, T/omega^2) has an exact law: `HarmonicLangevin`.

    Cheng, Chatterji, Bartlett and Jordan 2018 (arXiv:1707.03663), section 1, with T = u.

    Raises as `Langevin`, and ValueError for a friction or temperature that is not positive.
    """

    def __init__(
        self,
        score: Any = None,
        *,
        log_prob: Callable[[Tensor], Tensor] | None = None,
        friction: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        self.friction = check_positive(friction, "friction")
        self.temperature = check_positive(temperature, "temperature")
        super().__init__(score, log_prob=log_prob)

    join = staticmethod(join)

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """(V, T score(Q) - gamma V), (B, 2, *event). Raises ShapeError for a state of another shape."""
        q, v = split(x)
        return torch.stack([v, self.temperature * self.score(q) - self.friction * v], dim=1)

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """(0, sqrt(2 gamma T)), (2, 1, ..., 1)."""
        return velocity_noise(math.sqrt(2.0 * self.friction * self.temperature), x)

    def __repr__(self) -> str:
        known = "log_prob" if self._score is None else repr(self._score)
        return f"UnderdampedLangevin({known}, friction={self.friction:g}, temperature={self.temperature:g})"


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
