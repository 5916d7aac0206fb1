"""Error of the deterministic samplers to the exact probability-flow map, against evaluations.

Error of a sample: RMS distance to the end of its own trajectory (see `benchmarks.problems`); reported are
mean, median and RMSE over the samples. Every deterministic sampler of this package runs on its default grid;
every one of diffusers, k-diffusion and azula (`benchmarks.peers`) on every grid that the libraries ship.

For each suite and number of evaluations the default sampler is compared with the best *single* configuration
of the libraries, sampler and grid: that with the smallest geometric mean of the median error over the suite.

    python -m benchmarks.accuracy [--fresh ours|peers] [--workers 2]

`benchmarks._cells` measures, drops what cannot win, and keeps results in benchmarks/.cache.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import _cells
from benchmarks._cells import (
    STAND_INS,
    Row,
    cells,
    figures,
    loaded,
    peer_names,
    planned,
    prepare,
    processes,
    race,
)
from benchmarks._summary import record
from benchmarks._timing import geometric, spread
from benchmarks.networks import kept
from benchmarks.problems import Problem
from sdekit.samplers.base import Sampler
from sdekit.samplers.registry import SAMPLERS

__all__ = ["errors", "ours", "peer_best", "quick", "run"]

DEFAULT = "kernel-quadrature"
PICTURE = Path(__file__).parent / "results" / "accuracy.png"
QUICK = ("gaussian 1/k d=64, VP", "gaussian 16/k^2 d=256, EDM", "ring of 8 d=2, VP")
"""Problems that `quick` measures anew, at these evaluations."""
QUICK_AT = (10, 20)


def errors(
    problems: Iterable[Problem],
    sampler: str | Sampler,
    grid: Any = None,
    nfe_list: Sequence[int] = _cells.EVALUATIONS,
    data_std: float | None = None,
    data_spread: float | None = None,
) -> dict[str, Row]:
    """{problem: {nfe: (mean, median, rmse)}} of one of our samplers; None where nfe allows no plan.

    grid: as in `sdekit.sample`. data_std, data_spread: in place of what the model knows.
    """
    found: dict[str, Row] = {}
    for p in problems:
        row = found.setdefault(p.name, {})
        for nfe in nfe_list:
            made = planned(p, sampler, grid, nfe, data_std, data_spread)
            row[nfe] = None if made is None else _cells.run_plan(p, made)
    return found


def ours() -> list[str]:
    """Our deterministic samplers; each runs on its default grid."""
    return [name for name, cls in SAMPLERS.items() if not cls.stochastic]


def medians(tables: Mapping[str, Mapping[str, Row]], configuration: str, nfe: int) -> dict[str, float] | None:
    """{problem: median} of a configuration, None where it has no run on one of them."""
    found = {name: table.get(configuration, {}).get(nfe) for name, table in tables.items()}
    own = {name: row[1] for name, row in found.items() if row is not None}
    return own if len(own) == len(tables) else None


def rank(
    tables: Mapping[str, Mapping[str, Row]], names: Iterable[str], nfe: int
) -> list[tuple[float, str, dict[str, float]]]:
    """(geometric mean, configuration, {problem: median}), best first."""
    rows = ((c, medians(tables, c, nfe)) for c in names)
    return sorted((geometric(own.values()), c, own) for c, own in rows if own is not None)


def peer_best(suite: str) -> dict[int, tuple[str, dict[str, float]]]:
    """{nfe: (configuration, {problem: median})} of the libraries' best single one, from what is kept."""
    names = peer_names()
    tables = {name: cells(name, names) for name in _cells.SUITES[suite]}
    order = {nfe: rank(tables, names, nfe) for nfe in _cells.EVALUATIONS}
    return {nfe: (best[0][1], best[0][2]) for nfe, best in order.items() if best}


def run(workers: int = 2, fresh: str = "") -> dict[str, Any]:
    """{"table", "ratios", "peers", "training seconds", "by problem", "evaluations", "cases"}; see the top."""
    own, others = ours(), peer_names()
    print(f"{len(own)} samplers of ours, {len(others)} configurations to compare with", flush=True)
    if others == list(STAND_INS):
        print("no library is installed: our own ddim, euler, heun and dpmpp-2m stand in", flush=True)
    redo = {"ours": own, "peers": others}.get(fresh, [])
    with processes(workers) as each:
        for _ in each(prepare, [name for names in _cells.SUITES.values() for name in names]):
            pass
        for suite in _cells.SUITES:
            race(suite, own, others, each, redo)
    return compare(own, others)


