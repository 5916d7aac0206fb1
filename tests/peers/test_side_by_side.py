"""The same sampler in other libraries: same start, same noise, same grid, same trajectory.

Compared are all states that the network sees, their times and the end, on a mixture (so that the denoiser is
not linear) and an uneven grid. Bounds: 1e-9 for peers that compute in float64, 1e-5 for those that cast their
state to float32 inside a step, 1e-4 for those that integrate their weights to a relative 1e-4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

import sdekit as sk
from benchmarks.peers import available
from benchmarks.peers.base import Method
from benchmarks.peers.k_diffusion_samplers import call
from sdekit.samplers.registry import SAMPLERS
from tests.peers.problems import (
    PROCESSES,
    Track,
    distance,
    even_t,
    method,
    needs,
    ours,
    smooth,
    theirs,
    uniform,
)

if not available():
    pytest.skip("the libraries are not installed: make peers-env", allow_module_level=True)

STEPS = 16
"""Divisible by 2, and not below 15, where diffusers lowers orders at the end unless told not to."""
DOUBLE, SINGLE, QUADRATURE = 1e-9, 1e-5, 1e-4


@dataclass(frozen=True)
class Pair:
    """A sampler of this package and its counterparts {library: labels}.

    finer: the peer's grid has so many intervals for one of ours: it evaluates at its nodes only.
    draws: normal draws of the run. layout: the grid, uneven unless stages must fall on nodes.
    """

    name: str
    peers: dict[str, tuple[str, ...]]
    options: dict[str, object] = field(default_factory=dict)
    bound: float = DOUBLE
    processes: tuple[str, ...] = tuple(PROCESSES)
    finer: int = 1
    draws: int = 0
    layout: Callable = smooth

    @property
    def sampler(self):
        return SAMPLERS[self.name](**self.options)


PAIRS = [
    Pair(
        "ddim",
        {
            "diffusers": ("DDIM",),
            "k-diffusion": ("euler",),
            "azula": ("DDIM", "Euler", "Ito eta=0"),
        },
    ),
    Pair("ddim", {"diffusers": ("Euler", "EDM Euler", "FlowMatch Euler")}, bound=SINGLE),
    Pair("euler", {"k-diffusion": ("euler",), "azula": ("Euler",)}, processes=("EDM",)),
    Pair("euler", {"diffusers": ("Euler", "EDM Euler")}, processes=("EDM",), bound=SINGLE),
    Pair(
        "heun",
        {"k-diffusion": ("heun",), "diffusers": ("Heun",), "azula": ("Heun",)},
        processes=("EDM",),
    ),
    Pair("dpmpp-2m", {"k-diffusion": ("dpmpp_2m",), "diffusers": ("EDM DPM++ 2M midpoint",)}),
    Pair(
        "dpmpp-2m",
        {
            "diffusers": (
                "dpmsolver++ multistep order 2 midpoint",
                "dpmsolver++ multistep order 2 midpoint full",
            )
        },
        bound=SINGLE,
    ),
    Pair("kdpm2", {"k-diffusion": ("dpm_2",), "diffusers": ("KDPM2",)}),
    Pair("dpm-2", {"k-diffusion": ("dpm_2",)}),
    Pair("dpm-2", {"diffusers": ("dpmsolver singlestep order 2 midpoint",)}, finer=2, layout=uniform),
    Pair("dpmpp-2s", {"k-diffusion": ("dpmpp_2s_ancestral eta=0",)}),
    Pair("dpmpp-2s", {"diffusers": ("dpmsolver++ singlestep order 2 midpoint",)}, finer=2, layout=uniform),
    Pair("lms", {"azula": ("zAB-4",)}),
    Pair("lms", {"k-diffusion": ("lms",), "diffusers": ("LMS",)}, bound=QUADRATURE),
    Pair("lms", {"azula": ("zAB-3",)}, {"nodes": 3}),
    Pair("ipndm", {"azula": ("zEAB-4",)}),
    Pair("ipndm", {"diffusers": ("IPNDM",)}, {"compat": "published"}),
    Pair("pndm", {"diffusers": ("PNDM with Runge-Kutta start",)}, {"compat": "published"}, layout=even_t),
    Pair("deis", {"azula": ("zEAB-2",), "diffusers": ("DEIS-2 full",)}, {"degree": 1, "form": "lambda"}),
    Pair("deis", {"azula": ("zEAB-3",), "diffusers": ("DEIS-3 full",)}, {"degree": 2, "form": "lambda"}),
    Pair("deis", {"azula": ("zAB-2",)}, {"degree": 1, "form": "rho"}),
    Pair("dpmpp-3m", {"azula": ("xEAB-3",)}),
    Pair(
        "dpmpp-3m",
        {"k-diffusion": ("dpmpp_3m_sde eta=0",), "diffusers": ("EDM DPM++ 3M heun",)},
        {"compat": "published"},
    ),
    Pair(
        "dpmpp-3m",
        {"diffusers": ("dpmsolver++ multistep order 3 heun full",)},
        {"compat": "published"},
        SINGLE,
    ),
    *(
        Pair(
            f"unipc-{order}",
            {"diffusers": (f"UniPC-{order} {variant} {predicts}{'' if lower else ' full'}",)},
            {"variant": variant, "predicts": predicts, "lower_order_final": lower},
        )
        for order in (2, 3)
        for variant in ("bh1", "bh2")
        for predicts in ("x0", "eps")
        for lower in (True, False)
    ),
    *(
        Pair(
            "sa-solver",
            {"diffusers": (f"SA-Solver tau=0 orders {p}, {c} full",)},
            {"eta": 0.0, "predictor": p, "corrector": c, "compat": "published"},
        )
        for p, c in ((2, 2), (3, 4))
    ),
]

STOCHASTIC = [
    Pair(
        "ddpm",
        {
            "diffusers": ("DDPM", "DDIM eta=1"),
            "k-diffusion": ("euler_ancestral",),
            "azula": ("DDPM",),
        },
        draws=STEPS,
    ),
    Pair(
        "ddpm", {"diffusers": ("Euler ancestral", "sde-dpmsolver++ 1M midpoint")}, bound=SINGLE, draws=STEPS
    ),
    Pair("ddim", {"diffusers": ("DDIM eta=1",), "azula": ("DDPM",)}, {"eta": 1.0}, draws=STEPS),
    Pair(
        "kdpm2-ancestral",
        {"k-diffusion": ("dpm_2_ancestral",), "diffusers": ("KDPM2 ancestral",)},
        draws=STEPS,
    ),
    Pair("dpmpp-2s", {"k-diffusion": ("dpmpp_2s_ancestral",)}, {"eta": 1.0}, draws=STEPS),
    Pair(
        "sde-dpmpp-2m",
        {
            "k-diffusion": ("dpmpp_2m_sde midpoint",),
            "diffusers": ("EDM DPM++ 2M SDE", "Cosine DPM++ 2M SDE"),
        },
        draws=STEPS,
    ),
    Pair("sde-dpmpp-2m", {"diffusers": ("sde-dpmsolver++ 2M midpoint",)}, bound=SINGLE, draws=STEPS),
    Pair("sde-dpmpp-2m", {"k-diffusion": ("dpmpp_2m_sde heun",)}, {"solver_type": "heun"}, draws=STEPS),
    Pair(
        "sde-dpmpp-2m",
        {"diffusers": ("sde-dpmsolver++ 2M heun",)},
        {"solver_type": "heun"},
        SINGLE,
        draws=STEPS,
    ),
    Pair("sde-dpmpp-3m", {"k-diffusion": ("dpmpp_3m_sde",)}, {"compat": "published"}, draws=STEPS),
    *(
        Pair(
            "sa-solver",
            {"diffusers": (f"SA-Solver tau={tau:g} orders {p}, {c} full",)},
            {"eta": tau, "predictor": p, "corrector": c, "compat": "published"},
            draws=STEPS,
        )
        for p, c in ((2, 2), (3, 4))
        for tau in (0.4, 1.0)
    ),
]


def cases(pairs):
    return [
        pytest.param(pair, library, label, process, id=f"{pair.name}-{library}-{label}-{process}")
        for pair in pairs
        if pair.name in SAMPLERS
        for library, labels in pair.peers.items()
        for label in labels
        for process in pair.processes
    ]


def start_for(process, layout, n: int) -> torch.Tensor:
    """Four states with the spread that the process has at the grid's start."""
    t = layout(process, n)[0]
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return x * torch.sqrt(process.alpha(t) ** 2 + process.sigma(t) ** 2)


