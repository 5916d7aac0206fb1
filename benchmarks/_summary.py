"""All committed ratios in one table and one picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "collect", "draw", "margin", "markdown", "met", "record", "report"]

RESULTS = Path(__file__).parent / "results"
PICTURE = RESULTS / "summary.png"


def collect(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """A row for each ratio in the results: its figure, "benchmark", "ratio", "date", "machine"."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        result, stamp = record["result"], record["stamp"]
        found = result.get("ratios", {}) if isinstance(result, dict) else {}
        machine = (
            stamp.get("gpu") if path.stem == "gpu" else f"{stamp['cores']} cores of {stamp['processor']}"
        )
        for name, figure in found.items():
            row = {"benchmark": path.stem, "ratio": name, **figure}
            rows.append(row | {"date": stamp["date"], "machine": machine})
    return rows


def record(name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """The committed record of a benchmark, {"stamp", "seconds", "result"}; None where there is none."""
    path = folder / f"{name}.json"
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found


def report(name: str, folder: Path = RESULTS) -> str:
    """Markdown: where, when and under which load a benchmark ran, and its ratios."""
    found = record(name, folder)
    if found is None:
        return f"Not measured yet: there is no `benchmarks/results/{name}.json`."
    stamp = found["stamp"]
    what = stamp["gpu"] if name == "gpu" else f"{stamp['cores']} cores of {stamp['processor']}"
    load = f", load {stamp['load'][0]} at the start" if stamp.get("load") else ""
    where = f"{what}, torch {stamp['torch']}, numba {stamp['numba']}, {stamp['date']}{load}."
    figures = [{"ratio": k, **v} for k, v in found["result"].get("ratios", {}).items()]
    absent = "".join(f"\n\nAbsent: {k}, {v}." for k, v in found["result"].get("absent", {}).items())
    return f"{where}\n\n{markdown(figures)}{absent}"


def margin(row: Mapping[str, Any]) -> float:
    """How many times better than wanted: 1 is just met."""
    ratio = row["median"] / row["wanted"]
    return float(ratio if row["better"] == "higher" else 1.0 / ratio)


def met(row: Mapping[str, Any]) -> bool:
    """Whether the median reaches what is wanted."""
    return margin(row) >= 1.0


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table: the ratio, its quartiles, what is wanted, whether it is met."""
    lines = ["| figure | median | quartiles | wanted | |", "|---|---:|---:|---:|---|"]
    for row in rows:
        wanted, verdict = "", ""
        if row["wanted"] is not None:
            sign = "≥" if row["better"] == "higher" else "≤"
            wanted, verdict = f"{sign} {row['wanted']:g}", "met" if met(row) else "**not met**"
        spread = "" if row["low"] == row["high"] else f"{row['low']:.3g} to {row['high']:.3g}"
        lines.append(f"| {row['ratio']} | {row['median']:.3g} | {spread} | {wanted} | {verdict} |")
    return "\n".join(lines)


def draw(rows: Sequence[Mapping[str, Any]], path: Path = PICTURE) -> None:
    """Every figure of which something is wanted, in units of it, quartiles as bars; right of 1 is met."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    gated = [row for row in rows if row["wanted"] is not None]
    names = list(dict.fromkeys(row["benchmark"] for row in gated))
    fig, ax = plt.subplots(figsize=(9, 1.2 + 0.2 * len(gated)))
    for k, row in enumerate(gated):
        ends = sorted(margin(row | {"median": row[end]}) for end in ("low", "high"))
        color = f"C{names.index(row['benchmark']) % 10}"
        ax.plot(ends, [k, k], color=color, linewidth=3, alpha=0.5)
        ax.plot(margin(row), k, "o", color=color, markersize=4)
    ax.axvline(1.0, color="black", linewidth=0.8)
    ax.set_xscale("log")
    ax.set_yticks(range(len(gated)), [f"{row['benchmark']}: {row['ratio']}" for row in gated], fontsize=6)
    ax.set_ylim(len(gated), -1)
    ax.set_xlabel("times what is wanted (right of the line: met)")
    ax.grid(axis="x", alpha=0.3)
    fig.tight_layout()
    fig.savefig(path, dpi=90, bbox_inches="tight")
    plt.close(fig)
