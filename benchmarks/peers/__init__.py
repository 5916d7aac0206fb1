"""Samplers of diffusers, k-diffusion and azula, unmodified, on the problems of this package.

    for peer in configurations():
        x = peer.run(model, x_start, nfe)      # None where the sampler has no run of so few evaluations

Every sampler starts at the process's t_max and ends at its t_min, on a grid given to all libraries alike.
`make peers-env` builds the environment in which the three libraries are installed.
"""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.peers import azula_samplers, diffusers_schedulers, k_diffusion_samplers
from benchmarks.peers.base import Missing, Peer, available
from benchmarks.peers.grids import COMMON, COURTESY, OWN
from benchmarks.peers.law import exact_w2

__all__ = [
    "Missing",
    "Peer",
    "available",
    "configurations",
    "courtesy_configurations",
    "exact_w2",
    "stochastic_configurations",
]

MODULES = {
    "diffusers": diffusers_schedulers,
    "k-diffusion": k_diffusion_samplers,
    "azula": azula_samplers,
}


def _cross(libraries: Iterable[str] | None, stochastic: bool, courtesy: bool) -> list[Peer]:
    peers: list[Peer] = []
    for library in MODULES if libraries is None else libraries:
        module = MODULES[library]
        for method in module.stochastic() if stochastic else module.deterministic():
            grids = COURTESY if courtesy else {**COMMON, **OWN[library]}
            if method.own_grid is not None:
                grids = {} if courtesy else {method.own_grid: grids[method.own_grid]}
            peers += [Peer(library, method, name, grid) for name, grid in grids.items()]
    return peers


def configurations(libraries: Iterable[str] | None = None) -> list[Peer]:
    """Every deterministic sampler of the libraries on every grid of `COMMON` and of its own library.

    libraries: some of "diffusers", "k-diffusion", "azula"; all of them for None.
    """
    return _cross(libraries, stochastic=False, courtesy=False)


def courtesy_configurations(libraries: Iterable[str] | None = None) -> list[Peer]:
    """The same samplers on the grids of this package, which no peer ships."""
    return _cross(libraries, stochastic=False, courtesy=True)


def stochastic_configurations(libraries: Iterable[str] | None = None) -> list[Peer]:
    """Every stochastic sampler whose steps are affine in state and noise, on the same grids."""
    return _cross(libraries, stochastic=True, courtesy=False)
