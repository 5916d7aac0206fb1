"""Solver formulas by themselves: order conditions of every coefficient, step control by hand."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from sdekit.solvers.base import Attempt
from sdekit.solvers.runge_kutta import DormandPrince
from sdekit.solvers.tableaus import DORMAND_PRINCE, EULER, HEUN

# Rooted trees as nested tuples, by order: () is a leaf. Hairer, Norsett and Wanner 1993, II.2, table 2.1.
LEAF = ()
TREES = {
    1: [LEAF],
    2: [(LEAF,)],
    3: [(LEAF, LEAF), ((LEAF,),)],
    4: [(LEAF, LEAF, LEAF), (LEAF, (LEAF,)), ((LEAF, LEAF),), (((LEAF,),),)],
    5: [
        (LEAF, LEAF, LEAF, LEAF),
        (LEAF, LEAF, (LEAF,)),
        ((LEAF,), (LEAF,)),
        (LEAF, (LEAF, LEAF)),
        (LEAF, ((LEAF,),)),
        ((LEAF, LEAF, LEAF),),
        ((LEAF, (LEAF,)),),
        (((LEAF, LEAF),),),
        ((((LEAF,),),),),
    ],
}


def size(tree):
    return 1 + sum(map(size, tree))


def density(tree):
    """gamma of a tree: its order times the densities of its branches."""
    found = size(tree)
    for branch in tree:
        found *= density(branch)
    return found


def elementary(tree, a):
    """Phi_i of a tree for each stage: the product over its branches of sum_j a_ij Phi_j(branch)."""
    found = [1.0] * len(a)
    for branch in tree:
        inner = elementary(branch, a)
        found = [
            f * sum(w * v for w, v in zip(row, inner, strict=False)) for f, row in zip(found, a, strict=True)
        ]
    return found


def defects(weights, tableau, order, scale=1.0):
    """sum_i weights_i Phi_i(tree) - scale^n / gamma(tree) of every tree of n <= order nodes."""
    return [
        sum(w * v for w, v in zip(weights, elementary(tree, tableau.a), strict=True))
        - scale**n / density(tree)
        for n in range(1, order + 1)
        for tree in TREES[n]
    ]


def test_the_trees_are_all_trees():
    assert [len(trees) for trees in TREES.values()] == [1, 1, 2, 4, 9]
    assert all(size(tree) == n for n, trees in TREES.items() for tree in trees)


@pytest.mark.parametrize(
    ("tableau", "order"), [(EULER, 1), (HEUN, 2), (DORMAND_PRINCE, 5)], ids=["euler", "heun", "rk45"]
)
def test_order_conditions(tableau, order):
    """To rounding, and the conditions of the next order are not all met."""
    assert [len(row) for row in tableau.a] == list(range(len(tableau.c)))
    assert np.allclose([sum(row) for row in tableau.a], tableau.c, rtol=0, atol=2e-14)
    assert max(map(abs, defects(tableau.b, tableau, order))) < 2e-14
    if order < 5:
        assert max(map(abs, defects(tableau.b, tableau, order + 1))) > 1e-3


def test_the_embedded_solution_has_order_four_and_the_known_error():
    """b - e is of order 4 and not of order 5; e_7 = -1/40 is the only weight left free (table II.5.2)."""
    tableau = DORMAND_PRINCE
    hat = [b - e for b, e in zip(tableau.b, tableau.e, strict=True)]
    assert max(map(abs, defects(hat, tableau, 4))) < 2e-14
    assert max(map(abs, defects(hat, tableau, 5))) > 1e-5
    assert tableau.e[-1] == -1 / 40


@pytest.mark.parametrize("theta", [0.0, 0.1, 0.3, 0.5, 0.8, 1.0])
def test_the_interpolant_meets_the_order_conditions_of_every_intermediate_time(theta):
    """b_i(theta), read off by stages that are unit vectors, is of order 4 at theta h."""
    solver, tableau = DormandPrince(), DORMAND_PRINCE
    stages = tuple(torch.eye(7, dtype=torch.float64)[:, None])
    end = torch.tensor([tableau.b], dtype=torch.float64)
    attempt = Attempt(end, stages[-1:], torch.zeros_like(end), stages)
    weights = solver.interpolate(torch.zeros_like(end), 1.0, attempt, theta)[0].tolist()
    assert max(map(abs, defects(weights, tableau, 4, theta))) < 1e-13
    if theta == 1:
        assert weights == pytest.approx(tableau.b, abs=1e-15)


def test_the_interpolant_has_the_slopes_of_the_first_and_last_stage():
    solver, h = DormandPrince(), 1e-4
    stages = tuple(torch.eye(7, dtype=torch.float64)[:, None])
    end = torch.tensor([DORMAND_PRINCE.b], dtype=torch.float64)
    attempt = Attempt(end, stages[-1:], torch.zeros_like(end), stages)

    def at(theta):
        return solver.interpolate(torch.zeros_like(end), 1.0, attempt, theta)

    for theta, stage in ((0.0, stages[0]), (1.0, stages[-1])):
        slope = (at(theta + h) - at(theta - h)) / (2 * h)
        assert torch.allclose(slope, stage, rtol=0, atol=1e-6)


def test_the_free_coefficients_are_the_published_ones():
    """What the order conditions leave open, as exact fractions (Dormand and Prince 1980, table 2)."""
    exact = [Fraction(value).limit_denominator(10**4) for value in DORMAND_PRINCE.c]
    assert exact == [0, Fraction(1, 5), Fraction(3, 10), Fraction(4, 5), Fraction(8, 9), 1, 1]
    assert DORMAND_PRINCE.b[1] == DORMAND_PRINCE.b[-1] == 0
    assert DORMAND_PRINCE.a[-1] == DORMAND_PRINCE.b[:-1]
