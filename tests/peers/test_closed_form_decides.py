"""Where the libraries differ, the closed form decides: error on a Gaussian, whose flow is known.

The slope is log2 of the ratio of errors at two numbers of intervals on a grid with end steps of O(k^-2), as
in the tests of the declared orders. Stochastic peers: the exact law, from impulses, to the marginal.
"""

from __future__ import annotations

import math

import pytest
import torch

import sdekit as sk
from benchmarks.peers import available
from benchmarks.peers.base import Peer
from benchmarks.peers.law import exact_law
from sdekit.samplers.registry import SAMPLERS
from tests.peers.problems import method, needs
from tests.samplers.problems import smooth_times

if not available():
    pytest.skip("the libraries are not installed: make peers-env", allow_module_level=True)

VARIANCE = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
TARGET = sk.Gaussian(torch.zeros(3), variance=VARIANCE)
PROCESS = sk.VE()


def spread(t) -> torch.Tensor:
    """Standard deviations of the marginal."""
    return torch.sqrt(PROCESS.alpha(t) ** 2 * VARIANCE + PROCESS.sigma(t) ** 2)


def peer(library: str, label: str, k: int) -> Peer:
    needs(library)
    return Peer(library, method(library, label), f"smooth {k}", lambda process, n: smooth_times(process, k))


def map_error(library: str, label: str, k: int) -> float:
    """Distance of the peer's end to the flow's, from one standard deviation at the start."""
    times = smooth_times(PROCESS, k)
    start, exact = spread(times[0])[None], spread(times[-1])[None]
    x, _ = peer(library, label, k).solve(TARGET.denoiser(PROCESS), start, k)
    return float((x - exact).norm())


def slope(error) -> float:
    return math.log2(error(120) / error(240))


def ours(name: str, **options) -> float:
    """Slope of the certified error of this package's sampler."""
    sampler = SAMPLERS[name](**options)

    def error(k):
        times = smooth_times(PROCESS, k)
        return sk.certify(sampler, TARGET, PROCESS, grid=times, against="t_min").discretization.norm

    return slope(error)


THIRD = [
    ("k-diffusion", "dpmpp_3m_sde eta=0"),
    ("diffusers", "EDM DPM++ 3M midpoint"),
    ("diffusers", "EDM DPM++ 3M heun"),
]


@pytest.mark.parametrize(("library", "label"), THIRD)
def test_published_third_order_multistep_is_of_order_two(library, label):
    """It takes half of the parabola's quadratic term. The exact integral, here and in azula, has order 3."""
    assert 1.9 < slope(lambda k: map_error(library, label, k)) < 2.4


def test_exact_third_order_multistep():
    assert ours("dpmpp-3m") > 2.75
    assert ours("dpmpp-3m", compat="published") < 2.4


def test_azula_third_order_multistep():
    assert slope(lambda k: map_error("azula", "xEAB-3", k)) > 2.75


@pytest.mark.parametrize("order", [2, 3, 4])
def test_azula_reab_is_of_order_one(order):
    """Its step scales the integral by sqrt(alpha'^2 + sigma^2) where sqrt(alpha'^2 + sigma'^2) belongs."""
    assert 0.9 < slope(lambda k: map_error("azula", f"REAB-{order}", k)) < 1.15


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("kind", ["zAB", "vAB", "zEAB", "xEAB"])
def test_azula_adams_has_its_order(kind, order):
    assert slope(lambda k: map_error("azula", f"{kind}-{order}", k)) > order - 0.25


@pytest.mark.parametrize("label", ["IPNDM", "PNDM"])
def test_constant_weights_are_of_order_two(label):
    """Adams-Bashforth weights of equal steps, on unequal steps of rho: four nodes do not help."""
    assert 1.9 < slope(lambda k: map_error("diffusers", label, k)) < 2.3


def law_error(library: str, label: str, k: int) -> float:
    """Largest difference of the standard deviations from the marginal's, started at the marginal."""
    times = smooth_times(PROCESS, k)
    law = exact_law(peer(library, label, k), TARGET, PROCESS, k, initial_std=spread(times[0]))
    assert law is not None
    return float((law[1] - spread(times[-1])).abs().max())


def test_diffusers_third_order_sde_multistep_has_a_sign_wrong():
    """Its quadratic term is phi - 1/2 where the derivation has phi + 1/2: it does not vanish with h.

    The same method in k-diffusion, whose term vanishes, is an order of magnitude nearer to the exact law.
    """
    wrong, right = (
        law_error(library, label, 60)
        for library, label in (
            ("diffusers", "sde-dpmsolver++ 3M midpoint"),
            ("k-diffusion", "dpmpp_3m_sde"),
        )
    )
    assert wrong > 10 * right
