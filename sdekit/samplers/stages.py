r"""Runge-Kutta steps of the probability flow between any two nodes, shared by the single-step samplers.

With z = x/alpha and rho = sigma/alpha the flow is dz/drho = eps(x): a step from ``here`` to ``ahead`` is

    x' = alpha' (x/alpha + sum_j w_j eps_j),   sum_j w_j = rho' - rho,

so that a point mass, whose eps is constant along its path, is transported exactly. Where rho is infinite
(alpha = 0) or rho' = 0 the step is of first order, with D in place of eps (`base.move`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sdekit._math import sqrt
from sdekit._typing import Number
from sdekit.samplers.base import Path, move
from sdekit.samplers.plan import Combine, Instruction, combine
from sdekit.score.predictions import Node

__all__ = ["first_order", "heun", "midpoint", "regular", "rise", "rk4", "transfer", "width"]


def regular(here: Node, ahead: Node) -> bool:
    """Whether rho is finite and not zero at both nodes."""
    return all(node.alpha != 0 and node.sigma != 0 for node in (here, ahead))


def width(here: Node, ahead: Node) -> Number:
    """rho' - rho."""
    return ahead.sigma / ahead.alpha - here.sigma / here.alpha


def transfer(
    here: Node,
    ahead: Node,
    x: str,
    terms: Sequence[tuple[Number, str]],
    out: str,
    noise: Sequence[tuple[Number, int]] = (),
) -> Combine:
    """out = alpha' (x/alpha + sum_j w_j eps_j) + noise, terms the pairs (w_j, register of eps_j)."""
    history = [(ahead.alpha * w, name) for w, name in terms]
    return combine(out, [(ahead.alpha / here.alpha, x), *history], noise)


def rise(here: Node, ahead: Node, x: str, out: str, draw: int, scale: Number = 1.0) -> Combine:
    """The forward transition to the noisier node: out = (alpha'/alpha) x + alpha' sqrt(rho'^2 - rho^2) xi.

    scale multiplies the noise.
    """
    ratio = ahead.alpha / here.alpha
    level = ratio * here.sigma
    std = sqrt((ahead.sigma - level) * (ahead.sigma + level))
    return combine(out, [(ratio, x)], [(scale * std, draw)])


def first_order(
    path: Path, here: Node, ahead: Node, x: str, tag: str, out: str, noise: Sequence[tuple[Number, int]] = ()
) -> Iterator[Instruction]:
    """One evaluation of D and DDIM's step: the exact limit at rho = infinity and at rho' = 0."""
    yield path.evaluate(f"D{tag}", x, here)
    yield move(here, ahead, x, f"D{tag}", out, list(noise))


def heun(path: Path, here: Node, ahead: Node, x: str, tag: str, out: str) -> Iterator[Instruction]:
    """p = z + h eps(z),  z' = z + h/2 (eps(z) + eps(p)),  h = rho' - rho: the trapezoidal rule in rho."""
    if not regular(here, ahead):
        yield from first_order(path, here, ahead, x, tag, out)
        return
    h = width(here, ahead)
    yield path.evaluate(f"e{tag}", x, here, "eps")
    yield transfer(here, ahead, x, [(h, f"e{tag}")], f"p{tag}")
    yield path.evaluate(f"f{tag}", f"p{tag}", ahead, "eps")
    yield transfer(here, ahead, x, [(h / 2, f"e{tag}"), (h / 2, f"f{tag}")], out)


def midpoint(
    path: Path,
    here: Node,
    between: Node,
    ahead: Node,
    r: float,
    x: str,
    tag: str,
    out: str,
    noise: Sequence[tuple[Number, int]] = (),
) -> Iterator[Instruction]:
    """p = z + (rho_r - rho) eps(z),  z' = z + (rho' - rho) ((1 - 1/(2r)) eps(z) + 1/(2r) eps(p)) + noise.

    between is the node at lambda + r h; at r = 1/2 the first weight is zero.
    """
    h = width(here, ahead)
    yield path.evaluate(f"e{tag}", x, here, "eps")
    yield transfer(here, between, x, [(width(here, between), f"e{tag}")], f"p{tag}")
    yield path.evaluate(f"f{tag}", f"p{tag}", between, "eps")
    weights = [(h * (1 - 1 / (2 * r)), f"e{tag}"), (h / (2 * r), f"f{tag}")]
    yield transfer(here, ahead, x, weights, out, noise)


def rk4(
    path: Path, here: Node, between: Node, ahead: Node, x: str, tag: str, first: str, out: str
) -> Iterator[Instruction]:
    """The classical Runge-Kutta step in rho, with the two inner stages at the node ``between``.

    first is the register of eps(z), evaluated here.
    """
    h, half = width(here, ahead), width(here, between)
    yield path.evaluate(first, x, here, "eps")
    stages, slopes = ((between, half), (between, half), (ahead, h)), [first]
    for k, (node, reach) in enumerate(stages, 2):
        yield transfer(here, node, x, [(reach, slopes[-1])], f"p{k}{tag}")
        slopes.append(f"e{k}{tag}")
        yield path.evaluate(slopes[-1], f"p{k}{tag}", node, "eps")
    weights = zip((h / 6, h / 3, h / 3, h / 6), slopes, strict=True)
    yield transfer(here, ahead, x, list(weights), out)
