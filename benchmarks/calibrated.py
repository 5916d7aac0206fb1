"""Calibrated plans on the problems of `benchmarks.accuracy`, at 8, 10 and 20 evaluations.

For each problem `sdekit.calibrate` fits a plan to trajectories of its own (seed 0); the plan then runs from
the benchmark's starts, which calibration has not seen. Errors are medians over these of the distance to the
exact end, as in `benchmarks.accuracy`; each is divided by that of the libraries' best single configuration,
and by that of the default sampler. "over candidates": the error over that of the best uncalibrated candidate,
both on the trajectories that calibration keeps for its report.

The fit's constants (damping, scales, number of nodes) were chosen on the problems of DESIGN; rows "not in
design" leave these out.

    python -m benchmarks.calibrated [--suite closed-form|learned] [--nfe 8 10 20]

The libraries' errors are those that `benchmarks.accuracy` keeps, which runs first. Plans are kept in
benchmarks/.cache/calibrated, one file for each problem and number of evaluations.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import sdekit as sk
from benchmarks._cache import digest, folder, read_json, write_json
from benchmarks._cells import STAND_INS, SUITES, cells, figures, loaded, peer_names
from benchmarks._timing import geometric, spread
from benchmarks.accuracy import DEFAULT, errors, peer_best
from sdekit.certify.calibrate import calibrate

__all__ = ["DESIGN", "EVALUATIONS", "one", "run"]

EVALUATIONS = (8, 10, 20)
DESIGN = (
    "gaussian 16/k^2 d=256, VP",
    "ring of 8 d=2, VP",
    "digits d=64, VP",
    "mixture of 10 d=32, EDM",
    "moons d=2, EDM",
    "tree of 16 d=2, RectifiedFlow",
    "wine d=13, EDM",
    "lattice of 9 d=2, VP",
    "moons mlp edm",
    "digits mlp eps",
    "patches unet eps",
)
QUICK = ("gaussian 1/k d=64, EDM", "ring of 8 d=2, EDM", "tree of 16 d=2, VP")
"""Problems, none of them in DESIGN, that `quick` calibrates anew, at 8 evaluations."""
QUICK_AT = 8
VERSION = 1
"""Raised when calibration changes: what is kept of an older one is not used."""


def one(name: str, nfe: int) -> dict[str, Any]:
    """{"median", "seconds", "plan", ...} of a problem's calibrated plan, kept once it is made."""
    p = loaded(name)
    path = folder("calibrated") / f"{digest(p.name, p.start, p.exact, nfe, VERSION)}.json"
    kept = read_json(path)
    if kept:
        return kept
    found = anew(name, nfe)
    write_json(path, found)
    return found


def anew(name: str, nfe: int) -> dict[str, Any]:
    """As `one`, neither kept nor read."""
    p = loaded(name)
    started = time.perf_counter()
    plan = calibrate(p.model, shape=tuple(p.start.shape), nfe=nfe)
    seconds = time.perf_counter() - started
    x = sk.sample(p.model, tuple(p.start.shape), sampler=plan, x_init=p.start, throw=False).x
    return {
        "problem": name,
        "nfe": plan.nfe,
        "median": figures(p, x)[1],
        "seconds": round(seconds, 1),
        "evaluations": plan.provenance["evaluations"],
        "rows": plan.provenance["rows"],
        "chosen": plan.provenance["chosen"],
        "plan": plan.to_json(),
    }


def _default(name: str, nfe: int) -> float:
    """The default sampler's median error."""
    row = cells(name, [DEFAULT])[DEFAULT].get(nfe) or errors([loaded(name)], DEFAULT, None, [nfe])[name][nfe]
    assert row is not None
    return row[1]