def compare(pair: Pair, library: str, label: str, process) -> float:
    needs(library)
    layout = pair.layout
    start = start_for(process, layout, STEPS)
    xi = None
    if pair.draws:
        generator = torch.Generator().manual_seed(4)
        xi = torch.randn(pair.draws, *start.shape, generator=generator, dtype=torch.float64)
    peer = theirs(method(library, label), process, layout, pair.finer * STEPS, start, xi)
    return distance(peer, ours(pair.sampler, process, layout, STEPS, start, xi))


@pytest.mark.parametrize(("pair", "library", "label", "process"), cases(PAIRS))
def test_same_trajectory(pair, library, label, process):
    assert compare(pair, library, label, PROCESSES[process]) < pair.bound


@pytest.mark.parametrize(("pair", "library", "label", "process"), cases(STOCHASTIC))
def test_same_trajectory_with_the_same_noise(pair, library, label, process):
    assert compare(pair, library, label, PROCESSES[process]) < pair.bound


@pytest.mark.parametrize("label", ["FlowMatch Heun", "FlowMatch Euler"])
def test_flow_matching_on_the_rectified_flow(label):
    """Its schedulers step in the flow's own time, as ours do there; they cast to float32."""
    needs("diffusers")
    process = sk.RectifiedFlow()

    def layout(process, n):
        return torch.linspace(0.95, process.t_min, n + 1, dtype=torch.float64)

    start = start_for(process, layout, STEPS)
    peer = theirs(method("diffusers", label), process, layout, STEPS, start)
    own = ours(label.split()[1].lower(), process, layout, STEPS, start)
    assert distance(peer, own) < SINGLE


