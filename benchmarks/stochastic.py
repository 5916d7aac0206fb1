"""Exact W2 of samplers with noise on Gaussian data, against evaluations: ours and other libraries'.

Data are N(0, C) in 64 dimensions with eigenvalues proportional to 1/k and 1/k^2, tr C/d = 1/4, on VP, VE
and EDM. The distance is that of the law of the output to the data's, from the prior of the process, no
Monte Carlo: ours by `sdekit.certify`, the libraries' by the response of their unmodified code to unit
impulses of noise (`benchmarks.peers.law`). Every sampler with noise of diffusers, k-diffusion and azula
runs on every grid that the libraries ship; where a run proves not affine it has no figure. The ratio
compares `gaussian-split` with the best *single* configuration, by geometric mean over the problems at that
number of evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import sdekit as sk
from benchmarks._summary import record
from benchmarks._timing import geometric, spread
from sdekit.samplers.registry import SAMPLERS

EVALUATIONS = (10, 20, 50)
QUICK_AT = (10, 20)
QUICK = tuple(f"W2 at {nfe} " for nfe in QUICK_AT)
OURS = tuple(name for name, cls in SAMPLERS.items() if cls.stochastic)


def problems() -> dict[str, tuple[sk.Gaussian, sk.GaussianDiffusion]]:
    """{name: (data, process)}."""
    k = torch.arange(1, 65, dtype=torch.float64)
    found = {}
    for power in (1, 2):
        spectrum = k**-power
        data = sk.Gaussian(torch.zeros(64), variance=spectrum * 16 / spectrum.sum())
        for process in (sk.VP(), sk.VE(), sk.EDM()):
            found[f"k^-{power}, {type(process).__name__}"] = (data, process)
    return found


def measure() -> dict[str, dict[int, list[float | None]]]:
    """{configuration: {nfe: W2 on each problem, None where it has no run}}."""
    from benchmarks.peers import available, exact_w2, stochastic_configurations

    cases = list(problems().values())
    found: dict[str, dict[int, list[float | None]]] = {}
    for name in OURS:
        if not sk.plan(name, sk.VP(), nfe=10).affine:
            continue
        found[name] = {
            n: [sk.certify(name, data, process, nfe=n).w2 for data, process in cases] for n in EVALUATIONS
        }

    def w2(peer: Any, data: sk.Gaussian, process: sk.GaussianDiffusion, nfe: int) -> float | None:
        try:
            return exact_w2(peer, data, process, nfe)
        except ValueError:
            return None

    for peer in stochastic_configurations(available()):
        found[peer.name] = {n: [w2(peer, *case, n) for case in cases] for n in EVALUATIONS}
    return found


def run() -> dict[str, Any]:
    """{"table", "ratios", "w2"}: the best of each side at each number of evaluations, and every mean."""
    found = measure()
    means: dict[str, dict[int, float]] = {}
    for name, rows in found.items():
        means[name] = {
            n: math.exp(sum(math.log(v) for v in values if v) / len(values))
            for n, values in rows.items()
            if all(v is not None and math.isfinite(v) and v > 0 for v in values)
        }
    table = []
    for n in EVALUATIONS:
        peers = {name: m[n] for name, m in means.items() if name not in OURS and n in m}
        best = min(peers, key=lambda name: peers[name], default=None)
        row: dict[str, Any] = {"nfe": n, "gaussian-split": means["gaussian-split"][n]}
        if best is not None:
            row |= {"best peer": peers[best], "ratio": row["gaussian-split"] / peers[best], "peer": best}
        table.append(row)
    peers = sum(name not in OURS for name in means)
    absent = {} if peers else {"absent": "no library is installed"}
    return {"table": table, "ratios": ratios(table), "peers": peers, "w2": means, **absent}


def ratios(table: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Exact W2 of `gaussian-split` over that of the libraries' best, by number of evaluations."""
    return {
        f"W2 at {row['nfe']} over the best peer": spread(row["ratio"], better="lower")
        for row in table
        if "ratio" in row
    }


def quick() -> dict[str, Any]:
    """`gaussian-split` and the committed best of the libraries, both certified anew."""
    from benchmarks.peers import available, exact_w2, stochastic_configurations

    peers, committed = {p.name: p for p in stochastic_configurations(available())}, record("stochastic")
    rows = []
    for row in committed["result"]["table"] if committed else ():
        if row["nfe"] not in QUICK_AT or "peer" not in row:
            continue
        if row["peer"] not in peers:
            return {"ratios": {}, "absent": f"{row['peer'].partition(':')[0]} is not installed"}
        cases, nfe = problems().values(), row["nfe"]
        ours = geometric(sk.certify("gaussian-split", *case, nfe=nfe).w2 for case in cases)
        theirs = [exact_w2(peers[row["peer"]], *case, nfe) for case in cases]
        rows.append({"nfe": nfe, "ratio": ours / geometric(w2 for w2 in theirs if w2 is not None)})
    return {"ratios": ratios(rows)}
