r"""Runge-Kutta methods as data.

k_i = f(x + h sum_j a_ij k_j, t + c_i h),   x' = x + h sum_i b_i k_i,   error = h sum_i e_i k_i.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DORMAND_PRINCE", "EULER", "HEUN", "Tableau"]

Floats = tuple[float, ...]


@dataclass(frozen=True)
class Tableau:
    """An explicit method: row i of ``a`` has i entries.

    ``e`` is b - b_hat, the weights of the embedded error estimate; ``dense`` the weights d_i of the
    last term of the interpolant of `sdekit.solvers.runge_kutta`. Where the last row of ``a`` equals
    ``b`` the last stage is the first of the next step ("first same as last").
    """

    c: Floats
    a: tuple[Floats, ...]
    b: Floats
    e: Floats = ()
    dense: Floats = ()

    @property
    def fsal(self) -> bool:
        """Whether the last stage is the slope at the end of the step."""
        return self.c[-1] == 1.0 and self.b[-1] == 0.0 and self.a[-1] == self.b[:-1]


EULER = Tableau(c=(0.0,), a=((),), b=(1.0,))

HEUN = Tableau(c=(0.0, 1.0), a=((), (1.0,)), b=(1 / 2, 1 / 2))

# Dormand and Prince 1980, table 2 (RK5(4)7M); dense output: Hairer, Norsett and Wanner 1993, II.6.
DORMAND_PRINCE = Tableau(
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    e=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    dense=(
        -12715105075 / 11282082432,
        0.0,
        87487479700 / 32700410799,
        -10690763975 / 1880347072,
        701980252875 / 199316789632,
        -1453857185 / 822651844,
        69997945 / 29380423,
    ),
)
