"""Tables of the reference pages, generated from the registries and the league file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Set
from functools import cache
from pathlib import Path
from typing import Any

import sdekit as sk
from sdekit.samplers.registry import SAMPLERS

__all__ = [
    "bibliography",
    "citations",
    "league_tables",
    "sampler_classes",
    "samplers",
    "solver_classes",
    "solvers",
    "write",
]

HERE = Path(__file__).parent


@cache
def bibliography() -> dict[str, tuple[str, ...]]:
    """Short form -> keys, for every entry of references.bib ("Anderson 1982" -> "anderson1982")."""
    text = (HERE / "references.bib").read_text()
    forms: dict[str, tuple[str, ...]] = {}
    for entry in re.split(r"^@", text, flags=re.MULTILINE)[1:]:
        key = entry[entry.index("{") + 1 : entry.index(",")]
        cited = re.search(r"cited = \{(.*)\}", entry)
        for form in cited[1].split(";") if cited is not None else []:
            forms[form.strip()] = (*forms.get(form.strip(), ()), key)
    return forms


def citations(reference: str) -> tuple[list[str], str]:
    """(keys of the works that a reference names, what is left of it without their short forms)."""
    keys: list[str] = []
    for form in sorted(bibliography(), key=len, reverse=True):
        if form in reference:
            keys += bibliography()[form]
            reference = reference.replace(form, "")
    return list(dict.fromkeys(keys)), reference


def _cited(reference: str) -> str:
    keys, _ = citations(reference)
    return reference + (f" {{cite:p}}`{','.join(keys)}`" if keys else "")


def _table(titles: list[str], rows: list[list[str]], right: Set[int] = frozenset()) -> str:
    rule = ["---:" if k in right else "---" for k in range(len(titles))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [titles, rule, *rows])


def samplers() -> str:
    """Every sampler: name, order, noise, evaluations a step, grid, reference."""
    rows = []
    for row in sk.samplers():
        package = "samplers" if row.name in SAMPLERS else "solvers"
        rows.append(
            [
                f"{{py:obj}}`{row.name} <sdekit.{package}.{row.cls}>`",
                str(row.order),
                "yes" if row.stochastic else "",
                str(row.evaluations),
                "" if row.grid == "-" else f"`{row.grid}`",
                _cited(row.reference),
            ]
        )
    return _table(["name", "order", "noise", "evaluations a step", "grid", "reference"], rows, {1, 3})


def sampler_classes() -> str:
    """Autodoc of every sampler class of the registry."""
    return _classes(f"sdekit.samplers.{cls.__name__}" for cls in SAMPLERS.values())


def solver_classes() -> str:
    """Autodoc of every solver class of the registry."""
    return _classes(f"sdekit.solvers.{row.cls}" for row in sk.solvers())


def _classes(paths: Iterable[str]) -> str:
    body = "\n\n".join(f".. autoclass:: {path}" for path in dict.fromkeys(paths))
    return f"```{{eval-rst}}\n{body}\n```"


def solvers() -> str:
    """Every solver: name, what it solves, order, step control, reference."""
    rows = [
        [
            f"{{py:obj}}`{row.name} <sdekit.solvers.{row.cls}>`",
            row.solves,
            row.order,
            "yes" if row.adaptive else "",
            _cited(row.reference),
        ]
        for row in sk.solvers()
    ]
    return _table(["name", "solves", "order", "adaptive", "reference"], rows)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "overflow"
    if value == 0 or 1e-3 <= value < 1e3:
        return f"{value:.3g}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def _league_table(rows: dict[str, list[float | None]], evaluations: list[int], at: int) -> str:
    """Samplers by their value in column ``at``; those without one last. The best of a column is bold."""

    def key(item: tuple[str, list[float | None]]) -> float:
        value = item[1][at]
        return math.inf if value is None else value

    columns = zip(*rows.values(), strict=True)
    best = [min((v for v in column if v is not None), default=None) for column in columns]
    body = []
    for name, values in sorted(rows.items(), key=key):
        cells = ["" if v is None else _number(v) for v in values]
        cells = [f"**{c}**" if v == b and c else c for c, v, b in zip(cells, values, best, strict=True)]
        body.append([f"`{name}`", "yes" if SAMPLERS[name].stochastic else "", *cells])
    titles = ["sampler", "noise", *(str(n) for n in evaluations)]
    return _table(titles, body, set(range(2, len(titles))))


def league_tables(data: dict[str, Any]) -> str:
    """The geometric mean over all cases, then one table a case, sorted by W2 at 10 evaluations."""
    evaluations: list[int] = data["evaluations"]
    at = evaluations.index(10)
    cases = {
        case: {
            name: [None if row[str(n)] is None else row[str(n)]["w2"] for n in evaluations]
            for name, row in found["samplers"].items()
        }
        for case, found in data["cases"].items()
    }
    names = next(iter(cases.values()))
    mean = {
        name: [_geometric([rows[name][k] for rows in cases.values()]) for k in range(len(evaluations))]
        for name in names
    }
    parts = ["## All cases: geometric mean", _league_table(mean, evaluations, at)]
    for case, rows in cases.items():
        prior = data["cases"][case]["prior"]
        start = (
            f"Starting at the prior instead of the true marginal adds {_number(prior)}."
            if prior
            else ("The prior is the true marginal at $t_\\mathrm{max}$.")
        )
        process, _, power = case.partition(", k^")
        parts += [f"## {process}, spectrum $k^{{{power}}}$", start, _league_table(rows, evaluations, at)]
    return "\n\n".join(parts)


def _geometric(values: list[float | None]) -> float | None:
    """None where a case is missing."""
    if any(value is None for value in values):
        return None
    return math.exp(sum(math.log(value) for value in values if value is not None) / len(values))


def write(folder: Path, data: dict[str, Any]) -> None:
    """All tables, as files that pages include."""
    folder.mkdir(exist_ok=True)
    for name, text in {
        "samplers": samplers(),
        "sampler_classes": sampler_classes(),
        "solvers": solvers(),
        "solver_classes": solver_classes(),
        "league": league_tables(data),
    }.items():
        (folder / f"{name}.md").write_text(text + "\n")
