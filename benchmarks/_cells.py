"""What the accuracy benchmark measures, configuration by configuration, and keeps in benchmarks/.cache.

A cell is a configuration, ours or a library's, on a problem at a number of evaluations. The problems of a
suite run one after another. A configuration of the libraries is out, at a number of evaluations, once it
could become the best single one only by beating the leader by more than a factor CATCH_UP, on geometric
average, on all the problems that are left.

Cells are kept and not computed twice: a library's under its name and version, ours under the coefficients
of the plan, so that a changed sampler is measured anew. Libraries that are not installed enter by what is
kept of them.
"""

from __future__ import annotations

import importlib.metadata
import math
import multiprocessing
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sdekit as sk
from benchmarks._cache import digest, folder, read_json, write_json
from benchmarks.problems import CLOSED_FORM, LEARNED, Problem, problem
from sdekit.samplers.base import Sampler
from sdekit.samplers.registry import SAMPLERS

__all__ = ["EVALUATIONS", "STAND_INS", "SUITES", "Row", "cells", "figures", "loaded", "measure", "peer_names"]
__all__ += ["planned", "prepare", "processes", "race", "run_plan"]

EVALUATIONS = (5, 6, 8, 10, 15, 20, 30, 50, 100)
SUITES = {"closed-form": CLOSED_FORM, "learned": LEARNED}
CATCH_UP = {"closed-form": 1.5, "learned": 2.0}
STAND_INS = tuple(
    f"sdekit: {sampler} on {grid}"
    for sampler in ("ddim", "euler", "heun", "dpmpp-2m")
    for grid in ("karras", "uniform-lambda")
)
"""Compared with where neither a library nor a result of one is at hand."""
PEERS_VERSION = 1
"""Raised when the way in which the libraries are run changes."""

Figures = tuple[float, float, float]
Row = dict[int, Figures | None]
"""Evaluations -> (mean, median, RMSE); inf: not finite; None: no such run."""


def figures(p: Problem, x: Tensor) -> Figures:
    """Mean, median and root mean square over the samples of their distance to the exact end."""
    d = p.distance(x)
    if not bool(torch.isfinite(d).all()):
        d = torch.where(torch.isfinite(d), d, torch.inf)
    return float(d.mean()), float(d.median()), float(d.square().mean().sqrt())


def planned(
    p: Problem, sampler: str | Sampler, grid: Any, nfe: int, s: float | None = None, s2: float | None = None
) -> sk.Plan | None:
    known = p.model.data_std, p.model.data_spread
    s, s2 = (s, s2) if s is not None else known
    try:
        return sk.plan(
            sampler, p.model.process, nfe=nfe, grid=grid, data_std=1.0 if s is None else s, data_spread=s2,
            predicts=p.model.predicts, finite=not p.model.defined_at_pure_noise,
        )  # fmt: skip
    except ValueError:  # fewer evaluations than the sampler's least
        return None


def run_plan(p: Problem, made: sk.Plan) -> Figures:
    run = sk.sample(p.model, tuple(p.start.shape), sampler=made, x_init=p.start, throw=False)
    return figures(p, run.x)


@lru_cache(maxsize=1)
def peers() -> dict[str, Any]:
    """Name with the library's version -> `benchmarks.peers.Peer`, of the libraries that are installed."""
    try:
        from benchmarks.peers import available, configurations
    except ImportError:
        return {}
    found = {}
    for peer in configurations(available()):
        library, _, rest = peer.name.partition(":")
        found[f"{library} {importlib.metadata.version(peer.library)}:{rest}"] = peer
    return found


def peer_names() -> list[str]:
    """Configurations of the libraries: installed, or else those kept, or else the stand-ins."""
    if peers():
        return list(peers())
    kept = [key for suite in SUITES for key in read_json(_store(loaded(_order(suite)[0])))]
    names = [key.rpartition(" @ ")[0] for key in kept if key.endswith(f"v{PEERS_VERSION}")]
    return list(dict.fromkeys(names)) or list(STAND_INS)


def _named(p: Problem, configuration: str, nfe: int) -> sk.Plan | None:
    """The plan of one of ours, or of a stand-in "sdekit: sampler on grid"."""
    if configuration in STAND_INS:
        sampler, grid = configuration.removeprefix("sdekit: ").split(" on ")
        return planned(p, sampler, grid, nfe)
    return planned(p, configuration, None, nfe)


@lru_cache(maxsize=64)
def loaded(name: str) -> Problem:
    """`problem`, kept."""
    return problem(name)


