"""The table of mutants: which check kills each, and the survivors with the proof that they are equivalent.

Changes of no formula (the name of a register, the size of a block, one more point of a quadrature that is
exact already: ``formula = false`` in ``equivalent.toml``) are listed with their reason and not counted.
"""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tests.mutation.mutants import Mutant, Source
from tests.mutation.runner import Outcome
from tests.mutation.scope import MODULES, ROOT, check_of

__all__ = [
    "FILE",
    "compose",
    "counted",
    "markdown",
    "outside",
    "proofs",
    "proved",
    "read",
    "stale",
    "summary",
    "waiting",
]

FILE = ROOT / "docs" / "reference" / "mutations.json"
EQUIVALENT = Path(__file__).parent / "equivalent.toml"
#: The least part of the mutants, equivalent ones among them, that must be killed.
LEAST = 0.98

NUMBERS = ("mutants", "judged", "killed", "survive", "not judged")

Place = tuple[str, str, str, str, str, int]


def _place(source: Source, mutant: Mutant, seen: Counter[Any]) -> Place:
    """(module, text of the line, operator, before, after, occurrence): holds when other lines change."""
    place = (
        source.module.removeprefix("sdekit."),
        source.line(mutant),
        mutant.operator,
        mutant.before,
        mutant.after,
    )
    seen[place] += 1
    return (*place, seen[place])


@cache
def proofs(formula: bool = True, path: Path = EQUIVALENT) -> dict[Place, str]:
    """Place -> why the mutant computes the same; of the changes of no formula for ``formula=False``."""
    found: dict[Place, str] = {}
    for group in tomllib.loads(path.read_text()).get("equivalent", []):
        if group.get("formula", True) is not formula:
            continue
        for row in group["mutants"]:
            place: Any = (*row, 1) if len(row) == 5 else tuple(row)
            found[place] = group["proof"]
    return found


@cache
def places(source: Source) -> dict[str, Place]:
    """id -> place of every mutant of a module."""
    seen: Counter[Any] = Counter()
    return {mutant.id: _place(source, mutant, seen) for mutant in source.mutants}


def counted(source: Source) -> list[Mutant]:
    """The mutants of a module that change a formula."""
    where, aside = places(source), proofs(formula=False)
    return [mutant for mutant in source.mutants if where[mutant.id] not in aside]


@cache
def proved(source: Source) -> set[str]:
    """The ids of a module's mutants that are proved equivalent."""
    known = proofs()
    return {name for name, place in places(source).items() if place in known}


def _check(killer: str) -> str:
    return killer if killer in ("timeout", "crash", "import") else check_of(killer)[1]


def _row(source: Source, mutant: Mutant) -> dict[str, Any]:
    return {"line": source.line(mutant), "before": mutant.before, "after": mutant.after}


