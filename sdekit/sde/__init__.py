"""Processes: SDEs and ODEs, the diffusions of generative modelling, classic SDEs, time reversal."""

from sdekit.sde.base import ODE, SDE
from sdekit.sde.classic import GeometricBrownian
from sdekit.sde.diffusion import EDM, VE, VP, Cosine, DiscreteVP, RectifiedFlow, SubVP
from sdekit.sde.gaussian import GaussianDiffusion
from sdekit.sde.langevin import Langevin
from sdekit.sde.laws import LogNormal, MultivariateNormal, Normal
from sdekit.sde.linear import BrownianMotion, LinearSDE, OrnsteinUhlenbeck
from sdekit.sde.reverse import ProbabilityFlow, ReverseSDE, probability_flow, reverse
from sdekit.sde.spec import from_spec

__all__ = [
    "EDM",
    "ODE",
    "SDE",
    "VE",
    "VP",
    "BrownianMotion",
    "Cosine",
    "DiscreteVP",
    "GaussianDiffusion",
    "GeometricBrownian",
    "Langevin",
    "LinearSDE",
    "LogNormal",
    "MultivariateNormal",
    "Normal",
    "OrnsteinUhlenbeck",
    "ProbabilityFlow",
    "RectifiedFlow",
    "ReverseSDE",
    "SubVP",
    "from_spec",
    "probability_flow",
    "reverse",
]
