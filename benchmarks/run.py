"""python -m benchmarks.run [names]: every module here that has a `run()`, or those named.

Writes benchmarks/results/NAME.json, {"stamp": machine, versions, date, "seconds", "result": run()}, prints
the result (its "table", a list of rows, where it has one; else everything), and draws all ratios in
benchmarks/results/summary.png. A benchmark that needs what is not here, and so raises
ModuleNotFoundError or returns {"absent": reason}, is reported as absent; a committed result stays.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import _summary
from benchmarks._summary import RESULTS
from benchmarks._timing import stamp

HERE = Path(__file__).parent


def discover() -> list[str]:
    """Names of the modules beside this one that define `run`, without importing them."""

    def runs(path: Path) -> bool:
        body = ast.parse(path.read_text()).body
        return any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in body)

    return sorted(p.stem for p in HERE.glob("*.py") if p.stem != "run" and p.stem[0] != "_" and runs(p))


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


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    known = discover()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(known)}; all by default")
    names = parser.parse_args(arguments).names or known
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"no benchmark named {', '.join(unknown)}; there are {', '.join(known)}")
    RESULTS.mkdir(exist_ok=True)
    for name in names:
        print(f"\n## {name}", flush=True)
        where, start = stamp(), time.perf_counter()
        result = measured(name)
        if set(result) == {"absent"}:
            print(f"absent: {result['absent']}")
            continue
        record = {"stamp": where, "seconds": round(time.perf_counter() - start, 1), "result": result}
        (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
        if "table" in result:
            print(render(result["table"]))
            rest = {k: v for k, v in result.items() if k not in ("table", "cases", "ratios")}
            print("\n".join(f"{key}: {json.dumps(value)}" for key, value in rest.items()))
        else:
            print(json.dumps(result, indent=1))
        if "ratios" in result:
            print(_summary.markdown([{"ratio": k, **v} for k, v in result["ratios"].items()]))
        print(
            f"{record['seconds']} s on {where['processor']}, {where['cores']} cores, torch {where['torch']}"
        )
    draw()


def measured(name: str) -> dict[str, Any]:
    """The result of one benchmark, {"absent": reason} where it needs a package that is not here."""
    try:
        result: dict[str, Any] = importlib.import_module(f"benchmarks.{name}").run()
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] in ("sdekit", "benchmarks"):
            raise
        return {"absent": f"{error.name} is not installed"}
    return result


def draw() -> None:
    """All ratios in a picture, where matplotlib is installed."""
    try:
        _summary.draw(_summary.collect())
    except ModuleNotFoundError as error:
        print(f"no picture: {error.name} is not installed")


if __name__ == "__main__":
    main()
