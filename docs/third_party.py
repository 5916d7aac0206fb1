"""Tables of the page on other libraries' samplers, from the committed ``reference/third_party.json``.

``python -m benchmarks.run response``, in the environment of ``make peers-env``, writes that file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "reference" / "third_party.json"
OURS = ("kernel-quadrature", "gaussian-split")


def read() -> dict[str, Any]:
    """The committed figures."""
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def _w2(entry: Any) -> float | None:
    return entry.get("w2") if isinstance(entry, dict) else entry


def _cell(value: float | None, best: float) -> str:
    if value is None:
        return ""
    text = f"{value:.3g}" if 1e-3 <= value < 1e3 else f"{value:.1e}"
    return f"**{text}**" if value == best else text


def section(found: dict[str, Any], evaluations: list[int]) -> str:
    """One table: the two defaults of this package and every peer."""
    columns = [str(n) for n in evaluations]
    ours = {name: [_w2(row[n]) for n in columns] for name, row in found["ours"].items()}
    rows = {f"{name} (ours)": ours[name] for name in OURS if name in ours}
    rows |= {name: [_w2(row[n]) for n in columns] for name, row in found["peers"].items()}
    best = [
        min((v for v in column if v is not None), default=0.0) for column in zip(*rows.values(), strict=True)
    ]
    middle = len(columns) // 2
    order = sorted(rows, key=lambda name: (rows[name][middle] is None, rows[name][middle] or 0.0))
    lines = ["| sampler | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for name in order:
        cells = [_cell(v, b) for v, b in zip(rows[name], best, strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def render(data: dict[str, Any]) -> str:
    """Every table of the page."""
    parts = []
    for family, found in data["sections"].items():
        parts.append(f"## {family}\n\n`{found['process']}`\n\n{section(found, data['evaluations'])}")
    refused = "\n".join(f"| {name} | {value:.2f} |" for name, value in data["refused"].items())
    parts.append(f"## Refused\n\n| sampler | residual |\n| --- | ---: |\n{refused}")
    versions = ", ".join(f"{name} {v}" for name, v in data["versions"].items())
    parts.append(f"Measured with {versions}.")
    return "\n\n".join(parts) + "\n"


def write(folder: Path) -> None:
    """Write the generated part of the page."""
    folder.mkdir(exist_ok=True)
    (folder / "third_party.md").write_text(render(read()))
