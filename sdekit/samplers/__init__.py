"""Samplers: recipes that yield plans, and the one executor that runs them."""

from sdekit.samplers.base import Path, Sampler
from sdekit.samplers.build import plan
from sdekit.samplers.correctors import PredictorCorrector
from sdekit.samplers.ddim import DDIM
from sdekit.samplers.dpmpp import DPMpp2M
from sdekit.samplers.flow import Euler, Heun
from sdekit.samplers.grids import Grid
from sdekit.samplers.pilot import DataStatistics, pilot
from sdekit.samplers.plan import Apply, Combine, Evaluate, Plan
from sdekit.samplers.registry import samplers
from sdekit.samplers.reverse_sde import DDPM, Ancestral, EulerMaruyama, ReverseDiffusion
from sdekit.samplers.sample import sample
from sdekit.samplers.trigonometric import KernelQuadrature, TrigAdams

__all__ = [
    "DDIM",
    "DDPM",
    "Ancestral",
    "Apply",
    "Combine",
    "DPMpp2M",
    "DataStatistics",
    "Euler",
    "EulerMaruyama",
    "Evaluate",
    "Grid",
    "Heun",
    "KernelQuadrature",
    "Path",
    "Plan",
    "PredictorCorrector",
    "ReverseDiffusion",
    "Sampler",
    "TrigAdams",
    "pilot",
    "plan",
    "sample",
    "samplers",
]