def _store(p: Problem) -> Path:
    return folder("cells") / f"{digest(p.name, p.start, p.exact)}.json"


def _key(p: Problem, configuration: str, nfe: int) -> str | None:
    """Of ours by the plan, None where there is none; of the libraries by name."""
    if configuration in SAMPLERS or configuration in STAND_INS:
        made = _named(p, configuration, nfe)
        return None if made is None else f"plan {digest(made.to_json())}"
    return f"{configuration} @ {nfe} v{PEERS_VERSION}"


def cells(name: str, configurations: Iterable[str]) -> dict[str, Row]:
    """What is kept of these configurations on a problem."""
    p = loaded(name)
    kept = read_json(_store(p))
    table: dict[str, Row] = {}
    for c in configurations:
        keys = {nfe: _key(p, c, nfe) for nfe in EVALUATIONS}
        found = {nfe: kept[key] for nfe, key in keys.items() if key in kept}
        table[c] = {nfe: None if v is None else (v[0], v[1], v[2]) for nfe, v in found.items()}
    return table


Task = tuple[str, tuple[tuple[str, int], ...]]


def _work(task: Task) -> tuple[str, dict[str, Figures | None]]:
    """(problem, {key: figures}) of some (configuration, evaluations) on a problem."""
    torch.set_num_threads(1)
    name, pairs = task
    p = loaded(name)
    found: dict[str, Figures | None] = {}
    for configuration, nfe in pairs:
        key = _key(p, configuration, nfe)
        assert key is not None
        peer = peers().get(configuration)
        if peer is not None:
            x = peer.run(p.model, p.start, nfe)
            found[key] = None if x is None else figures(p, x)
        elif key not in found:
            made = _named(p, configuration, nfe)
            assert made is not None
            found[key] = run_plan(p, made)
    return name, found


@contextmanager
def processes(workers: int) -> Iterator[Any]:
    """An unordered map over so many processes, or in this one."""
    if workers <= 1:
        yield map
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield pool.imap_unordered


def prepare(name: str) -> None:
    torch.set_num_threads(1)
    loaded(name)


def measure(
    name: str, wanted: Mapping[str, Iterable[int]], each: Any = map, redo: Iterable[str] = ()
) -> dict[str, Row]:
    """Run on a problem what is not kept yet; everything that is now kept of ``wanted``.

    wanted: {configuration: evaluations}. each: `map`, or that of a pool. redo: configurations to run again.
    """
    p, again = loaded(name), set(redo)
    kept = read_json(_store(p))
    pairs = []
    for configuration, evaluations in wanted.items():
        for nfe in evaluations:
            key = _key(p, configuration, nfe)
            if key is not None and (key not in kept or configuration in again):
                pairs.append((configuration, nfe))
    size = 16 if p.suite == "learned" else 64
    tasks: list[Task] = [(name, tuple(pairs[i : i + size])) for i in range(0, len(pairs), size)]
    for _, found in each(_work, tasks):
        write_json(_store(p), read_json(_store(p)) | found)
    return cells(name, wanted)


def race(
    suite: str, own: Iterable[str], others: Iterable[str], each: Any = map, redo: Iterable[str] = ()
) -> None:
    """Measure a suite: ours everywhere, the others for as long as they can win (see CATCH_UP).

    ``others`` that are neither installed nor stand-ins enter by what is kept of them.
    """
    names = _order(suite)
    behind = {nfe: dict.fromkeys(others, 0.0) for nfe in EVALUATIONS}
    for count, name in enumerate(names, 1):
        wanted: dict[str, list[int]] = {c: list(EVALUATIONS) for c in own}
        for nfe, scores in behind.items():
            for c in scores:
                if c in peers() or c in STAND_INS:
                    wanted.setdefault(c, []).append(nfe)
        print(f"{suite} {count}/{len(names)}: {name}, {sum(map(len, wanted.values()))} runs", flush=True)
        measure(name, wanted, each, redo)
        table = cells(name, {c for scores in behind.values() for c in scores})
        for nfe, scores in behind.items():
            found = {c: table[c].get(nfe) for c in scores}
            ahead = {c: scores[c] + math.log(max(v[1], 1e-300)) for c, v in found.items() if v is not None}
            leader = min(ahead.values(), default=0.0)
            slack = (len(names) - count) * math.log(CATCH_UP[suite])
            behind[nfe] = {c: v for c, v in ahead.items() if v - leader <= slack}


def _order(suite: str) -> list[str]:
    """Cheap networks first; laws in a random order, the same in every run."""
    names = list(SUITES[suite])
    return names if suite == "learned" else random.Random(0).sample(names, len(names))
