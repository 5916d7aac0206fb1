"""sdekit: solve SDEs and ODEs, run them backwards with any score, and prove the result.

    import sdekit as sk

    target = sk.GaussianMixture([0.3, 0.7], [[-2.0, 0.0], [1.0, 1.0]], 0.05)
    process = sk.VP()
    samples = sk.sample(target.denoiser(process), (1000, 2), steps=10).x

Processes give drift and diffusion, a score turns them round, samplers and solvers run them, certificates
measure the result against closed-form laws. See README.md.
"""

from typing import TYPE_CHECKING

from sdekit._callable import callable_module
from sdekit._version import __version__ as __version__
from sdekit.certify import (
    Certificate,
    calibrate,
    certify_monte_carlo,
    certify_order,
    certify_response,
    metrics,
    optimize_grid,
)
from sdekit.certify.check import Verdict, check
from sdekit.certify.density import density as certify_density
from sdekit.certify.exact import certify as _certify
from sdekit.encode import RoundTrip, decode, encode, roundtrip
from sdekit.errors import SdekitError
from sdekit.likelihood import LogProb, log_prob
from sdekit.matching import fit, fit_energy, losses, ncsn, nets, parzen, psgld, scales_of, sghmc, sgld
from sdekit.noise import BrownianTree, Noise, Philox, Recorded, TorchNoise
from sdekit.samplers import Grid, Plan, pilot, plan, sample
from sdekit.samplers.latents import interpolate
from sdekit.samplers.registry import samplers as _samplers
from sdekit.score import Denoiser, Energy, curl, numpy_score
from sdekit.sde import (
    CIR,
    EDM,
    ODE,
    SDE,
    VE,
    VP,
    BrownianMotion,
    Cosine,
    CriticallyDampedLangevin,
    DiscreteVP,
    DoubleWell,
    GaussianDiffusion,
    GeometricBrownian,
    Heston,
    Langevin,
    LinearSDE,
    Lorenz63,
    OrnsteinUhlenbeck,
    RectifiedFlow,
    SubVP,
    UnderdampedLangevin,
    probability_flow,
    reverse,
)
from sdekit.solution import Solution, Status
from sdekit.solvers import Adjoint, Event, compiled, solve
from sdekit.solvers.compiled import Ensemble, ensemble
from sdekit.targets import Empirical, Gaussian, GaussianMixture

if TYPE_CHECKING:
    from sdekit.certify.exact import certify as certify
    from sdekit.estimate.door import estimate as estimate
    from sdekit.samplers.registry import samplers as samplers
    from sdekit.solvers.base import solvers as solvers
else:
    from sdekit import certify, estimate, samplers, solvers

    # `sdekit.certify` and `sdekit.samplers` are packages and functions at once; `sdekit.solvers` and
    # `sdekit.estimate` do the same for themselves.
    callable_module("sdekit.certify", _certify)
    callable_module("sdekit.samplers", _samplers)

__all__ = [
    "CIR",
    "EDM",
    "ODE",
    "SDE",
    "VE",
    "VP",
    "Adjoint",
    "BrownianMotion",
    "BrownianTree",
    "Certificate",
    "Cosine",
    "CriticallyDampedLangevin",
    "Denoiser",
    "DiscreteVP",
    "DoubleWell",
    "Empirical",
    "Energy",
    "Ensemble",
    "Event",
    "Gaussian",
    "GaussianDiffusion",
    "GaussianMixture",
    "GeometricBrownian",
    "Grid",
    "Heston",
    "Langevin",
    "LinearSDE",
    "LogProb",
    "Lorenz63",
    "Noise",
    "OrnsteinUhlenbeck",
    "Philox",
    "Plan",
    "Recorded",
    "RectifiedFlow",
    "RoundTrip",
    "SdekitError",
    "Solution",
    "Status",
    "SubVP",
    "TorchNoise",
    "UnderdampedLangevin",
    "Verdict",
    "calibrate",
    "certify",
    "certify_density",
    "certify_monte_carlo",
    "certify_order",
    "certify_response",
    "check",
    "compiled",
    "curl",
    "decode",
    "encode",
    "ensemble",
    "estimate",
    "fit",
    "fit_energy",
    "interpolate",
    "likelihood",
    "log_prob",
    "losses",
    "metrics",
    "ncsn",
    "nets",
    "numpy_score",
    "optimize_grid",
    "parzen",
    "pilot",
    "plan",
    "probability_flow",
    "psgld",
    "reverse",
    "roundtrip",
    "sample",
    "samplers",
    "scales_of",
    "sghmc",
    "sgld",
    "solve",
    "solvers",
]
