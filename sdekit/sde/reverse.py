"""Time reversal: the SDEs and the ODE that have the marginals of a process and run its time the other way."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from sdekit._typing import Number
from sdekit.errors import check_argument_order, check_output
from sdekit.sde.base import ODE, SDE
from sdekit.sde.contract import check_claims
from sdekit.sde.gaussian import GaussianDiffusion
from sdekit.sde.rows import as_time
from sdekit.sde.spec import parameters

__all__ = ["ProbabilityFlow", "ReverseSDE", "probability_flow", "reverse"]


def _score_function(score: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """The callable (x, t) of a score, or of an object that has one."""
    fn = getattr(score, "score", score)
    if not callable(fn):
        raise TypeError(
            f"score must be a callable (x, t) or have a method score(x, t), got {type(score).__name__}. "
            f"Next: Denoiser(net, process), target.score(process), or a function."
        )
    check_argument_order(fn, "score")
    return fn  # type: ignore[no-any-return]


def _differ(a: GaussianDiffusion, b: GaussianDiffusion) -> bool:
    """Whether two processes have other laws; t_min does not count."""
    names = [f.name for f in parameters(a) if f.name != "t_min"]
    return type(a) is not type(b) or any(getattr(a, n) != getattr(b, n) for n in names)


def _check_pair(process: object, score: object) -> None:
    if isinstance(process, ODE):
        raise TypeError(
            "an ODE has no noise to reverse: it runs in both directions as it is. Next: solve it with a "
            "decreasing span."
        )
    if not isinstance(process, SDE):
        raise TypeError(
            f"process must be an SDE, got {type(process).__name__}. Next: reverse(process, score)."
        )
    own = getattr(score, "process", None)
    if (
        isinstance(own, GaussianDiffusion)
        and isinstance(process, GaussianDiffusion)
        and _differ(own, process)
    ):
        raise ValueError(
            f"the score belongs to {own!r}, but {process!r} is to be reversed. Next: pass the process of the "
            f"score."
        )


def _drift(
    process: SDE, score: Callable[[Tensor, Tensor], Tensor], eta: float, x: Tensor, t: Number
) -> Tensor:
    """f -/+ (1 + eta^2)/2 (D + G G^T score), - for a process that runs forward; see `ReverseSDE`."""
    check_claims(process, x, t)
    g = process.noise_field(x, t)
    value = check_output(score(x, as_time(t, x)), x, "score")
    term = process.apply_ggt(g, value)
    if process.noise_type != "additive":
        divergence = process.divergence_ggt(x, t)
        if process.sde_type == "stratonovich":
            divergence = divergence - 2.0 * process.correction(x, t)
        term = term + divergence
    term = (0.5 * (1.0 + eta * eta)) * term
    drift = process.drift(x, t)
    return drift + term if process.runs_backward else drift - term


class ReverseSDE(SDE):
    """The reversal of dX = f dt + G dW with score = grad log p_t, run with decreasing t,

        dx = [f - (1 + eta^2)/2 (div(G G^T) + G G^T score)] dt + eta G dW.

    At every eta >= 0 its marginals are those of the process: eta = 1 is Anderson's reverse SDE, eta = 0
    the probability flow. ``sde_type`` and ``noise_type`` are the process's. A Stratonovich process
    stays one: with c the correction of `SDE.correction`, its reversal has div(G G^T) - 2 c =
    sum_k G_k div G_k in place of div(G G^T). The reversal of a reversal runs forward again,
    with + (1 + eta^2)/2, and with both eta = 1 is the process.

    Anderson 1982, Stochastic Processes and their Applications 12, 313; Haussmann and Pardoux 1986, Annals of
    Probability 14, 1188; Song et al. 2021 (arXiv:2011.13456), equations 6 and 13; general eta: Zhang and Chen
    2023 (arXiv:2204.13902), equation 6.
    """

    def __init__(self, process: SDE, score: Any, eta: float = 1.0) -> None:
        _check_pair(process, score)
        try:
            number = float(eta)
        except (TypeError, ValueError):
            number = math.nan
        if not (number >= 0 and math.isfinite(number)):
            raise ValueError(
                f"eta must be a finite number >= 0, got {eta!r}. It scales the noise: 1 is the reverse SDE, "
                f"0 the probability-flow ODE."
            )
        self.process, self.score, self.eta = process, score, number
        self._score = _score_function(score)
        super().__init__(
            noise_type=process.noise_type,
            sde_type=process.sde_type,
            noise_dim=process.noise_dim,
            t_min=process.t_min,
            t_max=process.t_max,
        )
        self.runs_backward = not process.runs_backward
        self._claims_checked = True

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """f - (1 + eta^2)/2 (div(G G^T) + G G^T score), (B, *event).

        Raises ShapeError when the score does not have the shape of x, EndpointError where the process has
        no finite drift (alpha = 0).
        """
        return _drift(self.process, self._score, self.eta, x, t)

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """eta G, the shape of the process's diffusion."""
        return self.eta * self.process.diffusion(x, t)

    def divergence_ggt(self, x: Tensor, t: Number) -> Tensor:
        """eta^2 div(G G^T), (B, *event)."""
        return self.eta**2 * self.process.divergence_ggt(x, t)

    def correction(self, x: Tensor, t: Number) -> Tensor:
        """eta^2 times the process's, (B, *event)."""
        return self.eta**2 * self.process.correction(x, t)

    def validate(self, x: Tensor, t: Number) -> None:
        """The checks of `SDE.validate`, on the process and on the reversal."""
        self.process.validate(x, t)
        super().validate(x, t)

    def __repr__(self) -> str:
        return f"reverse({self.process!r}, eta={self.eta:g})"


