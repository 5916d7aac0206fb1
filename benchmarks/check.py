"""python -m benchmarks.check [names]: today's ratios against the committed ones.

The exit status is 1 where one is lost.

A benchmark may define `quick()`, a cheap part of its `run()` that returns {"ratios": {name: figure}}, a
figure being that of `benchmarks._timing.spread`. It is run again, and each figure compared with that of the
same name in benchmarks/results/NAME.json. `QUICK` names the part: beginnings of the names that `quick`
measures, all by default.

The rule. A figure of which more is better is lost where

    today's upper quartile < (1 - 0.2) * the committed lower quartile,

one of which less is better where

    today's lower quartile > (1 + 0.2) * the committed upper quartile:

a change of 20 % beyond both spreads. So a busy machine, which widens today's quartiles, fails nothing that it
cannot tell apart, and a loss that stands out of both spreads is found. Ratios are those of one run, so
they carry from one machine to another better than times do; another processor may still need its own.

A ratio of the part that was committed and is not measured today fails, unless today's run says what is
absent: {"absent": {beginning of names: reason}}, or {"absent": reason} for all. So does a benchmark that
raises; the others go on. A benchmark without `quick()`, or without a committed result, is named.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.run import RESULTS, chosen, discover, minutes, render

__all__ = ["LOSS", "Figures", "compare", "main"]

LOSS = 0.2
Figures = Mapping[str, Mapping[str, Any]]


def lost(committed: Mapping[str, Any], today: Mapping[str, Any]) -> bool:
    """Whether a figure is worse by more than `LOSS` beyond both spreads."""
    if committed["better"] == "higher":
        return bool(today["high"] < (1.0 - LOSS) * committed["low"])
    return bool(today["low"] > (1.0 + LOSS) * committed["high"])


def _absent(name: str, absent: Mapping[str, str]) -> str | None:
    return next((why for start, why in absent.items() if name.startswith(start)), None)


def compare(
    committed: Figures, today: Figures, names: Sequence[str], absent: Mapping[str, str]
) -> list[dict[str, Any]]:
    """A row for each of `names`, with "verdict": "ok", "LOST", "MISSING", "NEW", or "absent: why"."""
    rows = []
    for name in names:
        old, new, why = committed.get(name), today.get(name), _absent(name, absent)
        if new is None:
            verdict = f"absent: {why}" if why else "MISSING"
        elif old is None:
            verdict = "NEW"
        else:
            verdict = "LOST" if lost(old, new) else "ok"
        row = {"ratio": name, "committed": _text(old), "today": _text(new)}
        row["better"] = (old or new or {}).get("better", "")
        rows.append(row | {"verdict": verdict})
    return rows


def _text(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return ""
    low, median, high = (f"{figure[k]:.3g}" for k in ("low", "median", "high"))
    return median if low == high else f"{median} ({low} to {high})"


def failed(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the rows that fail the check."""
    return [row["ratio"] for row in rows if row["verdict"] in ("LOST", "MISSING")]


def check(name: str, folder: Path = RESULTS) -> list[dict[str, Any]] | str:
    """The rows of one benchmark; why there are none, where it has no `quick`, or nothing is committed."""
    try:
        module = importlib.import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] in ("sdekit", "benchmarks"):
            raise
        return f"absent: {error.name} is not installed"
    file = folder / f"{name}.json"
    if not hasattr(module, "quick"):
        return "no quick part"
    if not file.exists():
        return "nothing committed"
    committed = json.loads(file.read_text())["result"].get("ratios", {})
    today = module.quick()
    found, absent = today.get("ratios", {}), today.get("absent", {})
    part = tuple(getattr(module, "QUICK", ("",)))
    names = dict.fromkeys([n for n in committed if n.startswith(part)] + list(found))
    if not names and isinstance(absent, str):
        return f"absent: {absent}"
    return compare(committed, found, list(names), {"": absent} if isinstance(absent, str) else absent)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0 where nothing is lost."""
    known = discover()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.check", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(known)}; all by default")
    bad: list[str] = []
    for name in chosen(parser, parser.parse_args(arguments).names, known):
        start = time.perf_counter()
        try:
            rows = check(name)
        except Exception as error:
            traceback.print_exc()
            rows = f"FAILED: {type(error).__name__}: {error}"
            bad.append(f"{name}, which failed")
        if isinstance(rows, str):
            print(f"\n## {name}: {rows}", flush=True)
            continue
        print(f"\n## {name}, {minutes(time.perf_counter() - start)}\n{render(rows)}", flush=True)
        bad += [f"{name}: {ratio}" for ratio in failed(rows)]
    print("\nLost: " + "; ".join(bad) if bad else "\nNothing lost.")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
