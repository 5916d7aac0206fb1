r"""Stochastic Runge-Kutta methods of strong order 1.5 as data.

Row i of ``a0``, ``a1``, ``b0``, ``b1`` has i entries. The coefficients satisfy the order conditions of
Roessler 2010, which the tests state as equations.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "SOSRA",
    "SOSRI",
    "SRA1",
    "SRA3",
    "SRID2",
    "SRIW1",
    "AdditiveTableau",
    "DiagonalTableau",
]

Floats = tuple[float, ...]
Rows = tuple[Floats, ...]


@dataclass(frozen=True)
class AdditiveTableau:
    """For noise that does not depend on the state; see `sdekit.solvers.SRA1` for the scheme.

    c0, c1: nodes of the drift and of the noise. a0, b0: of the stages. alpha, beta1, beta2: of the result.
    """

    c0: Floats
    c1: Floats
    a0: Rows
    b0: Rows
    alpha: Floats
    beta1: Floats
    beta2: Floats

    @property
    def nodes(self) -> Floats:
        """The times at which anything is evaluated, in steps."""
        return tuple(sorted({*self.c0, *self.c1}))


@dataclass(frozen=True)
class DiagonalTableau(AdditiveTableau):
    """For diagonal and scalar noise; see `sdekit.solvers.SRIW1` for the scheme.

    a1, b1: of the stages at which the noise is evaluated. beta1 to beta4: of I_1, I_11, I_10 and I_111.
    """

    a1: Rows
    b1: Rows
    beta3: Floats
    beta4: Floats


# Roessler 2010, SRA1.
SRA1 = AdditiveTableau(
    c0=(0.0, 3 / 4),
    c1=(1.0, 0.0),
    a0=((), (3 / 4,)),
    b0=((), (3 / 2,)),
    alpha=(1 / 3, 2 / 3),
    beta1=(1.0, 0.0),
    beta2=(-1.0, 1.0),
)

# Roessler 2010, SRA3.
SRA3 = AdditiveTableau(
    c0=(0.0, 1.0, 1 / 2),
    c1=(1.0, 0.0, 0.0),
    a0=((), (1.0,), (1 / 4, 1 / 4)),
    b0=((), (0.0,), (1.0, 1 / 2)),
    alpha=(1 / 6, 1 / 6, 2 / 3),
    beta1=(1.0, 0.0, 0.0),
    beta2=(-1.0, 1.0, 0.0),
)

# Rackauckas and Nie 2018, SOSRA: the largest region of mean-square stability among three stages.
SOSRA = AdditiveTableau(
    c0=(0.0, 0.6923962376159507, 1.0),
    c1=(0.0, 0.041248171110700504, 1.0),
    a0=((), (0.6923962376159507,), (-3.1609142252828395, 4.1609142252828395)),
    b0=((), (1.3371632704399763,), (1.442371048468624, 1.8632741501139225)),
    alpha=(0.2889874966892885, 0.6859880440839937, 0.025024459226717772),
    beta1=(-16.792534242221663, 17.514995785380226, 0.27753845684143835),
    beta2=(0.4237535769069274, 0.6010381474428539, -1.0247917243497813),
)

# Roessler 2010, SRIW1. Its third stage of the drift is the first again, so a1 refers to that one.
SRIW1 = DiagonalTableau(
    c0=(0.0, 3 / 4, 0.0, 0.0),
    c1=(0.0, 1 / 4, 1.0, 1 / 4),
    a0=((), (3 / 4,), (0.0, 0.0), (0.0, 0.0, 0.0)),
    b0=((), (3 / 2,), (0.0, 0.0), (0.0, 0.0, 0.0)),
    a1=((), (1 / 4,), (1.0, 0.0), (1 / 4, 0.0, 0.0)),
    b1=((), (1 / 2,), (-1.0, 0.0), (-5.0, 3.0, 1 / 2)),
    alpha=(1 / 3, 2 / 3, 0.0, 0.0),
    beta1=(-1.0, 4 / 3, 2 / 3, 0.0),
    beta2=(-1.0, 4 / 3, -1 / 3, 0.0),
    beta3=(2.0, -4 / 3, -2 / 3, 0.0),
    beta4=(-2.0, 5 / 3, -2 / 3, 1.0),
)

# Roessler 2010, SRID2: order 3 where there is no noise.
SRID2 = DiagonalTableau(
    c0=(0.0, 1.0, 1 / 2, 0.0),
    c1=(0.0, 1 / 4, 1.0, 1 / 4),
    a0=((), (1.0,), (1 / 4, 1 / 4), (0.0, 0.0, 0.0)),
    b0=((), (0.0,), (1.0, 1 / 2), (0.0, 0.0, 0.0)),
    a1=((), (1 / 4,), (1.0, 0.0), (0.0, 0.0, 1 / 4)),
    b1=((), (-1 / 2,), (1.0, 0.0), (2.0, -1.0, 1 / 2)),
    alpha=(1 / 6, 1 / 6, 2 / 3, 0.0),
    beta1=(-1.0, 4 / 3, 2 / 3, 0.0),
    beta2=(1.0, -4 / 3, 1 / 3, 0.0),
    beta3=(2.0, -4 / 3, -2 / 3, 0.0),
    beta4=(-2.0, 5 / 3, -2 / 3, 1.0),
)

# Rackauckas and Nie 2018, SOSRI; c0 and c1 are the row sums of a0 and a1.
SOSRI = DiagonalTableau(
    c0=(0.0, -0.04199224421316468, 0.7898405466170333, 3.7504010171562823),
    c1=(0.0, 0.26204282091330466, 0.05879875232001766, 0.758661169101175),
    a0=(
        (),
        (-0.04199224421316468,),
        (2.842612915017106, -2.0527723684000727),
        (4.338237071435815, -2.8895936137439793, 2.3017575594644466),
    ),
    b0=(
        (),
        (-0.21641093549612528,),
        (1.5336352863679572, 0.26066223492647056),
        (-1.0536037558179159, 1.7015284721089472, -0.20725685784180017),
    ),
    a1=(
        (),
        (0.26204282091330466,),
        (0.20903646383505375, -0.1502377115150361),
        (0.05836595312746999, 0.6149440396332373, 0.08535117634046772),
    ),
    b1=(
        (),
        (-0.5119011827621657,),
        (2.67767339866713, -4.9395031322250995),
        (0.15580956238299215, 3.2361551006624674, -1.4223118283355949),
    ),
    alpha=(1.140099274172029, -0.6401334255743456, 0.4736296532772559, 0.026404498125060714),
    beta1=(-1.8453464565104432, 2.688764531100726, -0.2523866501071323, 0.40896857551684956),
    beta2=(0.4969658141589478, -0.5771202869753592, -0.12919702470322217, 0.2093514975196336),
    beta3=(2.8453464565104425, -2.688764531100725, 0.2523866501071322, -0.40896857551684945),
    beta4=(0.11522663875443433, -0.57877086147738, 0.2857851028163886, 0.17775911990655704),
)
