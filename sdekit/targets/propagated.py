r"""Scores of a law that a linear equation carries along: X_t = Phi X_0 + r + N(0, C_t), all known.

    X_0 ~ sum_k w_k N(m_k, C_k)   gives   X_t ~ sum_k w_k N(Phi m_k + r, S_k),   S_k = Phi C_k Phi^T + C_t,
    score = -sum_k p_k(x) S_k^{-1} (x - Phi m_k - r),   p_k(x) the posterior probability of component k.

A scalar Ornstein-Uhlenbeck equation is alpha x0 + shift + sigma eps for any law. A position and a velocity
keep the eigenvectors of the data and need 2 x 2 matrices only. What is left needs D x D matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sdekit._typing import Field, Number
from sdekit.errors import CapabilityError, ShapeError, check_state_time
from sdekit.sde.kinetic import CriticallyDampedLangevin, HarmonicLangevin
from sdekit.sde.linear import LinearSDE, OrnsteinUhlenbeck
from sdekit.sde.phase import join, split
from sdekit.sde.rows import matvec, over_event
from sdekit.targets._rows import fold, softmax
from sdekit.targets.gaussian import Gaussian
from sdekit.targets.mixture import GaussianMixture

if TYPE_CHECKING:
    from sdekit.targets.base import Target

__all__ = ["score_under"]

Part = tuple[Tensor, Tensor]
"""log w_k N(x), (R,), and the score of component k, (R, D)."""


def score_under(target: Target, process: Any) -> Field:
    """The score (x, t) of X_t, X_0 ~ ``target`` at t = 0, under a linear ``process``; see `Target.score`."""
    if isinstance(process, OrnsteinUhlenbeck) and process.theta.ndim == process.sigma.ndim == 0:
        return _scaled(target, process)
    laws = _components(target, process)
    if isinstance(process, (CriticallyDampedLangevin, HarmonicLangevin)):
        return _kinetic(target, laws, process)
    if isinstance(process, LinearSDE):
        return _each_time(target, lambda x, t: _dense(laws, process.flow(float(t)), x))
    if isinstance(process, OrnsteinUhlenbeck):
        linear = _as_linear(process, target.event_shape)
        return _each_time(target, lambda x, t: _dense(laws, linear.flow(float(t)), x))
    raise CapabilityError(
        f"{type(process).__name__} does not keep {type(target).__name__} in closed form. Next: a linear "
        f"process (GaussianDiffusion, LinearSDE, OrnsteinUhlenbeck, CriticallyDampedLangevin, "
        f"HarmonicLangevin), or sdekit.sde.transition_score(process, x0) for the law from a point."
    )


def _components(target: Target, process: Any) -> list[tuple[Tensor, Gaussian]]:
    """(log w_k, N(m_k, C_k)). Raises CapabilityError for laws that are no mixtures of Gaussians."""
    if isinstance(target, Gaussian):
        return [(torch.zeros((), dtype=torch.float64), target)]
    if isinstance(target, GaussianMixture):
        return list(zip(torch.log(target.weights), target.components, strict=True))
    raise CapabilityError(
        f"{type(process).__name__} needs a Gaussian or a GaussianMixture, got {type(target).__name__}. Next: "
        f"GaussianMixture(weights, data, bandwidth**2)."
    )


def _combine(parts: list[Part]) -> Tensor:
    """sum_k p_k score_k, (R, D)."""
    p = softmax(torch.stack([log for log, _ in parts], dim=-1))
    return fold(torch.stack([s for _, s in parts], dim=-1) * p[:, None, :])


# alpha x0 + shift + sigma eps.


def _scaled(target: Target, process: OrnsteinUhlenbeck) -> Field:
    def score(x: Tensor, t: Number) -> Tensor:
        x = check_state_time(x, t, "score")
        time = torch.as_tensor(t, dtype=torch.float64)
        unit = torch.ones(time.numel(), 1, dtype=torch.float64, device=time.device)
        law = OrnsteinUhlenbeck(process.theta, 0.0, process.sigma).transition(unit, 0.0, time)
        alpha, sigma = (c.expand(unit.shape)[:, 0].reshape(time.shape) for c in law)
        wide = x.to(torch.float64)
        fall = over_event(1.0 - alpha.to(x.device), wide)
        out = target._field(target._score_at, wide - fall * process.mu.to(x.device), alpha, sigma)
        return out.to(x.dtype)

    return score


# Dense matrices over the flattened event.


def _as_linear(process: OrnsteinUhlenbeck, event: torch.Size) -> LinearSDE:
    theta, mu, sigma = (c.expand(event).reshape(-1) for c in (process.theta, process.mu, process.sigma))
    return LinearSDE(torch.diag(-theta), theta * mu, torch.diag(sigma))


def _dense(laws: list[tuple[Tensor, Gaussian]], flow: tuple[Tensor, Tensor, Tensor], x: Tensor) -> Tensor:
    """The score at rows (R, D), float64, from the flow (Phi, r, C_t)."""
    phi, shift, noise = (c.detach().to(x) for c in flow)
    if phi.shape[0] != x.shape[1]:
        raise ShapeError(f"the process has {phi.shape[0]} dimensions, and the law {x.shape[1]}.")
    parts = []
    for log_weight, law in laws:
        mean = phi @ law.mean.reshape(-1).to(x) + shift
        cov = phi @ law.cov.to(x) @ phi.T + noise
        lower = torch.linalg.cholesky(0.5 * (cov + cov.T))
        pull = -matvec(torch.cholesky_inverse(lower), x - mean)
        log = 0.5 * fold(pull * (x - mean)) - torch.log(torch.diagonal(lower)).sum()
        parts.append((log + log_weight.to(x), pull))
    return _combine(parts)


def _each_time(target: Target, at: Callable[[Tensor, Tensor], Tensor]) -> Field:
    """A score by rows and one time, for times of shape () or (B,)."""

    def score(x: Tensor, t: Number) -> Tensor:
        x = check_state_time(x, t, "score")
        out = _by_time(at, target._flat(x), torch.as_tensor(t, dtype=torch.float64))
        return out.reshape(x.shape).to(x.dtype)

    return score


def _by_time(at: Callable[[Tensor, Tensor], Tensor], flat: Tensor, t: Tensor) -> Tensor:
    if t.ndim == 0:
        return at(flat, t)
    times, which = torch.unique(t.detach(), return_inverse=True)
    order = torch.argsort(which, stable=True)
    pieces = [at(flat[which == k], time) for k, time in enumerate(times.unbind())]
    return torch.cat(pieces)[torch.argsort(order)]


# Positions and velocities.


class _Pair(NamedTuple):
    """q' = a q + b v, v' = c q + d v, plus noise of covariance qq, qv, vv: () or (R, 1), float64."""

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    qq: Tensor
    qv: Tensor
    vv: Tensor


def _pair(process: Any, t: Tensor, device: torch.device) -> _Pair:
    """The flow of one element from 0 to t, () or (R,)."""
    rows = torch.zeros(t.numel() if t.ndim else 1, dtype=torch.float64)
    if isinstance(process, HarmonicLangevin) and t.ndim:
        times, which = torch.unique(t.detach(), return_inverse=True)
        each = [_pair(process, time, device) for time in times.unbind()]
        index = which.to(device)
        return _Pair(
            *(torch.stack([v.reshape(()) for v in c])[index][:, None] for c in zip(*each, strict=True))
        )
    moved, kicked = (process.transition(x, 0.0, t) for x in (join(rows + 1.0, rows), join(rows, rows + 1.0)))
    columns = (*moved.mean.unbind(1), *kicked.mean.unbind(1), moved.qq, moved.qv, moved.vv)
    a, c, b, d, *noise = (v.to(device).expand(rows.shape).reshape(-1, 1) for v in columns)
    return _Pair(a, b, c, d, *noise)


def _kinetic(target: Target, laws: list[tuple[Tensor, Gaussian]], process: Any) -> Field:
    damped = isinstance(process, CriticallyDampedLangevin)
    start = float(process.gamma * process.mass if damped else process.temperature)

    def joint(x: Tensor, t: Tensor) -> Tensor:
        p = _pair(process, t, x.device)
        eye = torch.eye(x.shape[1] // 2, dtype=x.dtype, device=x.device)
        phi, noise = (
            torch.kron(torch.stack([torch.stack(r) for r in m]), eye)
            for m in (
                ((p.a.squeeze(), p.b.squeeze()), (p.c.squeeze(), p.d.squeeze())),
                ((p.qq.squeeze(), p.qv.squeeze()), (p.qv.squeeze(), p.vv.squeeze())),
            )
        )
        return _dense(laws, (phi, torch.zeros_like(x[0]), noise), x)

    together = _each_time(target, joint)

    def score(x: Tensor, t: Number) -> Tensor:
        x = check_state_time(x, t, "score")
        if x.shape[1:] == target.event_shape:
            return together(x, torch.as_tensor(t))
        q, v = (c.to(torch.float64) for c in split(x))
        if q.shape[1:] != target.event_shape:
            raise ShapeError(
                f"x must have shape (B, 2, *event) for a law of positions {tuple(target.event_shape)}, or "
                f"(B, *event) for a law of both, got {tuple(x.shape)}."
            )
        p = _pair(process, torch.as_tensor(t, dtype=torch.float64), x.device)
        parts = [_pair_part(law, p, start, log_weight, q, v) for log_weight, law in laws]
        return _combine(parts).reshape(x.shape).to(x.dtype)

    return score


def _pair_part(law: Gaussian, p: _Pair, start: float, log_weight: Tensor, q: Tensor, v: Tensor) -> Part:
    """With Q_0 ~ ``law`` and V_0 ~ N(0, ``start`` I): in the eigenvectors of Q_0 each pair is by itself."""
    values, mean = law.eigenvalues.to(q.device), law.mean.reshape(-1).to(q.device)
    qq = p.a * p.a * values + (p.b * p.b * start + p.qq)
    qv = p.a * p.c * values + (p.b * p.d * start + p.qv)
    vv = p.c * p.c * values + (p.d * p.d * start + p.vv)
    slope = qv / qq
    left = vv - slope * qv
    rq = law._to(q.reshape(len(q), -1) - p.a * mean)
    e = law._to(v.reshape(len(v), -1) - p.c * mean) - slope * rq
    log = -0.5 * fold(rq * rq / qq + e * e / left + torch.log(qq) + torch.log(left))
    pulls = (law._from(slope * e / left - rq / qq), law._from(-e / left))
    return log + log_weight.to(q.device), torch.cat(pulls, dim=1)
