"""Plain loops: samplers of diffusers, k-diffusion and azula as their users run them, at their own settings.

No grid, level or table is changed: each library places its own nodes, rounds its own times and takes its own
last step. A `Plain` makes run(n) for a Gaussian and a number of evaluations, to be certified.

    diffusers     the DDPM table (1,000 betas, 1e-4 to 0.02), EDM (0.002 to 80) or the rectified flow,
                  whichever the scheduler is made for; float64 states as far as it keeps them
    k-diffusion   get_sigmas_karras(n, 0.002, 80), zero appended, its own Brownian trees
    azula         VPSchedule(), from t = 1 to 0, the library's own `GaussianDenoiser`
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

import sdekit as sk
from benchmarks.peers import azula_samplers, diffusers_runner, k_diffusion_samplers

__all__ = ["PROCESSES", "Plain", "plain", "refused"]

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
PROCESSES: dict[str, sk.GaussianDiffusion] = {
    "DDPM table": sk.DiscreteVP.from_betas(BETAS),
    "EDM": sk.EDM(),
    "rectified flow": sk.RectifiedFlow(),
    "VP of azula": sk.EDM(1e-3, 1e3),
}
"""The noise levels of each family, as a process of this package."""

DATA_STD = 0.5
Run = Callable[[int], Tensor]


@dataclass(frozen=True)
class Plain:
    """One sampler at its own settings; make(data, nfe) -> run(n), of at most nfe evaluations, or None."""

    library: str
    label: str
    family: str
    make: Callable[[sk.Gaussian, int], Run | None]

    @property
    def name(self) -> str:
        """library: label."""
        return f"{self.library}: {self.label}"


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True)
class _Scheduler:
    """The loop of every diffusers pipeline: set_timesteps, scale_model_input, step."""

    cls: str
    family: str = "DDPM table"
    options: dict[str, Any] = field(default_factory=dict)
    step: dict[str, Any] = field(default_factory=dict)

    def new(self, steps: int) -> Any:
        scheduler = getattr(diffusers_runner._library(), self.cls)(**self.options)
        scheduler.set_timesteps(steps)
        return scheduler

    def __call__(self, data: sk.Gaussian, nfe: int) -> Run | None:
        model = data.denoiser(PROCESSES[self.family])
        with _quiet():
            steps = bisect_right(range(1, nfe + 1), nfe, key=self._cost)
            if steps == 0 or not self._cost(steps):
                return None

        def network(x: Tensor, t: Tensor) -> Tensor:
            """What a network of this family returns for input x and time t of the scheduler."""
            if self.family == "rectified flow":
                return model.velocity(x, min(float(t) / 1000, 1.0))
            if self.family == "DDPM table":
                return model.eps(x, float(t) + 1)
            sigma = math.exp(4 * float(t))  # t is c_noise, x is c_in x
            total = math.sqrt(sigma**2 + DATA_STD**2)
            x0 = model.x0(x * total, sigma)
            return (x0 - DATA_STD**2 / total * x) * total / (sigma * DATA_STD)

        def run(n: int) -> Tensor:
            with _quiet():
                scheduler = self.new(steps)
                x = torch.randn(n, *data.event_shape, dtype=torch.float64)
                x = x * getattr(scheduler, "init_noise_sigma", 1.0)
                for t in scheduler.timesteps:
                    scaled = (
                        scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
                    )
                    x = scheduler.step(network(scaled, t), t, x, **self.step).prev_sample
            return x.double()

        return run

    def _cost(self, steps: int) -> int:
        """Evaluations; 0 where the scheduler has no run of so few steps."""
        try:
            return len(self.new(steps).timesteps)
        except ValueError:
            return 0


@dataclass(frozen=True)
class _Function:
    """A sampling function of k-diffusion on its Karras levels."""

    name: str
    evaluations: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, data: sk.Gaussian, nfe: int) -> Run | None:
        library, model = k_diffusion_samplers.library(), data.denoiser(PROCESSES["EDM"])
        # The step to sigma = 0 takes one evaluation in every function here.
        steps = (nfe - 1) // self.evaluations + 1
        sigmas = library.get_sigmas_karras(steps, 0.002, 80.0).double()
        function = getattr(library, self.name)

        def run(n: int) -> Tensor:
            x = sigmas[0] * torch.randn(n, *data.event_shape, dtype=torch.float64)
            with _quiet():
                out: Tensor = function(
                    lambda x, s: model.x0(x, float(s[0])), x, sigmas, disable=True, **self.options
                )
            return out

        return run


@dataclass(frozen=True)
class _Azula:
    """A sampler class of azula on its default schedule."""

    cls: str
    evaluations: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, data: sk.Gaussian, nfe: int) -> Run | None:
        library = azula_samplers._library()
        cov = import_module("azula.linalg.covariance").DiagonalCovariance(
            data.eigenvalues.reshape(data.event_shape)
        )
        model = library.denoise.GaussianDenoiser(data.mean, cov, library.noise.VPSchedule())
        steps, options = nfe // self.evaluations, {"silent": True, "dtype": torch.float64, **self.options}
        sampler = getattr(library.sample, self.cls)(model, steps=steps, **options)

        def run(n: int) -> Tensor:
            out: Tensor = sampler(sampler.init((n, *data.event_shape), dtype=torch.float64))
            return out

        return run


def _diffusers() -> list[Plain]:
    plain: list[tuple[str, _Scheduler]] = []

    def add(label: str, cls: str, family: str = "DDPM table", step: Any = None, **options: Any) -> None:
        plain.append((label, _Scheduler(f"{cls}Scheduler", family, options, step or {})))

    off = {"clip_sample": False}
    for cls in ("DDIM", "DDPM", "TCD"):
        add(cls, cls, **off)
    add("DDIM eta=1", "DDIM", step={"eta": 1.0}, **off)
    add("LCM", "LCM", **off)
    add("PNDM", "PNDM")
    add("PNDM without Runge-Kutta", "PNDM", skip_prk_steps=True)
    for cls in ("EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2Discrete"):
        add(cls, cls)
    for cls in ("KDPM2AncestralDiscrete", "LMSDiscrete", "UniPCMultistep", "DEISMultistep", "SASolver"):
        add(cls, cls)
    add("EulerDiscrete, Karras", "EulerDiscrete", use_karras_sigmas=True)
    add("UniPCMultistep, Karras", "UniPCMultistep", use_karras_sigmas=True)
    for cls in ("DPMSolverMultistep", "DPMSolverSinglestep"):
        add(cls, cls)
        add(f"{cls}, order 3", cls, solver_order=3)
        add(f"{cls}, Karras", cls, use_karras_sigmas=True)
    for order in (1, 2, 3):
        add(f"SDE-DPM++ {order}M", "DPMSolverMultistep", algorithm_type="sde-dpmsolver++", solver_order=order)
    add("DPMSolverSDE", "DPMSolverSDE")
    add("DPMSolverSDE, Karras", "DPMSolverSDE", use_karras_sigmas=True)
    add("EDMEuler", "EDMEuler", "EDM")
    add("EDMDPMSolverMultistep", "EDMDPMSolverMultistep", "EDM")
    add("EDMDPMSolverMultistep, SDE", "EDMDPMSolverMultistep", "EDM", algorithm_type="sde-dpmsolver++")
    add("FlowMatchEulerDiscrete", "FlowMatchEulerDiscrete", "rectified flow")
    add("FlowMatchHeunDiscrete", "FlowMatchHeunDiscrete", "rectified flow")
    return [Plain("diffusers", label, make.family, make) for label, make in plain]


def _k_diffusion() -> list[Plain]:
    one = ["euler", "euler_ancestral", "lms", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde"]
    two = ["heun", "dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde"]
    makers = {name: _Function(f"sample_{name}", 1 + (name in two)) for name in one + two}
    churn = k_diffusion_samplers.CHURN
    makers["heun, churn"] = _Function("sample_heun", 2, churn)
    makers["dpmpp_2m_sde, heun"] = _Function("sample_dpmpp_2m_sde", 1, {"solver_type": "heun"})
    return [Plain("k-diffusion", label, "EDM", make) for label, make in makers.items()]


def _azula() -> list[Plain]:
    makers = {name: _Azula(f"{name}Sampler") for name in ("DDPM", "DDIM", "Euler", "Ito")}
    makers |= {"DDIM eta=1": _Azula("DDIMSampler", options={"eta": 1.0})}
    makers |= {"Heun": _Azula("HeunSampler", 2), "PC": _Azula("PCSampler", 2)}
    makers |= {f"{kind}AB": _Azula(f"{kind}ABSampler") for kind in ("z", "v", "zE", "xE", "RE")}
    return [Plain("azula", label, "VP of azula", make) for label, make in makers.items()]


def plain() -> list[Plain]:
    """Every sampler whose steps are affine, at its defaults and the options that its users choose."""
    return [*_diffusers(), *_k_diffusion(), *_azula()]


def refused() -> list[Plain]:
    """Samplers that clip, threshold or adapt."""
    clip = {"thresholding": True}
    schedulers = {
        "DDIM, clip_sample (its default)": _Scheduler("DDIMScheduler"),
        "DDPM, clip_sample (its default)": _Scheduler("DDPMScheduler"),
        "DPMSolverMultistep, thresholding": _Scheduler("DPMSolverMultistepScheduler", options=clip),
        "UniPCMultistep, thresholding": _Scheduler("UniPCMultistepScheduler", options=clip),
    }
    return [Plain("diffusers", label, make.family, make) for label, make in schedulers.items()]
