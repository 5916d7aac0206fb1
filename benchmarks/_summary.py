"""All committed ratios in one table and one picture."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "absences", "collect", "draw", "kind", "margin", "markdown", "met", "record", "report"]

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
    """Markdown: the command, where, when and under which load a benchmark ran, and its ratios."""
    found = record(name, folder)
    if found is None:
        return f"Not measured yet: there is no `benchmarks/results/{name}.json`."
    stamp = found["stamp"]
    what = stamp["gpu"] if name == "gpu" else f"{stamp['cores']} cores of {stamp['processor']}"
    load = f", load {stamp['load'][0]} at the start" if stamp.get("load") else ""
    where = f"{what}, torch {stamp['torch']}, numba {stamp['numba']}, {stamp['date']}{load}."
    figures = [{"ratio": k, **v} for k, v in found["result"].get("ratios", {}).items()]
    absent = "".join(f"\n\nAbsent: {line}." for line in absences(found["result"]))
    command = f"`python -m benchmarks.run {name}`, {found['seconds']:.0f} s on"
    table = markdown(figures) if figures else ""
    return f"{command} {where}\n\n{table}{absent}"


def absences(result: Mapping[str, Any]) -> list[str]:
    """What a result says is absent, {beginning of names: reason} or one reason, a line for each."""
    absent = result.get("absent", {})
    return [absent] if isinstance(absent, str) else [f"{what}, {why}" for what, why in absent.items()]


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


KINDS = (
    r".* \d+x\d+: (?P<kind>.*)",
    r"(?P<kind>(?:fill|overhead) \S+) .*",
    r"(?P<kind>bound|noisy) .*",
    r"(?:\d+ )?(?P<kind>.*), error .*",
    r"(?P<kind>.*?): .*",
    r"(?P<kind>.*)",
)
"""How the figures of one kind are told by their names; the first that fits."""


def kind(row: Mapping[str, Any]) -> str:
    """What a figure has in common with others of its benchmark: "ou 10000x200: C" is of the kind "C"."""
    found = next(match for pattern in KINDS if (match := re.fullmatch(pattern, row["ratio"])))
    return f"{row['benchmark']}: {found['kind']}"


def draw(rows: Sequence[Mapping[str, Any]], path: Path = PICTURE) -> None:
    """Every figure of which something is wanted, in units of it, a line for each kind of figures.

    A dot is a figure, with its quartiles as a bar; right of 1 it is met. Where one is not, the line names the
    worst. No picture where nothing is wanted.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["wanted"] is not None:
            lines.setdefault(kind(row), []).append(row)
    if not lines:
        return
    fig, ax = plt.subplots(figsize=(9, 1.4 + 0.3 * len(lines)))
    for k, (name, own) in enumerate(lines.items()):
        for j, row in enumerate(own):
            y = k + (0.5 * j / (len(own) - 1) - 0.25 if len(own) > 1 else 0.0)
            color = "tab:blue" if met(row) else "tab:red"
            ax.plot([margin(row | {"median": row[end]}) for end in ("low", "high")], [y, y], color, alpha=0.4)
            ax.plot(margin(row), y, "o", color=color, markersize=3)
        worst = min(own, key=margin)
        ax.axhline(k + 0.5, color="0.9", linewidth=0.5)
        if not met(worst):
            text = f"{worst['ratio']} " if worst["ratio"] != name.partition(": ")[2] else ""
            ax.text(1.02, k, f"{text}{margin(worst):.2f}", transform=ax.get_yaxis_transform(), fontsize=7,
                    color="tab:red", va="center")  # fmt: skip
    ax.axvline(1.0, color="black", linewidth=0.8)
    ax.set_xscale("log")
    ticks = [0.5, 0.7, 1, 1.5, 2, 3, 5, 10]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    counted = [f"{name} ({len(own)})" if len(own) > 1 else name for name, own in lines.items()]
    ax.set_yticks(range(len(lines)), counted, fontsize=8)
    ax.set_ylim(len(lines) - 0.5, -0.5)
    ax.set_xlabel("times what is wanted; right of the line it is met", fontsize=9)
    ax.grid(axis="x", alpha=0.3)
    fig.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(fig)
