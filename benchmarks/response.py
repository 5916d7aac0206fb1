"""Exact W2 of other libraries' samplers on Gaussian data, run by their own plain loops, beside ours.

Data are N(0, C) in 64 dimensions with eigenvalues proportional to 1/k, tr C/d = 1/4. Each sampler
of `benchmarks.peers.plain` places its own nodes and takes its own last step; its law is that of its response
to impulses (`sdekit.certify_response`), with no sample drawn. Ours, by `sdekit.certify`, run on the same
noise levels at their own defaults. The distance is to the data.

Also: the processor seconds that the certificate of a 50-step scheduler takes, in 64 and 3,072 dimensions.

`python -m benchmarks.run response` in the peers' environment writes docs/reference/third_party.json too.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import sdekit as sk
from benchmarks._timing import spread
from sdekit.errors import SdekitError
from sdekit.samplers.registry import SAMPLERS

FILE = Path(__file__).parents[1] / "docs" / "reference" / "third_party.json"
EVALUATIONS = (10, 20, 50)
QUICK = ("DDPM table, 20", "EDM, 20", "rectified flow, 20", "VP of azula, 20")
LIBRARIES = ("diffusers", "k-diffusion", "azula")


def data(dimension: int = 64) -> sk.Gaussian:
    """N(0, C) on images, C diagonal: eigenvalues proportional to 1/k, tr C/d = 1/4."""
    values = 1 / torch.arange(1, dimension + 1, dtype=torch.float64)
    shape = (1, 8, 8) if dimension == 64 else (3, 32, 32)
    return sk.Gaussian(torch.zeros(shape), variance=(values * (dimension / 4 / values.sum())).reshape(shape))


def entry(sampler: Any, nfe: int) -> dict[str, float] | None:
    """{"w2", "draws", "residual"} of a plain sampler; {"refused": residual} where it is not affine."""
    law = data()
    run = sampler.make(law, nfe)
    if run is None:
        return None
    try:
        found = sk.certify_response(run, law, name=sampler.name, nfe=nfe)
    except sk.certify.ResidualError as error:
        return {"refused": error.residual}
    return {"w2": found.w2, "draws": found.draws, "residual": found.residual}


def ours(process: sk.GaussianDiffusion) -> dict[str, dict[str, float | None]]:
    """{sampler: {nfe: W2}} of this package; None where it has no run."""
    names = [name for name in SAMPLERS if sk.plan(name, sk.VP(), steps=4).affine]
    return {name: {str(n): _w2(name, process, n) for n in EVALUATIONS} for name in names}


def _w2(name: str, process: sk.GaussianDiffusion, nfe: int) -> float | None:
    try:
        w2 = sk.certify(name, data(), process, nfe=nfe).w2
    except (SdekitError, ValueError):
        return None
    return w2 if math.isfinite(w2) else None


def seconds() -> dict[str, float]:
    """Of one processor, for the certificate of 50 steps of diffusers' DDPM scheduler, by dimension."""
    from benchmarks.peers.plain import plain

    [ddpm] = [s for s in plain() if s.name == "diffusers: DDPM"]
    found = {}
    for dimension in (64, 3072):
        law = data(dimension)
        run = ddpm.make(law, 50)
        assert run is not None
        start = time.process_time()
        sk.certify_response(run, law)
        found[str(dimension)] = time.process_time() - start
    return found


def _absent() -> str | None:
    """The libraries that are not installed; the comparison is made with all of them or not at all."""
    from benchmarks.peers import available

    missing = [name for name in LIBRARIES if name not in available()]
    return f"{', '.join(missing)} not installed" if missing else None


def run() -> dict[str, Any]:
    """{"table", "sections", "refused", "seconds", "versions"}; see the module."""
    from benchmarks.peers.plain import PROCESSES, plain, refused

    if (absent := _absent()) is not None:
        return {"absent": absent}
    torch.set_num_threads(1)
    sections: dict[str, Any] = {
        family: {"process": repr(process), "ours": ours(process), "peers": {}}
        for family, process in PROCESSES.items()
    }
    for sampler in plain():
        rows = {str(n): entry(sampler, n) for n in EVALUATIONS}
        sections[sampler.family]["peers"][sampler.name] = rows
    result = {
        "evaluations": list(EVALUATIONS),
        "sections": sections,
        "refused": {s.name: (entry(s, 20) or {}).get("refused") for s in refused()},
        "seconds": seconds(),
        "versions": {name: version(name) for name in LIBRARIES},
    }
    FILE.write_text(json.dumps(result, indent=1) + "\n")
    table = _table(sections)
    return {"table": table, "ratios": ratios(table), **result}


def ratios(table: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Exact W2 of our best over that of the best of the libraries' plain loops."""
    return {
        f"{row['noise levels']}, {row['nfe']}: W2 over the best peer": spread(
            row["ours"] / row["theirs"], better="lower"
        )
        for row in table
    }


def quick() -> dict[str, Any]:
    """The committed winners of both sides at 20 evaluations, run again."""
    from benchmarks.peers.plain import PROCESSES, plain

    if (absent := _absent()) is not None:
        return {"ratios": {}, "absent": absent}
    torch.set_num_threads(1)
    committed = json.loads((Path(__file__).parent / "results" / "response.json").read_text())
    samplers = {s.name: s for s in plain()}
    rows = []
    for row in committed["result"]["table"]:
        if row["nfe"] != "20":
            continue
        theirs = entry(samplers[row["peer"]], 20)
        assert theirs is not None
        ours = _w2(row["sampler"], PROCESSES[row["noise levels"]], 20)
        rows.append(row | {"ours": ours, "theirs": theirs["w2"]})
    return {"ratios": ratios(rows)}


def _table(sections: dict[str, Any]) -> list[dict[str, Any]]:
    """The best of each side."""
    rows = []
    for family, section in sections.items():
        for n in map(str, EVALUATIONS):
            mine = {name: row[n] for name, row in section["ours"].items() if row[n] is not None}
            peers = {
                name: row[n]["w2"] for name, row in section["peers"].items() if row[n] and "w2" in row[n]
            }
            first, best = min(mine, key=lambda k: mine[k]), min(peers, key=lambda k: peers[k])
            row = {"noise levels": family, "nfe": n, "ours": mine[first], "sampler": first}
            rows.append(row | {"theirs": peers[best], "peer": best})
    return rows
