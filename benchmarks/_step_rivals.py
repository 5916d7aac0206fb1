"""Loops of 50 steps over an identity network: ours, diffusers', k-diffusion's and azula's, by family."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

import sdekit as sk

__all__ = ["LIBRARIES", "STEPS", "rivals"]

STEPS = 50
LIBRARIES = ("diffusers", "k_diffusion", "azula")


def same(x: Tensor, t: Any = None, **_: Any) -> Tensor:
    return x


def _diffusers(
    name: str, shape: tuple[int, ...], **options: Any
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    import diffusers

    scheduler = getattr(diffusers, name)(**options)
    x = torch.randn(shape)

    def prepare_only() -> None:
        scheduler.set_timesteps(STEPS)

    def go() -> Tensor:
        scheduler.set_timesteps(STEPS)
        state = x
        with torch.no_grad():
            for t in scheduler.timesteps:
                out = same(scheduler.scale_model_input(state, t))
                state = scheduler.step(out, t, state).prev_sample
        return state

    return go, prepare_only


def _k_diffusion(name: str, shape: tuple[int, ...], noisy: bool) -> Callable[[], Any]:
    from benchmarks.peers.k_diffusion_samplers import library

    x, sigmas = torch.randn(shape), torch.linspace(3.0, 0.1, STEPS + 1)
    sampler = getattr(library(), name)
    extra = {"noise_sampler": lambda a, b: torch.randn_like(x)} if noisy else {}
    return lambda: sampler(same, x, sigmas, disable=True, **extra)


def _azula(name: str, shape: tuple[int, ...], **options: Any) -> Callable[[], Any]:
    import azula.denoise
    import azula.noise
    import azula.sample

    class Model(azula.denoise.Denoiser):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.schedule = azula.noise.VPSchedule()

        def forward(self, x_t: Tensor, t: Tensor) -> Any:
            return azula.denoise.DiracPosterior(same(x_t))

    x = torch.randn(shape)
    sampler = getattr(azula.sample, name)(Model(), steps=STEPS, silent=True, **options)

    def go() -> Any:
        with torch.no_grad():
            return sampler(x)

    return go


def rivals(shape: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """Family -> {"sdekit": fn, rival: fn, ...}; rivals that are not installed are left out."""
    model = sk.Denoiser(same, sk.VP(), predicts="eps", data_std=1.0)

    def ours(name: str) -> Callable[[], Any]:
        plan = sk.plan(name, sk.VP(), steps=STEPS)
        return lambda: sk.sample(model, shape, sampler=plan)

    families: dict[str, dict[str, Any]] = {
        "ddim": {"sdekit": ours("ddim")},
        "ancestral": {"sdekit": ours("ancestral")},
        "dpmpp-2m": {"sdekit": ours("dpmpp-2m")},
        "sde-dpmpp-2m": {"sdekit": ours("sde-dpmpp-2m")},
    }
    if find_spec("diffusers"):
        for family, name, options in (
            ("ddim", "DDIMScheduler", {}),
            ("ddim", "EulerDiscreteScheduler", {}),
            ("ancestral", "EulerAncestralDiscreteScheduler", {}),
            ("ancestral", "DDPMScheduler", {}),
            ("dpmpp-2m", "DPMSolverMultistepScheduler", {}),
            ("sde-dpmpp-2m", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ):
            families[family][f"diffusers {name}"] = _diffusers(name, shape, **options)
    if find_spec("k_diffusion"):
        for family, name, noisy in (
            ("ddim", "sample_euler", False),
            ("ancestral", "sample_euler_ancestral", True),
            ("dpmpp-2m", "sample_dpmpp_2m", False),
            ("sde-dpmpp-2m", "sample_dpmpp_2m_sde", True),
        ):
            families[family][f"k-diffusion {name}"] = _k_diffusion(name, shape, noisy)
    if find_spec("azula"):
        for family, name, options in (
            ("ddim", "DDIMSampler", {}),
            ("ddim", "EulerSampler", {}),
            ("ancestral", "DDPMSampler", {}),
            ("dpmpp-2m", "zABSampler", {"order": 2}),
        ):
            families[family][f"azula {name}"] = _azula(name, shape, **options)
    return families
