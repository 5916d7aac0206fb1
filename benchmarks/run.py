"""python -m benchmarks.run [names] [--folder FOLDER]: every module here that has a `run()`, or those named.

One after another, in the order of their names. Each writes NAME.json, {"stamp": machine, versions, date,
"seconds", "kept": what benchmarks/.cache held before, "result": run()}, as soon as it is done, and prints
its table and its ratios; all ratios are drawn in summary.png at the end. FOLDER is benchmarks/results.

A benchmark that needs what is not here, and so raises ModuleNotFoundError or returns {"absent": reason}, is
reported as absent; a committed result stays. One that fails is reported with its traceback, its committed
result stays, the others go on, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import _cache, _summary
from benchmarks._summary import RESULTS
from benchmarks._timing import stamp

HERE = Path(__file__).parent


def functions(path: Path) -> list[str]:
    """Names of the functions that a module defines, without importing it."""
    return [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]


#: Benchmark -> folders of benchmarks/.cache that shorten it.
KEPT = {
    "accuracy": ("networks", "exact", "cells"),
    "calibrated": ("networks", "exact", "cells", "calibrated"),
    "learning": ("learning",),
}


def discover() -> list[str]:
    """Names of the modules beside this one that define `run`, in the order in which they run."""
    paths = [p for p in HERE.glob("*.py") if p.stem != "run" and p.stem[0] != "_"]
    return sorted(p.stem for p in paths if "run" in functions(p))


def suite(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """A row for each benchmark in order: what it measures, the minutes of its result, what was kept before.

    "kept": files of benchmarks/.cache that were there, which shorten a run; "quick part": whether
    `benchmarks.check` measures a part of it.
    """
    rows = []
    for name in discover():
        path, record = HERE / f"{name}.py", _summary.record(name, folder)
        what = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        used = KEPT.get(name, ())
        kept = {which: n for which, n in (record or {}).get("kept", {}).items() if which in used}
        rows.append(
            {
                "benchmark": name,
                "what": what,
                "minutes": f"{record['seconds'] / 60:.1f}" if record else "",
                "kept before": ", ".join(f"{count} {which}" for which, count in kept.items()),
                "quick part": "yes" if "quick" in functions(path) else "",
            }
        )
    return rows


def chosen(parser: argparse.ArgumentParser, names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names given, all known ones by default; an unknown one ends the program."""
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"no benchmark named {', '.join(unknown)}; there are {', '.join(known)}")
    return list(names) or list(known)


def render(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table; the columns are the keys of all rows in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_cell(row.get(c, "")) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def minutes(seconds: float) -> str:
    """As "3.4 min"."""
    return f"{seconds / 60:.1f} min"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0 where no benchmark failed."""
    known = discover()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(known)}; all by default")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where results are written")
    parser.add_argument("--list", action="store_true", help="the benchmarks in order, with measured minutes")
    given = parser.parse_args(arguments)
    if given.list:
        print(render(suite(given.folder)))
        return 0
    names, folder = chosen(parser, given.names, known), given.folder
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    absent: dict[str, str] = {}
    failed: dict[str, str] = {}
    for count, name in enumerate(names, 1):
        spent = time.perf_counter() - begun
        print(f"\n## {name} ({count} of {len(names)}, {minutes(spent)} so far)", flush=True)
        where, kept, start = stamp(), _cache.census(), time.perf_counter()
        try:
            result = measured(name, folder)
        except Exception as error:
            traceback.print_exc()
            failed[name] = f"{type(error).__name__}: {error}"
            print(f"FAILED: {failed[name]}", flush=True)
            continue
        if set(result) == {"absent"}:
            absent[name] = result["absent"]
            print(f"absent: {result['absent']}", flush=True)
            continue
        record = {
            "stamp": where,
            "seconds": round(time.perf_counter() - start, 1),
            "kept": kept,
            "result": result,
        }
        _cache.write_json(folder / f"{name}.json", record)
        show(record)
    draw(folder)
    print(f"\n{len(names)} benchmarks in {minutes(time.perf_counter() - begun)}.")
    for what, rows in (("Absent", absent), ("FAILED", failed)):
        for name, why in rows.items():
            print(f"{what}: {name}, {why}")
    return 1 if failed else 0


def show(record: dict[str, Any]) -> None:
    """Print a record: its table, or else everything, then its ratios and what is absent."""
    where, result = record["stamp"], record["result"]
    if "table" in result:
        print(render(result["table"]))
        rest = {k: v for k, v in result.items() if k not in ("table", "cases", "ratios", "absent")}
        print("\n".join(f"{key}: {json.dumps(value)}" for key, value in rest.items()))
    else:
        print(json.dumps({k: v for k, v in result.items() if k not in ("ratios", "absent")}, indent=1))
    if "ratios" in result:
        print(_summary.markdown([{"ratio": k, **v} for k, v in result["ratios"].items()]))
    for line in _summary.absences(result):
        print(f"absent: {line}")
    machine = f"{where['processor']}, {where['cores']} cores, torch {where['torch']}"
    print(f"{record['seconds']} s on {machine}", flush=True)


def measured(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """The result of one benchmark, {"absent": reason} where it needs a package that is not here.

    Its further files, PICTURE and FILE, are written beside its result where ``folder`` is not the default.
    """
    try:
        module = importlib.import_module(f"benchmarks.{name}")
        for file in ("PICTURE", "FILE"):
            if hasattr(module, file) and folder != RESULTS:
                setattr(module, file, folder / getattr(module, file).name)
        result: dict[str, Any] = module.run()
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] in ("sdekit", "benchmarks"):
            raise
        return {"absent": f"{error.name} is not installed"}
    return result


def draw(folder: Path = RESULTS) -> None:
    """All ratios in a picture, where matplotlib is installed."""
    try:
        _summary.draw(_summary.collect(folder), folder / _summary.PICTURE.name)
    except ModuleNotFoundError as error:
        print(f"no picture: {error.name} is not installed")


if __name__ == "__main__":
    sys.exit(main())