@pytest.mark.parametrize("process", PROCESSES)
def test_dpm_solver_3_is_the_step_of_dpm_fast(process):
    """3 k + 1 evaluations of dpm_fast are k steps of order 3 and one of order 1, equal in lambda."""
    needs("k-diffusion")
    process = PROCESSES[process]
    start = start_for(process, uniform, 5)
    fast = theirs(method("k-diffusion", "dpm_fast"), process, lambda p, n: uniform(p, 6), 16, start)
    steps = ours("dpm-3", process, lambda p, n: uniform(p, 6)[:-1], 5, start)
    assert distance(Track(fast.calls[:-1], fast.calls[-1][1]), steps) < DOUBLE


@pytest.mark.parametrize("churn", [0.0, 4.0, 40.0])
def test_churn_of_algorithm_2(churn):
    """s_churn / n = 0.25 raises every level by a quarter, 40 by the cap sqrt(2) - 1; EDM's own process."""
    needs("k-diffusion")
    process, options = sk.EDM(), {"s_churn": churn, "s_noise": 1.003}
    start = start_for(process, smooth, STEPS)
    xi = torch.randn(STEPS, *start.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    peer = theirs(Method("heun", call("sample_heun", **options)), process, smooth, STEPS, start, xi)
    own = ours(SAMPLERS["edm-stochastic"](**options), process, smooth, STEPS, start, xi)
    assert distance(peer, own) < DOUBLE
