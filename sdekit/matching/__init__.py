"""Training: networks, losses, the loop, and trained models on disk."""

from sdekit.matching import losses, ncsn, nets, parzen
from sdekit.matching.checkpoint import load, save
from sdekit.matching.energy_based import EnergyFit, ReplayBuffer, fit_energy, negatives
from sdekit.matching.fit import FitResult, fit
from sdekit.matching.schedules import PolynomialDecay, RobbinsMonro, robbins_monro
from sdekit.matching.sgld import Chains, sgld

__all__ = [
    "Chains",
    "EnergyFit",
    "FitResult",
    "PolynomialDecay",
    "ReplayBuffer",
    "RobbinsMonro",
    "fit",
    "fit_energy",
    "load",
    "losses",
    "ncsn",
    "negatives",
    "nets",
    "parzen",
    "robbins_monro",
    "save",
    "sgld",
]
