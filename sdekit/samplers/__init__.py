"""Samplers: recipes that yield plans, and the one executor that runs them."""

from sdekit.samplers.adams import DEIS, IPNDM, LMS
from sdekit.samplers.annealed import AnnealedLangevin
from sdekit.samplers.base import Path, Sampler
from sdekit.samplers.build import plan
from sdekit.samplers.churn import EDMStochastic
from sdekit.samplers.correctors import PredictorCorrector
from sdekit.samplers.ddim import DDIM
from sdekit.samplers.dpmpp import DPMpp2M, DPMpp3M, SDEDPMpp2M, SDEDPMpp3M
from sdekit.samplers.er_sde import ERSDE
from sdekit.samplers.exponential import ExponentialAdams
from sdekit.samplers.flow import Euler, Heun
from sdekit.samplers.gaussian_split import GaussianSplit
from sdekit.samplers.grids import Grid
from sdekit.samplers.pilot import DataStatistics, pilot
from sdekit.samplers.plan import Apply, Combine, Evaluate, Plan
from sdekit.samplers.pndm import PNDM
from sdekit.samplers.registry import samplers
from sdekit.samplers.restart import Restart
from sdekit.samplers.reverse_sde import DDPM, Ancestral, EulerMaruyama, ReverseDiffusion
from sdekit.samplers.sa import SASolver
from sdekit.samplers.sample import sample
from sdekit.samplers.seeds import Seeds
from sdekit.samplers.single_step import DPM2, DPM3, KDPM2, DPMpp2S, KDPM2Ancestral
from sdekit.samplers.trigonometric import KernelQuadrature, TrigAdams
from sdekit.samplers.unipc import UniPC, UniPC2, UniPC3

__all__ = [
    "DDIM",
    "DDPM",
    "DEIS",
    "DPM2",
    "DPM3",
    "ERSDE",
    "IPNDM",
    "KDPM2",
    "LMS",
    "PNDM",
    "Ancestral",
    "AnnealedLangevin",
    "Apply",
    "Combine",
    "DPMpp2M",
    "DPMpp2S",
    "DPMpp3M",
    "DataStatistics",
    "EDMStochastic",
    "Euler",
    "EulerMaruyama",
    "Evaluate",
    "ExponentialAdams",
    "GaussianSplit",
    "Grid",
    "Heun",
    "KDPM2Ancestral",
    "KernelQuadrature",
    "Path",
    "Plan",
    "PredictorCorrector",
    "Restart",
    "ReverseDiffusion",
    "SASolver",
    "SDEDPMpp2M",
    "SDEDPMpp3M",
    "Sampler",
    "Seeds",
    "TrigAdams",
    "UniPC",
    "UniPC2",
    "UniPC3",
    "pilot",
    "plan",
    "sample",
    "samplers",
]
