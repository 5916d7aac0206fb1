"""History of multistep methods: which nodes a step uses, and weights of many steps at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from sdekit._math import table, value
from sdekit._typing import Number
from sdekit.samplers.base import Path
from sdekit.samplers.weights import exponential

__all__ = ["exponential_weights", "grouped", "newest", "spaced"]


#: Nodes nearer to each other than this part of the step do not both enter a formula.
SPACING = 1e-3


def spaced(i: int, count: int, gap: Callable[[int, int], Number]) -> tuple[int, ...]:
    """At most ``count`` of the nodes i, i - 1, ..., each at least SPACING steps from the one kept before.

    gap(j, k): signed distance of two nodes. Of nodes closer than that the newest stands for all: a
    difference divided by so small a gap would be errors of the network and of rounding.
    """
    kept, least = [i], SPACING * abs(value(gap(i + 1, i)))
    for j in range(i - 1, -1, -1):
        if len(kept) >= count:
            break
        if abs(value(gap(kept[-1], j))) >= least:
            kept.append(j)
    return tuple(kept[:count])


def newest(path: Path, i: int, order: int) -> tuple[int, ...]:
    """The nodes i, i - 1, ... that a step from i uses: at most ``order``, those of finite lambda.

    Empty where the step itself is not finite: it is of first order there (`move`). Nodes are `spaced`.
    """
    if not path.finite(i):
        return ()
    lam = path.lam
    nodes = spaced(i, order, lambda j, k: lam[j] - lam[k])
    return tuple(j for j in nodes if math.isfinite(value(lam[j])))


def grouped(
    rules: Sequence[tuple[int, tuple[int, ...]]], weights: Callable[[list[int]], Tensor]
) -> list[Sequence[Number]]:
    """Weights of every rule (i, nodes), computed together for rules with as many nodes.

    weights(ks) -> (m, n) for the m rules ``rules[k]``, k in ks, of n nodes each. An empty rule has none.
    """
    found: list[Sequence[Number]] = [()] * len(rules)
    for size in {len(nodes) for _, nodes in rules} - {0}:
        ks = [k for k, (_, nodes) in enumerate(rules) if len(nodes) == size]
        w = weights(ks)
        rows: list[Sequence[Number]] = [row.unbind() for row in w] if w.requires_grad else w.tolist()
        for k, row in zip(ks, rows, strict=True):
            found[k] = row
    return found


def exponential_weights(
    path: Path, rules: Sequence[tuple[int, tuple[int, ...]]], rate: Number | Sequence[Number]
) -> list[Sequence[Number]]:
    r"""For each rule (i, nodes): w_j = \int_0^h e^{-rate (h - u)} L_j(u) du in lambda (see `exponential`).

    rate: one number, or one for each rule.
    """
    lam = path.lam
    rates = rate if isinstance(rate, Sequence) else [rate] * len(rules)

    def weights(ks: list[int]) -> Tensor:
        nodes = [[lam[j] - lam[rules[k][0]] for j in rules[k][1]] for k in ks]
        width = [lam[rules[k][0] + 1] - lam[rules[k][0]] for k in ks]
        return exponential(table(nodes), table(width), table([rates[k] for k in ks]))

    return grouped(rules, weights)