class ProbabilityFlow(ODE):
    """dx/dt = f - 1/2 (div(G G^T) + G G^T score): the ODE with the marginals of the process.

    For a GaussianDiffusion whose score comes from a model with a method ``velocity(x, t)``, that is the
    right-hand side: the same in exact arithmetic, and finite where alpha = 0.

    Song et al. 2021 (arXiv:2011.13456), equation 13 and appendix D.1.
    """

    def __init__(self, process: SDE, score: Any) -> None:
        _check_pair(process, score)
        self.process, self.score = process, score
        self._score = _score_function(score)
        velocity = getattr(score, "velocity", None)
        self._direct = velocity if isinstance(process, GaussianDiffusion) and callable(velocity) else None
        super().__init__(t_min=process.t_min, t_max=process.t_max)

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """f - 1/2 (div(G G^T) + G G^T score), (B, *event). Raises as `ReverseSDE.drift`."""
        if self._direct is not None:
            return check_output(self._direct(x, as_time(t, x)), x, "velocity")
        return _drift(self.process, self._score, 0.0, x, t)

    def __repr__(self) -> str:
        return f"probability_flow({self.process!r})"


def reverse(process: SDE, score: Any, eta: float = 1.0) -> ReverseSDE:
    """The reverse-time SDE of ``process``, at noise level ``eta``; see `ReverseSDE`.

    score: a callable (x, t) -> (B, *event), or an object with such a method ``score`` (a Denoiser). Exact
    ones are ``target.score(process)`` for linear processes and `transition_score` for runs from a point;
    where noise acts on velocities only, `velocity_score` makes one of their part.
    Raises TypeError for an ODE or what is no score, ArgumentOrderError for a score that takes (t, x),
    ValueError for eta < 0 or NaN, or when the score belongs to another process.
    """
    return ReverseSDE(process, score, eta)


def probability_flow(process: SDE, score: Any) -> ProbabilityFlow:
    """The ODE with the marginals of ``process``; see `ProbabilityFlow`. Arguments and errors as `reverse`."""
    return ProbabilityFlow(process, score)
