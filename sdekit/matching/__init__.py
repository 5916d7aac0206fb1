"""Training: networks, losses, the loop, and trained models on disk."""

from sdekit.matching import losses, ncsn, nets, parzen
from sdekit.matching.chains import Chains
from sdekit.matching.checkpoint import load, save
from sdekit.matching.energy_based import EnergyFit, ReplayBuffer, fit_energy, negatives
from sdekit.matching.fit import FitResult, fit
from sdekit.matching.labels import ClassDenoiser
from sdekit.matching.logs import CSVLog, StepReport, TensorBoardLog
from sdekit.matching.psgld import psgld
from sdekit.matching.rates import ema_rate
from sdekit.matching.scales import DataScales, scales_of
from sdekit.matching.schedules import PolynomialDecay, RobbinsMonro, robbins_monro
from sdekit.matching.sghmc import sghmc
from sdekit.matching.sgld import sgld

__all__ = [
    "CSVLog",
    "Chains",
    "ClassDenoiser",
    "DataScales",
    "EnergyFit",
    "FitResult",
    "PolynomialDecay",
    "ReplayBuffer",
    "RobbinsMonro",
    "StepReport",
    "TensorBoardLog",
    "ema_rate",
    "fit",
    "fit_energy",
    "load",
    "losses",
    "ncsn",
    "negatives",
    "nets",
    "parzen",
    "psgld",
    "robbins_monro",
    "save",
    "scales_of",
    "sghmc",
    "sgld",
]
