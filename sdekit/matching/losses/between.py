"""Velocities and scores of paths between two samples: flow matching and stochastic interpolants."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sdekit._typing import State
from sdekit.errors import ShapeError, check_output, check_state, unknown_name
from sdekit.matching.losses.fields import Score, at_time, normals, rows, squared
from sdekit.matching.losses.times import uniform
from sdekit.noise import Noise, Purpose
from sdekit.score.model import Denoiser
from sdekit.sde.coefficients import derivative

__all__ = ["INTERPOLANTS", "Interpolant", "flow_matching", "interpolant"]

OfTime = Callable[[Tensor], Tensor]

PREDICTIONS = ("noise", "score", "velocity")
MARGIN = 1e-3


@dataclass(frozen=True)
class Interpolant:
    """x_t = a(t) x0 + b(t) x1 + c(t) z, z ~ N(0, I), t from 0 to 1,

        a(0) = b(1) = 1,   a(1) = b(0) = c(0) = c(1) = 0.

    a, b, c: functions of a float64 tensor t, differentiable by torch.func inside (0, 1). The law of x_t goes
    from that of x0 at t = 0 to that of x1 at t = 1. Albergo, Boffi and Vanden-Eijnden 2023
    (arXiv:2303.08797), section 2.
    """

    a: OfTime
    b: OfTime
    c: OfTime


def _bridge(t: Tensor) -> Tensor:
    """sqrt(t (1 - t)), the standard deviation of a Brownian bridge."""
    return (t * (1 - t)).sqrt()


#: (a, b, c): linear 1 - t, t, sqrt(t (1 - t)); trigonometric cos(pi t/2), sin(pi t/2) and the same c;
#: encoding-decoding cos^2(pi t) of x0 until t = 1/2 and of x1 from there, sin^2(pi t), pure noise half-way.
INTERPOLANTS = {
    "linear": Interpolant(lambda t: 1 - t, lambda t: t, _bridge),
    "trigonometric": Interpolant(
        lambda t: torch.cos(0.5 * math.pi * t), lambda t: torch.sin(0.5 * math.pi * t), _bridge
    ),
    "encoding-decoding": Interpolant(
        lambda t: torch.where(t < 0.5, torch.cos(math.pi * t).square(), torch.zeros_like(t)),
        lambda t: torch.where(t > 0.5, torch.cos(math.pi * t).square(), torch.zeros_like(t)),
        lambda t: torch.sin(math.pi * t).square(),
    ),
}


def flow_matching(
    net: Score,
    x0: State,
    x1: State | None = None,
    *,
    t: Tensor | None = None,
    stratified: bool = True,
    seed: int = 0,
    draw: int = 0,
) -> Float[Tensor, " B"]:
    r"""Flow matching on straight lines:

        || net(x_t, t) - (x1 - x0) ||^2,   x_t = (1 - t) x0 + t x1,   t ~ U(0, 1).

    The minimiser is E[x1 - x0 | x_t], whose flow carries the law of x0 (t = 0) to that of x1 (t = 1) and
    back. With x1 = None, N(0, I), it is the velocity of `RectifiedFlow` and ``Denoiser(net, RectifiedFlow(),
    predicts="flow")`` its model.

    net: net(x, t), t (B,), or a `Denoiser`, of which the velocity is taken. x0: data (B, *event). x1: the
    other end of each pair, of the shape of x0; any coupling. t: (B,), drawn unless given. stratified, seed,
    draw as in `training_times` and `denoising`.

    Returns (B,), at least float32. Raises ShapeError, NonFiniteError. Lipman et al. 2023 (arXiv:2210.02747),
    equation 9, with t reversed; Liu et al. 2023 (arXiv:2209.03003), equation 1.
    """
    x0 = check_state(x0, "x0")
    x1 = normals(x0, seed, draw, None, Purpose.TRAINING) if x1 is None else _other(x1, x0)
    time = _times(t, x0, stratified, seed, draw, 0.0)
    s = rows(time, x0)
    return squared(at_time(net, x0, time, "velocity")((1 - s) * x0 + s * x1) - (x1 - x0))


def interpolant(
    net: Score,
    x0: State,
    x1: State,
    path: str | Interpolant = "linear",
    *,
    predicts: str = "velocity",
    t: Tensor | None = None,
    stratified: bool = True,
    seed: int = 0,
    draw: int = 0,
    noise: Noise | None = None,
) -> Float[Tensor, " B"]:
    r"""Stochastic interpolants between two samples, at x_t = a x0 + b x1 + c z:

        velocity   || net - (a' x0 + b' x1 + c' z) ||^2       minimiser  E[dx_t/dt | x_t]
        score      || c net + z ||^2                         minimiser  grad log p_t = -E[z | x_t]/c
        noise      || net - z ||^2                           minimiser  E[z | x_t]

    With both, dx = (velocity + e score) dt + sqrt(2 e) dW has the law of x_t for every e >= 0.

    Parameters
    ----------
    net
        net(x, t), t (B,).
    x0, x1
        The samples at t = 0 and t = 1, (B, *event) each; any coupling.
    path
        "linear", "trigonometric", "encoding-decoding", or an `Interpolant`.
    predicts
        What net returns.
    t
        (B,); drawn from U(0.001, 0.999) unless given, since c' is infinite at the ends of a bridge.
    stratified, seed, draw, noise
        As in `denoising`; ``noise`` gives z.

    Returns
    -------
    (B,), at least float32.

    Raises
    ------
    ShapeError, NonFiniteError: states that do not fit. UnknownNameError: an unknown path or prediction.

    References
    ----------
    Albergo, Boffi and Vanden-Eijnden 2023 (arXiv:2303.08797), section 2.
    """
    x0 = check_state(x0, "x0")
    x1 = _other(x1, x0)
    if isinstance(path, str):
        if path not in INTERPOLANTS:
            raise unknown_name("interpolant", path, INTERPOLANTS)
        path = INTERPOLANTS[path]
    if predicts not in PREDICTIONS:
        raise unknown_name("prediction of an interpolant", predicts, PREDICTIONS)
    if isinstance(net, Denoiser):
        raise TypeError("a Denoiser belongs to a process from data to noise. Next: pass its network.")
    time = _times(t, x0, stratified, seed, draw, MARGIN)
    z = normals(x0, seed, draw, noise, Purpose.TRAINING)
    a, b, c = (rows(f(time), x0) for f in (path.a, path.b, path.c))
    out = at_time(net, x0, time, predicts)(a * x0 + b * x1 + c * z)
    if predicts == "score":
        return squared(c * out + z)
    if predicts == "noise":
        return squared(out - z)
    da, db, dc = (rows(derivative(f, time), x0) for f in (path.a, path.b, path.c))
    return squared(out - (da * x0 + db * x1 + dc * z))


def _other(x1: State, x0: State) -> State:
    return check_output(check_state(x1, "x1"), x0, "x1")


def _times(t: Tensor | None, x0: State, stratified: bool, seed: int, draw: int, margin: float) -> Tensor:
    """(B,) float64 in [margin, 1 - margin], or t checked."""
    if t is None:
        u = uniform(len(x0), stratified=stratified, seed=seed, draw=draw, device=x0.device)
        return margin + (1 - 2 * margin) * u
    if t.shape != x0.shape[:1]:
        raise ShapeError(
            f"t must have shape ({len(x0)},), one time for each row of x0, got {tuple(t.shape)}."
        )
    return t.to(torch.float64)