def compare(own: Sequence[str], others: Sequence[str]) -> dict[str, Any]:
    """The result of `run` from what is kept."""
    from benchmarks._accuracy_report import draw, lines

    tables = {suite: {n: cells(n, [*own, *others]) for n in names} for suite, names in _cells.SUITES.items()}
    table, single, means = [], {}, {}
    for suite, problems in tables.items():
        single[suite], means[suite] = {}, {}
        for nfe in _cells.EVALUATIONS:
            mine, order = medians(problems, DEFAULT, nfe), rank(problems, others, nfe)
            if mine is None or not order:
                continue
            mean, name, theirs = order[0]
            each = {p: mine[p] / theirs[p] for p in problems}
            worst = max(each, key=lambda p: each[p])
            single[suite][nfe] = {p: float(f"{r:.3g}") for p, r in each.items()}
            table.append(
                {
                    "suite": suite,
                    "nfe": nfe,
                    "default": geometric(mine.values()),
                    "best peer": mean,
                    "ratio": geometric(mine.values()) / mean,
                    "worst": each[worst],
                    "on": worst,
                    "peer": name,
                }
            )
        for c in [*own, *others]:
            found = {nfe: medians(problems, c, nfe) for nfe in _cells.EVALUATIONS}
            means[suite][c] = {n: geometric(m.values()) for n, m in found.items() if m is not None}
    stood_in = list(others) == list(STAND_INS)
    draw(means, own, DEFAULT, PICTURE)
    return {
        "table": table,
        "peers": len(others),
        "evaluations": _cells.EVALUATIONS,
        "ratios": {} if stood_in else ratios(table) | each_problem(single.get("closed-form", {})),
        **({"absent": "no library is installed, and none is kept"} if stood_in else {}),
        "training seconds": {name: round(report["seconds"], 1) for name, report in kept().items()},
        "by problem": single,
        "cases": lines(means, tables, own),
    }


def ratios(table: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The default's error over the best peer's, geometric mean over the problems, by suite and nfe."""
    return {
        f"{row['suite']}, {row['nfe']}: error over the best peer": spread(row["ratio"], better="lower")
        for row in table
    }


def each_problem(single: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """The default's error over that of the suite's best single peer, on the problems of QUICK."""
    return {
        f"{name}, {nfe}: error over the best peer": spread(single[nfe][name], better="lower")
        for nfe in QUICK_AT
        for name in QUICK
        if name in single.get(nfe, {})
    }


def quick() -> dict[str, Any]:
    """The problems of QUICK against the best single peer of the committed result, both run anew."""
    committed = record("accuracy")
    best = {
        row["nfe"]: row["peer"]
        for row in (committed["result"]["table"] if committed else ())
        if row["suite"] == "closed-form" and row["nfe"] in QUICK_AT
    }
    missing = [name for name in best.values() if name not in _cells.peers()]
    if missing:
        return {"ratios": {}, "absent": f"{missing[0].partition(':')[0]} is not installed"}
    torch.set_num_threads(1)
    single: dict[int, dict[str, float]] = {nfe: {} for nfe in best}
    for name in QUICK:
        p = loaded(name)
        for nfe, peer in best.items():
            mine, theirs = errors([p], DEFAULT, None, [nfe])[name][nfe], _run_peer(p, peer, nfe)
            assert mine is not None
            single[nfe][name] = mine[1] / theirs
    return {"ratios": each_problem(single)}


def _run_peer(p: Problem, name: str, nfe: int) -> float:
    x = _cells.peers()[name].run(p.model, p.start, nfe)
    assert x is not None
    return figures(p, x)[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    from benchmarks.run import render

    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy")
    parser.add_argument("--fresh", choices=("ours", "peers"), default="", help="measure these again")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    given = parser.parse_args(arguments)
    print(render(run(given.workers, given.fresh)["table"]))


if __name__ == "__main__":
    main()
