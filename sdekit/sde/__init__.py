"""Processes: SDEs and ODEs, the diffusions of generative modelling, classic SDEs, time reversal."""

from sdekit.sde.base import ODE, SDE
from sdekit.sde.classic import (
    CIR,
    ArctanDiffusion,
    BrownianBridge,
    DecayingAdditive,
    DoubleWell,
    DriftedBrownian,
    GeometricBrownian,
    Heston,
    LevyArea,
    LinearDecay,
    Lorenz63,
    LotkaVolterra,
    MultiplicativeLinear,
    SinhDiffusion,
    SphericalBrownian,
    TanhDiffusion,
)
from sdekit.sde.diffusion import EDM, VE, VP, Cosine, DiscreteVP, RectifiedFlow, SubVP
from sdekit.sde.gaussian import GaussianDiffusion
from sdekit.sde.kinetic import CriticallyDampedLangevin, HarmonicLangevin
from sdekit.sde.langevin import Langevin, UnderdampedLangevin
from sdekit.sde.laws import LogNormal, MultivariateNormal, Normal, PairNormal
from sdekit.sde.linear import BrownianMotion, LinearSDE, OrnsteinUhlenbeck
from sdekit.sde.phase import velocity_score
from sdekit.sde.reverse import ProbabilityFlow, ReverseSDE, probability_flow, reverse
from sdekit.sde.scores import transition_score
from sdekit.sde.spec import from_spec

__all__ = [
    "CIR",
    "EDM",
    "ODE",
    "SDE",
    "VE",
    "VP",
    "ArctanDiffusion",
    "BrownianBridge",
    "BrownianMotion",
    "Cosine",
    "CriticallyDampedLangevin",
    "DecayingAdditive",
    "DiscreteVP",
    "DoubleWell",
    "DriftedBrownian",
    "GaussianDiffusion",
    "GeometricBrownian",
    "HarmonicLangevin",
    "Heston",
    "Langevin",
    "LevyArea",
    "LinearDecay",
    "LinearSDE",
    "LogNormal",
    "Lorenz63",
    "LotkaVolterra",
    "MultiplicativeLinear",
    "MultivariateNormal",
    "Normal",
    "OrnsteinUhlenbeck",
    "PairNormal",
    "ProbabilityFlow",
    "RectifiedFlow",
    "ReverseSDE",
    "SinhDiffusion",
    "SphericalBrownian",
    "SubVP",
    "TanhDiffusion",
    "UnderdampedLangevin",
    "from_spec",
    "probability_flow",
    "reverse",
    "transition_score",
    "velocity_score",
]