def run(suites: Sequence[str] = tuple(SUITES), evaluations: Sequence[int] = EVALUATIONS) -> dict[str, Any]:
    """{"table", "ratios", "cases"}; see the top."""
    if peer_names() == list(STAND_INS):
        return {"absent": "no library is installed, and none is kept by `benchmarks.accuracy`"}
    torch.set_num_threads(1)
    table: list[dict[str, Any]] = []
    cases: list[dict[str, Any]] = []
    for suite in suites:
        best = peer_best(suite)
        if set(evaluations) - set(best):
            return {"absent": f"the libraries' errors on the {suite} suite; `python -m benchmarks.accuracy`"}
        for nfe in evaluations:
            peer, theirs = best[nfe]
            rows = []
            for name in SUITES[suite]:
                found = one(name, nfe)
                mine, default = found["median"], _default(name, nfe)
                about = json.loads(found["plan"])["provenance"]
                rows.append(
                    {
                        "suite": suite,
                        "nfe": nfe,
                        "problem": name,
                        "in design": name in DESIGN,
                        "median": mine,
                        "over peer": mine / theirs[name],
                        "over default": mine / default,
                        "over candidates": about["error"] / about["best_uncalibrated"]["error"],
                        "evaluations": found["evaluations"],
                        "rows": found["rows"],
                        "seconds": found["seconds"],
                        "chosen": found["chosen"],
                    }
                )
                print(
                    f"{nfe:3} {name}: {mine / theirs[name]:.3f} of the peer, {mine / default:.3f} of the "
                    f"default, {found['evaluations']} evaluations, {found['seconds']} s",
                    flush=True,
                )
            cases += rows
            table.append(_summary(suite, rows, peer))
            table.append(_summary(f"{suite}, not in design", [r for r in rows if not r["in design"]], peer))
    each = {row["problem"]: row["over default"] for row in cases if row["nfe"] == QUICK_AT}
    return {"table": table, "ratios": ratios(table) | each_problem(each), "cases": cases}


def ratios(table: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Errors over those of the best peer and of the default sampler, geometric means, by suite and nfe."""
    return {
        f"{row['suite']}, {row['nfe']}: error {which}": spread(row[which], better="lower")
        for row in table
        for which in ("over peer", "over default")
    }


def each_problem(over: Mapping[str, float]) -> dict[str, Any]:
    """The calibrated plan's error over the default's, on the problems of QUICK."""
    return {
        f"{name}, {QUICK_AT}: error over default": spread(over[name], better="lower")
        for name in QUICK
        if name in over
    }


def quick() -> dict[str, Any]:
    """The problems of QUICK, calibrated anew."""
    torch.set_num_threads(1)
    over = {}
    for name in QUICK:
        row = errors([loaded(name)], DEFAULT, None, [QUICK_AT])[name][QUICK_AT]
        assert row is not None
        over[name] = anew(name, QUICK_AT)["median"] / row[1]
    return {"ratios": each_problem(over)}


def _summary(label: str, rows: Sequence[dict[str, Any]], peer: str) -> dict[str, Any]:
    worst = max(rows, key=lambda r: r["over peer"])
    return {
        "suite": label,
        "nfe": rows[0]["nfe"],
        "problems": len(rows),
        "over peer": geometric(r["over peer"] for r in rows),
        "worst": worst["over peer"],
        "on": worst["problem"],
        "over default": geometric(r["over default"] for r in rows),
        "over candidates": geometric(r["over candidates"] for r in rows),
        "worst over candidates": max(r["over candidates"] for r in rows),
        "evaluations": geometric(float(r["evaluations"]) for r in rows),
        "rows": geometric(float(r["rows"]) for r in rows),
        "seconds": geometric(max(r["seconds"], 0.1) for r in rows),
        "peer": peer,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    from benchmarks.run import render

    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibrated")
    parser.add_argument("--suite", nargs="+", choices=tuple(SUITES), default=tuple(SUITES))
    parser.add_argument("--nfe", nargs="+", type=int, choices=EVALUATIONS, default=EVALUATIONS)
    given = parser.parse_args(arguments)
    print(render(run(given.suite, given.nfe)["table"]))


if __name__ == "__main__":
    main()
