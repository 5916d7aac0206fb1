"""Scores that are gradients of a scalar potential, and how far any other score is from one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sdekit._typing import State
from sdekit.errors import (
    ShapeError,
    check_argument_order,
    check_call,
    check_count,
    check_output,
    check_state,
    out_of_place,
)
from sdekit.noise import Philox, Purpose
from sdekit.sde.calculus import pullback
from sdekit.sde.rows import flat

__all__ = ["Energy", "curl"]


class Energy(nn.Module):
    r"""A scalar network as a score:

        score(x, t) = -grad_x E(x, t),   the score of p(x) = exp(-E(x)) / Z at every t.

    It is called as a score is, ``energy(x, t)`` or ``energy(x)``, gives the gradient also under
    ``torch.no_grad`` and inside ``torch.func`` transforms, and can be differentiated again, in x and in
    the weights. Its Jacobian is symmetric, whatever the weights.

    net: E itself, a module or callable net(x, t), or net(x) if no time is ever given; x (B, *event) -> (B,),
    one number a sample that depends on this sample alone.

    Raises ArgumentOrderError for ``net(t, x)``; ShapeError, when called, for a net that returns anything but
    (B,), a vector in particular: that is a score already, and needs no `Energy`; ValueError for a net that
    changes x in place; TypeError for a net of (x, t) called without a time, and one of x called with it.

    LeCun et al. 2006, A tutorial on energy-based learning, section 1.
    """

    def __init__(self, net: Callable[..., Tensor]) -> None:
        super().__init__()
        if not callable(net):
            raise TypeError(f"net must be callable as net(x, t), got {type(net).__name__}.")
        check_argument_order(net, "net")
        self.net = net

    def energy(self, x: State, t: Tensor | None = None) -> Float[Tensor, " B"]:
        """E(x, t), (B,)."""
        call = ("x",) if t is None else ("x", "t")
        try:
            value = out_of_place(lambda y: self.net(y) if t is None else self.net(y, t), x, "an energy")
        except TypeError:
            cause, action = "a network with a time, and no time given", "energy(x, t); or a net of x alone"
            if t is not None:
                cause, action = "a network without a time", "energy(x), or lambda x, t: net(x)"
            check_call(self.net, call, "an energy's net", cause, action)
            raise
        if not isinstance(value, Tensor) or value.shape != x.shape[:1] or not value.is_floating_point():
            raise ShapeError(_no_scalar(value, x))
        return value

    def forward(self, x: State, t: Tensor | None = None) -> State:
        """-grad_x E(x, t), the shape of x."""
        value, pull = pullback(lambda y: self.energy(y, t), x)
        return -pull(torch.ones_like(value))


def _no_scalar(value: object, x: Tensor) -> str:
    got = f"{tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
    cause = "a network that returns a score"
    action = "pass the network as the score itself, or end it with a sum over the event"
    if isinstance(value, Tensor) and value.ndim == 2 and value.shape[1] == 1:
        cause, action = "a last layer with one output unit", "net(x).squeeze(1)"
    elif isinstance(value, Tensor) and value.shape == x.shape[:1]:
        cause, action = "labels or indices in place of an energy", "return real numbers"
    return (
        f"an energy must have shape ({x.shape[0]},), one floating number a sample, got {got}. Likely cause: "
        f"{cause}. Next: {action}."
    )


def curl(
    score: Callable[..., Tensor],
    x: State,
    t: Tensor | float | None = None,
    *,
    probes: int | None = None,
    seed: int = 0,
) -> Float[Tensor, " B"]:
    r"""How far a score is from a gradient: the antisymmetric share of its Jacobian J at x,

        c = ||(J - J^T)/2||^2 / ||J||^2   (Frobenius),   0 for every gradient, 1 for a rotation.

    J is symmetric everywhere (on a simply connected domain) exactly if the score is the gradient of some
    log-density. Densities integrated along a path depend on the path where it is not.

    score: score(x, t), or score(x) if t is None; twice differentiable by autograd. x: (B, *event);
    t: a number, () or (B,). probes: None takes the D unit vectors, which is exact; a number takes that
    many v ~ N(0, I) for each sample, E||A v||^2 = ||A||^2 in numerator and denominator alike, for two
    products J v and J^T v each. seed: of the probes.

    Returns (B,), 0 where J = 0. Raises ShapeError if score does not return the shape of x, ArgumentOrderError
    for ``score(t, x)``.
    """
    x = check_state(x, "x")
    if t is not None:
        check_argument_order(score, "score")
    rows, ids = x.shape[0], torch.arange(x.shape[0], dtype=torch.int64, device=x.device)
    time = None if t is None else torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(rows)
    with torch.enable_grad():
        y = x.detach().requires_grad_()
        s = out_of_place(lambda z: score(z) if time is None else score(z, time), y, "score")
        s = check_output(s, x, "score")
        u = torch.zeros_like(s, requires_grad=True)
        if s.requires_grad:
            transposed = torch.autograd.grad(s, y, u, create_graph=True, materialize_grads=True)[0]
        if not (s.requires_grad and transposed.requires_grad):  # a score that does not depend on x
            return x.new_zeros(rows)
        odd, full = x.new_zeros(rows), x.new_zeros(rows)
        for k in range(x[:1].numel() if probes is None else check_count(probes, "probes")):
            if probes is None:
                v = _unit(x, k).expand_as(x)
            else:
                v = Philox(seed).normal(k, y.detach(), ids, Purpose.PROBES)
            ahead, back = (
                torch.autograd.grad(a, b, v, retain_graph=True, materialize_grads=True)[0]
                for a, b in ((transposed, u), (s, y))
            )
            odd = odd + flat(ahead - back).square().sum(dim=1) / 4
            full = full + flat(ahead).square().sum(dim=1) / 2 + flat(back).square().sum(dim=1) / 2
    return torch.where(full > 0, odd / full, torch.zeros_like(full))


def _unit(x: Tensor, k: int) -> Tensor:
    """The k-th unit vector of the event of x."""
    e = torch.zeros_like(x[0]).flatten()
    e[k] = 1.0
    return e.reshape(x.shape[1:])