def compose(sources: Mapping[str, Source], outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """The table as JSON: module -> digest, killed (id -> test), survived and aside (id -> before, proof).

    Modules of which no mutant is judged are left out; see `waiting`.
    """
    known, none, modules = proofs(), proofs(formula=False), {}
    for name, source in sources.items():
        where = places(source)
        killed, survived, aside = {}, {}, {}
        for mutant in source.mutants:
            outcome = outcomes.get(mutant.id)
            short = mutant.id.partition(":")[2]
            if reason := none.get(where[mutant.id]):
                aside[short] = {**_row(source, mutant), "tests": 0, "proof": reason}
                continue
            if outcome is None:
                continue
            if outcome.killer:
                killed[short] = _check(outcome.killer)
            else:
                proof = known.get(where[mutant.id], "")
                survived[short] = {**_row(source, mutant), "tests": outcome.tests, "proof": proof}
        if not killed and not survived:
            continue
        modules[name.removeprefix("sdekit.")] = {
            "digest": source.digest,
            "mutants": len(source.mutants) - len(aside),
            "killed": killed,
            "survived": survived,
            "aside": aside,
        }
    return {"modules": modules}


def summary(data: dict[str, Any]) -> dict[str, int]:
    """Counts over all modules: mutants, judged, killed, survived, equivalent (proved), open (not)."""
    rows = data["modules"].values()
    survived = [found for row in rows for found in row["survived"].values()]
    killed = sum(len(row["killed"]) for row in rows)
    equivalent = sum(bool(found["proof"]) for found in survived)
    return {
        "mutants": sum(row["mutants"] for row in rows),
        "judged": killed + len(survived),
        "killed": killed,
        "survived": len(survived),
        "equivalent": equivalent,
        "open": len(survived) - equivalent,
    }


def stale(data: dict[str, Any]) -> list[str]:
    """Modules of the table whose source is another one now, and those that are out of scope now."""
    rows = data["modules"]
    return [
        name
        for name, row in rows.items()
        if f"sdekit.{name}" not in MODULES or row["digest"] != Source(f"sdekit.{name}").digest
    ]


def waiting(data: dict[str, Any]) -> list[str]:
    """Modules in scope of which no mutant is judged."""
    names = [module.removeprefix("sdekit.") for module in MODULES]
    return [name for name in names if name not in data["modules"]]


def outside() -> dict[str, list[str]]:
    """Package -> its modules that are not mutated."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "sdekit").rglob("*.py")):
        *package, name = path.relative_to(ROOT / "sdekit").with_suffix("").parts
        if name != "__init__" and ".".join(["sdekit", *package, name]) not in MODULES:
            found.setdefault(".".join(package), []).append(name)
    return found


def read() -> dict[str, Any]:
    """The committed table."""
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def _table(titles: list[str], rows: list[list[str]]) -> str:
    rule = ["---:" if title in NUMBERS else "---" for title in titles]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [titles, rule, *rows])


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


def markdown(data: dict[str, Any]) -> dict[str, str]:
    """The tables of the page: "total", "module", "outside", "change", "check", "survivors", "aside"."""
    total = summary(data)
    old, later = set(stale(data)), waiting(data)
    share = 100 * total["killed"] / total["judged"]
    other = 100 * total["killed"] / max(total["judged"] - total["equivalent"], 1)
    text = (
        f"{total['killed']} of the {total['judged']} mutants judged are killed: **{share:.1f} %**, "
        f"or {other:.1f} % of those that are not proved equivalent. {total['survived']} survive, "
        f"{total['equivalent']} of them with a proof."
    )
    if left := total["mutants"] - total["judged"]:
        text += f" {left} more mutants of these modules are not judged, or not since their function changed."
    if later:
        text += f" Of {len(later)} modules in scope no mutant is judged yet: {', '.join(map(_code, later))}."
    if old:
        text += f" {len(old)} modules have changed since this table was made; they are marked."
    rows = []
    made: Counter[str] = Counter()
    killed: Counter[str] = Counter()
    killed_by: Counter[str] = Counter()
    for name, row in data["modules"].items():
        checks = Counter(row["killed"].values())
        killed_by.update(checks)
        made.update(key.split(":")[2] for key in [*row["killed"], *row["survived"]])
        killed.update(key.split(":")[2] for key in row["killed"])
        most = ", ".join(f"{check} {n}" for check, n in checks.most_common(3))
        left = row["mutants"] - len(row["killed"]) - len(row["survived"])
        mark = " (changed since)" if name in old else ""
        rows.append(
            [
                _code(name) + mark,
                *map(str, (row["mutants"], len(row["killed"]), len(row["survived"]), left)),
                most,
            ]
        )
    return {
        "total": text,
        "module": _table(["module", "mutants", "killed", "survive", "not judged", "killed most by"], rows),
        "outside": _table(
            ["package", "modules"],
            [[_code(package or "sdekit"), ", ".join(names)] for package, names in outside().items()],
        ),
        "change": _table(
            ["change", "judged", "killed", "survive"],
            [[name, str(n), str(killed[name]), str(n - killed[name])] for name, n in made.most_common()],
        ),
        "check": _table(
            ["check", "mutants that it kills first"], [[name, str(n)] for name, n in killed_by.most_common()]
        ),
        "survivors": _listed(data, "survived"),
        "aside": _listed(data, "aside"),
    }


def _listed(data: dict[str, Any], part: str) -> str:
    """Every mutant of a part, "survived" or "aside", grouped by proof."""
    groups: dict[str, list[list[str]]] = {}
    for name, row in data["modules"].items():
        for key, found in row[part].items():
            proof = found["proof"] or f"No proof; {found['tests']} tests run this line."
            change = f"{_code(found['before'])} to {_code(found['after'])}"
            groups.setdefault(proof, []).append(
                [f"{_code(name)} {key.split(':')[0]}", _code(found["line"]), change]
            )
    titles = ["where", "line", "change"]
    return "\n\n".join(f"{proof}\n\n{_table(titles, rows)}" for proof, rows in groups.items())
