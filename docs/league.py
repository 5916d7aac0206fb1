"""The league table: exact W2 of every affine sampler on Gaussians with power-law spectra.

``python -m docs.league`` (or ``make league``) certifies each sampler of the registry on its default grid
and writes ``docs/reference/league.json``. No random numbers.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch

import sdekit as sk
from sdekit.samplers.registry import SAMPLERS

FILE = Path(__file__).parent / "reference" / "league.json"
DIMENSION = 64
EVALUATIONS = (5, 10, 20, 50)
POWERS = (1, 2)
PROCESSES = (sk.VP(), sk.VE(), sk.RectifiedFlow(), sk.EDM())


@cache
def target(power: int) -> sk.Gaussian:
    """N(0, C), d = 64: eigenvalues proportional to k^-power, scaled so that tr C / d = 1/4."""
    values = torch.arange(1, DIMENSION + 1, dtype=torch.float64) ** -power
    return sk.Gaussian(torch.zeros(DIMENSION), variance=values * (DIMENSION / 4 / values.sum()))


def entry(name: str, power: int, process: sk.GaussianDiffusion, nfe: int) -> dict[str, float] | None:
    """W2 and evaluations of one run; None where one step takes more evaluations than ``nfe``.

    w2: from the law of the output, started at the true marginal at t_max, to the true marginal at t_min:
    the sampler's own error.
    """
    if sk.plan(name, process, steps=1).nfe > nfe:
        return None
    found = sk.certify(name, target(power), process, nfe=nfe, against="t_min")
    return {"w2": found.discretization.norm, "nfe": found.nfe}


def prior(power: int, process: sk.GaussianDiffusion) -> float:
    """W2 at t_min that starting at the prior makes, propagated by 200 steps of the default sampler."""
    return sk.certify("kernel-quadrature", target(power), process, steps=200, against="t_min").initial.norm


def affine() -> list[str]:
    """Samplers that have an exact certificate."""
    return [name for name in SAMPLERS if sk.plan(name, sk.VP(), steps=4).affine]


def compute() -> dict[str, Any]:
    """{"cases": {"VP, k^-1": {"prior": W2, "samplers": {name: {nfe: entry}}}}}."""
    cases: dict[str, Any] = {}
    for process in PROCESSES:
        for power in POWERS:
            cases[f"{type(process).__name__}, k^-{power}"] = {
                "prior": prior(power, process),
                "samplers": {
                    name: {str(nfe): entry(name, power, process, nfe) for nfe in EVALUATIONS}
                    for name in affine()
                },
            }
    return {
        "dimension": DIMENSION,
        "evaluations": list(EVALUATIONS),
        "processes": [repr(process) for process in PROCESSES],
        "cases": cases,
    }


def differences(a: Any, b: Any, rtol: float = 1e-6) -> list[str]:
    """Where two league tables differ: missing entries, or numbers beyond rounding."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f"{key}: only in one of them" for key in sorted(a.keys() ^ b.keys())]
        for key in a.keys() & b.keys():
            found += [f"{key}: {rest}" for rest in differences(a[key], b[key], rtol)]
        return found
    if isinstance(a, float) and isinstance(b, float):
        return [] if math.isclose(a, b, rel_tol=rtol, abs_tol=1e-12) else [f"{a:.9g} and {b:.9g}"]
    return [] if a == b else [f"{a!r} and {b!r}"]


def read() -> dict[str, Any]:
    """The committed table."""
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def write() -> None:
    """Certify everything and write the file."""
    FILE.write_text(json.dumps(compute(), indent=1) + "\n")
    print(f"wrote {FILE}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write()
