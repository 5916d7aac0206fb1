"""Order conditions of Runge-Kutta methods from rooted trees. Hairer, Norsett and Wanner 1993, II.2."""

from __future__ import annotations

from functools import cache
from itertools import combinations_with_replacement, product
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Tree: TypeAlias = "tuple[Tree, ...]"
"""A root with its branches; () is a leaf."""
Floats = NDArray[np.float64]


def _partitions(n: int, largest: int) -> list[tuple[int, ...]]:
    if n == 0:
        return [()]
    return [(k, *rest) for k in range(min(n, largest), 0, -1) for rest in _partitions(n - k, k)]


@cache
def trees(order: int) -> tuple[Tree, ...]:
    """All rooted trees of this many nodes: a root and a multiset of smaller trees."""
    found = []
    for sizes in _partitions(order - 1, order - 1):
        groups = [combinations_with_replacement(trees(k), sizes.count(k)) for k in dict.fromkeys(sizes)]
        found += [tuple(branch for group in choice for branch in group) for choice in product(*groups)]
    return tuple(found)


def size(tree: Tree) -> int:
    return 1 + sum(map(size, tree))


@cache
def density(tree: Tree) -> int:
    """gamma: the number of nodes times the densities of the branches."""
    return size(tree) * prod(map(density, tree))


def elementary(tree: Tree, a: Floats, known: dict[Tree, Floats]) -> Floats:
    """Phi_i for each stage: the product over the branches of sum_j a_ij Phi_j(branch)."""
    if tree not in known:
        factors = [a @ elementary(branch, a, known) for branch in tree]
        known[tree] = np.prod(factors, axis=0) if factors else np.ones(len(a))
    return known[tree]


def matrix(tableau: Any) -> Floats:
    """The square matrix a, with the stages for dense output."""
    rows = (*tableau.a, *getattr(tableau, "a_more", ()))
    out = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def defect(weights: Any, a: Floats, order: int, theta: float = 1.0) -> float:
    """max over the trees of n = order nodes of |sum_i w_i Phi_i - theta^n/gamma|."""
    known: dict[Tree, Floats] = {}
    full = np.zeros(len(a))
    full[: len(weights)] = weights
    return max(abs(full @ elementary(t, a, known) - theta**order / density(t)) for t in trees(order))
