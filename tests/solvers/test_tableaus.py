"""Runge-Kutta methods as data: the equations that their numbers solve, to rounding."""

from __future__ import annotations

import pytest

from sdekit.solvers.tableaus import DORMAND_PRINCE, EULER, HEUN, Tableau


@pytest.mark.parametrize(("tableau", "order"), [(EULER, 1), (HEUN, 2), (DORMAND_PRINCE, 5)])
def test_weights_integrate_polynomials(tableau: Tableau, order: int):
    """sum_i b_i c_i^k = 1/(k + 1) for k < p, and each row of a sums to its c."""
    for k in range(order):
        total = sum(b * c**k for b, c in zip(tableau.b, tableau.c, strict=True))
        assert total == pytest.approx(1 / (k + 1), abs=2e-15)
    assert [sum(row) for row in tableau.a] == pytest.approx(list(tableau.c), abs=5e-15)


def test_the_interpolant_of_dormand_and_prince():
    """Its last term vanishes where the slope is a parabola: sum_i d_i c_i^k = 0, 0, 0, 1/4 for k from 0."""
    assert DORMAND_PRINCE.fsal
    moments = [
        sum(d * c**k for d, c in zip(DORMAND_PRINCE.dense[0], DORMAND_PRINCE.c, strict=True))
        for k in range(4)
    ]
    assert moments == pytest.approx([0.0, 0.0, 0.0, 0.25], abs=5e-15)
