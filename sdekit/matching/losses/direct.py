"""Score matching at given points: explicit, implicit, sliced and by finite differences. No noise is added.

    explicit  1/2 ||s - grad log p||^2
    implicit  tr grad s + 1/2 ||s||^2          equal to it in expectation over p, up to a constant of p

Integration by parts makes one of the other, if p s vanishes at infinity (Hyvarinen 2005, theorem 1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sdekit._typing import Number, State
from sdekit.errors import check_count, check_output, check_positive, check_state
from sdekit.matching.losses.fields import Score, at_time, probe, squared, summed
from sdekit.score.energy import Energy
from sdekit.sde.rows import flat

__all__ = ["explicit", "finite_difference", "implicit", "sliced"]


def explicit(
    score: Score, x: State, exact: Tensor | Score, *, t: Number | None = None
) -> Float[Tensor, " B"]:
    """Explicit score matching, 1/2 ||s(x) - exact(x)||^2, for a score that is known.

    score: s(x, t), s(x) if t is None, or a `Denoiser`. x: points (B, *event). exact: the true score, a
    tensor of the shape of x or a function of the same form. t: a number, () or (B,).

    Returns (B,), at least float32. Raises ShapeError for outputs that have not the shape of x.
    Hyvarinen 2005, equation 2.
    """
    x = check_state(x, "x")
    known = check_output(exact, x, "exact") if isinstance(exact, Tensor) else at_time(exact, x, t)(x)
    return 0.5 * squared(at_time(score, x, t)(x) - known)


def implicit(
    score: Score,
    x: State,
    *,
    t: Number | None = None,
    probes: int | None = None,
    law: str = "rademacher",
    seed: int = 0,
    draw: int = 0,
) -> Float[Tensor, " B"]:
    r"""Implicit score matching, for data whose score is not known:

        tr grad s(x) + 1/2 ||s(x)||^2,

    in expectation over p equal to `explicit` less E ||grad log p||^2 / 2. There is no 1/2 at the trace.

    Parameters
    ----------
    score
        s(x, t), s(x) if t is None, or a `Denoiser`; differentiable in x, and its derivative in the weights.
    x
        Data (B, *event).
    t
        A number, () or (B,).
    probes
        None: the exact trace, by D backward products. A number k: Hutchinson's unbiased estimate
        1/k sum v^T grad s v, E v v^T = I, by k of them; then the loss is `sliced` with reduced variance.
    law
        Of the probes v: "rademacher" (least variance for a symmetric Jacobian), "normal" or "sphere" of
        radius sqrt(D).
    seed, draw
        Probe j of sample i is draw ``draw probes + j`` of sample i in the key of probes.

    Returns
    -------
    (B,), at least float32.

    Raises
    ------
    ShapeError, NonFiniteError: x not floating or not finite, a score of another shape.

    References
    ----------
    Hyvarinen 2005, theorem 1; Hutchinson 1989.
    """
    if probes is not None:
        return sliced(score, x, t=t, probes=probes, law=law, seed=seed, draw=draw)
    y, s, product = _differentiable(score, x, t)
    value = 0.5 * squared(s)
    for j in range(flat(y).shape[1]):
        e = torch.zeros_like(flat(s))
        e[:, j] = 1.0
        value = value + summed(product(e.reshape(s.shape)), e.reshape(s.shape))
    return value


def sliced(
    score: Score,
    x: State,
    *,
    t: Number | None = None,
    probes: int = 1,
    law: str = "rademacher",
    variance_reduced: bool = True,
    seed: int = 0,
    draw: int = 0,
) -> Float[Tensor, " B"]:
    r"""Sliced score matching: scores compared along random directions v, E v v^T = I,

        v^T grad s(x) v + 1/2 (v^T s(x))^2       variance_reduced=False,
        v^T grad s(x) v + 1/2 ||s(x)||^2         variance_reduced=True, the second expectation being known.

    Both are unbiased for `implicit`, at any dimension for one backward product a direction. For normal v and
    a symmetric slope J = grad s the second form saves the variance ||s||^4/2 + 2 s^T J s at a point: on
    average over N(0, I) and its score D (D/2 - 1), a loss in one dimension and near modes.

    Parameters and errors as in `implicit`; probes: directions for each sample, averaged.
    Returns (B,), at least float32. Song, Garg, Shi and Ermon 2019 (arXiv:1905.07088), section 3.
    """
    y, s, product = _differentiable(score, x, t)
    count = check_count(probes, "probes")
    total = torch.zeros_like(squared(s))
    for j in range(count):
        v = probe(law, y, seed, draw * count + j)
        total = total + summed(product(v), v)
        if not variance_reduced:
            total = total + 0.5 * summed(s, v).square()
    return total / count + 0.5 * squared(s) if variance_reduced else total / count


def finite_difference(
    score: Score | Energy,
    x: State,
    *,
    t: Number | None = None,
    eps: float | None = None,
    probes: int = 1,
    law: str = "rademacher",
    seed: int = 0,
    draw: int = 0,
) -> Float[Tensor, " B"]:
    r"""Sliced score matching without derivatives in x, with an error O(eps^2):

        v^T (s_+ - s_-)/(2 eps) + ||s_+ + s_-||^2 / 8,      s_+- = s(x +- eps v),

    and for an `Energy`, from three values of it and no derivative at all,

        (2 E - E_+ - E_-)/eps^2 + (E_- - E_+)^2 / (8 eps^2),      E_+- = E(x +- eps v).

    eps: length of the step in units of x for one standard deviation of v; u^{1/3} (u^{1/4} for an energy),
    u the rounding unit of x's dtype, for data of unit scale unless given. Other parameters and errors as in
    `sliced`; ValueError for eps <= 0. Returns (B,), at least float32.
    Pang et al. 2020 (arXiv:2007.03317), section 3.
    """
    x = check_state(x, "x")
    count = check_count(probes, "probes")
    energy = score if isinstance(score, Energy) else None
    unit = torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps
    step = unit ** (0.25 if energy else 1 / 3) if eps is None else check_positive(eps, "eps")
    time = None if t is None else torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
    field = at_time(score, x, t)
    total = x.new_zeros(len(x), dtype=torch.promote_types(x.dtype, torch.float32))
    for j in range(count):
        v = probe(law, x, seed, draw * count + j)
        ahead, back = x + step * v, x - step * v
        if energy is not None:
            here, high, low = (energy.energy(point, time).to(total) for point in (x, ahead, back))
            total = total + (2 * here - high - low) / step**2 + ((low - high) / step).square() / 8
        else:
            high, low = field(ahead), field(back)
            total = total + summed(high - low, v) / (2 * step) + squared(high + low) / 8
    return total / count


def _differentiable(
    score: Score, x: State, t: Number | None
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """x as the origin of a graph, s(x), and v -> (grad s)^T v of each sample."""
    x = check_state(x, "x")
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        y = x if x.requires_grad else x.detach().requires_grad_()
        s = at_time(score, y, t)(y)

    def product(v: Tensor) -> Tensor:
        if not s.requires_grad:
            return torch.zeros_like(y)
        return torch.autograd.grad(s, y, v, create_graph=keep, retain_graph=True, materialize_grads=True)[0]

    return y, s, product
