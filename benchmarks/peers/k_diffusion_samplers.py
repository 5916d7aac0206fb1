"""k-diffusion's samplers: functions (model, x, sigmas) with model(x, sigma) = D, x = x0 + sigma eps.

Its package imports everything it ever needs (wandb, CLIP, torchvision, ...); its samplers need torch, scipy,
torchdiffeq and torchsde only, so that `sampling` is loaded alone.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.base import Method, Missing, Problem, every

__all__ = ["Increments", "call", "deterministic", "library", "stochastic"]


@cache
def library() -> Any:
    """k_diffusion.sampling, without the rest of its package. Raises `Missing`."""
    spec = find_spec("k_diffusion")
    if spec is None or spec.submodule_search_locations is None:
        raise Missing("k-diffusion")
    parent = ModuleType("k_diffusion")
    parent.__path__ = list(spec.submodule_search_locations)
    stand_ins = {"k_diffusion": parent}
    if find_spec("torchvision") is None:  # its image helpers import it; the samplers never touch them
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            stand_ins[name] = ModuleType(name)
        stand_ins["torchvision.transforms"].functional = stand_ins[  # type: ignore[attr-defined]
            "torchvision.transforms.functional"
        ]
    before = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("k_diffusion.sampling")
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


CHURN: dict[str, Any] = {"s_churn": 40.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}
"""Karras et al. 2022, table 5, ImageNet-64: the noise of algorithm 2."""


class Increments:
    """W(sigma') - W(sigma) over sqrt|sigma' - sigma| of one Brownian path in sigma, from independent normals.

    The law of the library's own Brownian tree on queries that move down in sigma, each from a known point.
    """

    def __init__(self, x: Tensor) -> None:
        self.x, self.path = x, dict[float, Tensor]()

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        start, end = round(float(sigma), 12), round(float(sigma_next), 12)
        self.path.setdefault(start, torch.zeros_like(self.x))
        if end not in self.path:
            front = min(self.path)
            self.path[end] = self.path[front] + (front - end) ** 0.5 * torch.randn_like(self.x)
        increment: Tensor = (self.path[end] - self.path[start]) / (start - end) ** 0.5
        return increment


def call(name: str, brownian: bool = False, **options: Any) -> Callable[[Problem, Tensor], Tensor]:
    """A function of the library with its options; brownian: its noise is that of one path."""

    def solve(problem: Problem, z: Tensor) -> Tensor:
        extra = {"noise_sampler": Increments(z)} if brownian else {}
        sampler = getattr(library(), name)
        out: Tensor = sampler(problem.x0, z, problem.rho, disable=True, **extra, **options)
        return out

    return solve


def _fast(problem: Problem, z: Tensor) -> Tensor:
    first, last = float(problem.rho[0]), float(problem.rho[-1])
    out: Tensor = library().sample_dpm_fast(problem.x0, z, last, first, problem.n, disable=True)
    return out


def deterministic() -> list[Method]:
    """Fixed-step samplers without noise; dpm_adaptive, whose cost depends on the data, is left out."""
    return [
        Method("euler", call("sample_euler")),
        Method("heun", call("sample_heun"), every(2)),
        Method("dpm_2", call("sample_dpm_2"), every(2)),
        Method("lms", call("sample_lms")),
        Method("lms order 3", call("sample_lms", order=3)),
        Method("dpm_fast", _fast, own_grid="uniform-lambda"),
        Method("dpmpp_2m", call("sample_dpmpp_2m")),
        Method("dpmpp_2s_ancestral eta=0", call("sample_dpmpp_2s_ancestral", eta=0.0), every(2)),
        Method("dpmpp_2m_sde heun eta=0", call("sample_dpmpp_2m_sde", True, eta=0.0, solver_type="heun")),
        Method("dpmpp_3m_sde eta=0", call("sample_dpmpp_3m_sde", True, eta=0.0)),
    ]


def stochastic() -> list[Method]:
    """Samplers with noise, at their defaults; Heun with the churn that was published."""
    heun = call("sample_dpmpp_2m_sde", True, solver_type="heun")
    return [
        Method("euler_ancestral", call("sample_euler_ancestral")),
        Method("heun churn", call("sample_heun", **CHURN), every(2)),
        Method("dpm_2_ancestral", call("sample_dpm_2_ancestral"), every(2)),
        Method("dpmpp_2s_ancestral", call("sample_dpmpp_2s_ancestral"), every(2)),
        Method("dpmpp_sde", call("sample_dpmpp_sde", True), every(2)),
        Method("dpmpp_2m_sde midpoint", call("sample_dpmpp_2m_sde", True)),
        Method("dpmpp_2m_sde heun", heun),
        Method("dpmpp_3m_sde", call("sample_dpmpp_3m_sde", True)),
    ]
