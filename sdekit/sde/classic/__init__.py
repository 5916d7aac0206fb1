"""Equations with exact laws, moments or paths: what solvers are tried on.

`transition(x, s, t)` is the law of the state at t given x at s, `stationary(x)` the one it tends to: with
mean, variance, sample, log_prob, and cdf on the line. `solution(x0, t, w)` is the path itself where it is a
function of the Brownian motion; `given(x, s, t, W, H)` is what W and H leave open where it is not.
"""

from sdekit.sde.classic.charts import ArctanDiffusion, DecayingAdditive, SinhDiffusion, TanhDiffusion
from sdekit.sde.classic.chi_square import Gamma, NoncentralChiSquare
from sdekit.sde.classic.decay import LinearDecay
from sdekit.sde.classic.geometric import GeometricBrownian
from sdekit.sde.classic.heston import Heston
from sdekit.sde.classic.landscape import DoubleWell, Lorenz63, LotkaVolterra
from sdekit.sde.classic.laws import Binomial, HyperbolicSecant, Transformed
from sdekit.sde.classic.matrix import MultiplicativeLinear
from sdekit.sde.classic.passage import BrownianBridge, DriftedBrownian, FirstPassage
from sdekit.sde.classic.quadrature import QuadratureLaw
from sdekit.sde.classic.rotations import LevyArea, SphericalBrownian
from sdekit.sde.classic.square_root import CIR

__all__ = [
    "CIR",
    "ArctanDiffusion",
    "Binomial",
    "BrownianBridge",
    "DecayingAdditive",
    "DoubleWell",
    "DriftedBrownian",
    "FirstPassage",
    "Gamma",
    "GeometricBrownian",
    "Heston",
    "HyperbolicSecant",
    "LevyArea",
    "LinearDecay",
    "Lorenz63",
    "LotkaVolterra",
    "MultiplicativeLinear",
    "NoncentralChiSquare",
    "QuadratureLaw",
    "SinhDiffusion",
    "SphericalBrownian",
    "TanhDiffusion",
    "Transformed",
]
