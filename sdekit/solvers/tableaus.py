r"""Runge-Kutta methods as data.

k_i = f(x + h sum_j a_ij k_j, t + c_i h),   x' = x + h sum_i b_i k_i,   error = h sum_i e_i k_i.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BOGACKI_SHAMPINE", "DORMAND_PRINCE", "EULER", "HEUN", "KUTTA", "MIDPOINT", "TSITOURAS", "Tableau"]

Floats = tuple[float, ...]


@dataclass(frozen=True)
class Tableau:
    """An explicit method: row i of ``a`` has i entries.

    ``e`` is b - b_hat, the weights of the embedded error estimate; ``dense`` the rows of
    weights d_i of the higher terms of the interpolant of `sdekit.solvers.EmbeddedRungeKutta`, and ``c_more``,
    ``a_more`` the stages that only it needs, () where it has none. Where the last row of ``a`` equals
    ``b`` the last stage is the first of the next step ("first same as last").
    """

    c: Floats
    a: tuple[Floats, ...]
    b: Floats
    e: Floats = ()
    dense: tuple[Floats, ...] = ()
    c_more: Floats = ()
    a_more: tuple[Floats, ...] = ()

    @property
    def fsal(self) -> bool:
        """Whether the last stage is the slope at the end of the step."""
        return self.c[-1] == 1.0 and self.b[-1] == 0.0 and self.a[-1] == self.b[:-1]


EULER = Tableau(c=(0.0,), a=((),), b=(1.0,))

HEUN = Tableau(c=(0.0, 1.0), a=((), (1.0,)), b=(1 / 2, 1 / 2))

MIDPOINT = Tableau(c=(0.0, 1 / 2), a=((), (1 / 2,)), b=(0.0, 1.0))

# Kutta 1901, "the" Runge-Kutta method.
KUTTA = Tableau(
    c=(0.0, 1 / 2, 1 / 2, 1.0),
    a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
)

# Bogacki and Shampine 1989.
BOGACKI_SHAMPINE = Tableau(
    c=(0.0, 1 / 2, 3 / 4, 1.0),
    a=((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    b=(2 / 9, 1 / 3, 4 / 9, 0.0),
    e=(-5 / 72, 1 / 12, 1 / 9, -1 / 8),
)

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
        (
            -12715105075 / 11282082432,
            0.0,
            87487479700 / 32700410799,
            -10690763975 / 1880347072,
            701980252875 / 199316789632,
            -1453857185 / 822651844,
            69997945 / 29380423,
        ),
    ),
)

# Tsitouras 2011, table 1. Its interpolant, of order 4 too, is fixed by values and slopes at both ends up to a
# multiple of theta^2 (1 - theta)^2: ``dense`` are the coefficients of theta^4 of its weights b_i(theta).
TSITOURAS = Tableau(
    c=(0.0, 0.161, 0.327, 0.9, 0.98002554090450968, 1.0, 1.0),
    a=(
        (),
        (0.161,),
        (-0.0084806554923569885, 0.33548065549235699),
        (2.8971530571054934, -6.3594484899750748, 4.3622954328695814),
        (5.3258648284392566, -11.748883564062828, 7.4955393428898362, -0.092495066361755249),
        (
            5.8614554429464200,
            -12.920969317847109,
            8.1593678985761586,
            -0.071584973281400997,
            -0.028269050394068384,
        ),
        (
            0.096460766818065230,
            0.01,
            0.47988965041449957,
            1.3790085741037419,
            -3.2900695154360807,
            2.3247105240997740,
        ),
    ),
    b=(
        0.096460766818065230,
        0.01,
        0.47988965041449957,
        1.3790085741037419,
        -3.2900695154360807,
        2.3247105240997740,
        0.0,
    ),
    e=(
        0.0017800110522257771,
        0.00081643445965674690,
        -0.0078808780102619960,
        0.14471100717326290,
        -0.58235716545255523,
        0.45808210592918695,
        -1 / 66,
    ),
    dense=(
        (
            -1.0530884977290216,
            0.1017,
            2.4906272856512528,
            -16.548102889244903,
            47.379521962819281,
            -34.870657861496610,
            2.5,
        ),
    ),
)
