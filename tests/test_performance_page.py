"""The performance page reads what is committed: its cells run, no benchmark is left out, nothing is typed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import _summary
from benchmarks import run as bench

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "performance.md"
TEXT = PAGE.read_text()
CELLS = re.findall(r"```\{code-cell\}[^\n]*\n(.*?)```", TEXT, flags=re.DOTALL)
PLACES = set(re.findall(r'_summary\.report\("(\w+)"\)', TEXT))
PROSE = re.sub(r"```.*?```|`[^`]*`|\$[^$]*\$|\{\w+:?\w*\}`[^`]*`|\([^)]*\.md\)", "", TEXT, flags=re.DOTALL)


def test_cells_run_and_show_what_is_committed():
    pytest.importorskip("IPython")
    space: dict = {}
    shown = []
    for cell in CELLS:
        *body, last = re.sub(r"^:tags:.*\n", "", cell).strip().split("\n")
        exec("\n".join(body), space)
        shown.append(eval(last, space))
    text = "\n".join(out.data for out in shown if isinstance(out.data, str))
    for row in _summary.collect():
        assert f"| {row['ratio']} | {row['median']:.3g} |" in text, row
    for name in PLACES:
        found = _summary.record(name)
        line = (
            f"`python -m benchmarks.run {name}`, {found['seconds']:.0f} s on" if found else "Not measured yet"
        )
        assert line in text, name


def test_every_benchmark_has_its_place():
    """Learned models of images have no ratios and a page of their own."""
    assert set(bench.discover()) - {"learning"} == PLACES
    assert "ratios" not in _summary.record("learning")["result"]


def test_no_measured_figure_is_typed():
    """No decimal, percentage or time in the prose but the slice of the timings and one example of a ratio."""
    assert re.findall(r"\d+\.\d+|\d+(?:\.\d+)? ?%", PROSE) == ["0.5"]
    assert re.findall(r"\d[\d.,]* ?(?:us|ns|ms|min|minutes|hours?)\b", PROSE) == ["20 ms"]


def test_the_suite_is_listed_in_the_order_in_which_it_runs(tmp_path, capsys):
    record = {"seconds": 90.0, "kept": {"cells": 3, "learning": 2}, "result": {}}
    for name in ("noise", "accuracy"):
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    rows = {row["benchmark"]: row for row in bench.suite(tmp_path)}
    assert list(rows) == bench.discover() == sorted(rows)
    assert rows["noise"]["minutes"] == "1.5"
    assert (rows["accuracy"]["kept before"], rows["noise"]["kept before"]) == ("3 cells", "")
    assert rows["noise"]["what"].startswith("Normal numbers a second")
    assert rows["steps"]["minutes"] == rows["steps"]["kept before"] == ""
    for name, row in rows.items():
        assert bool(row["quick part"]) == ("\ndef quick(" in (bench.HERE / f"{name}.py").read_text()), name
    assert rows["noise"]["quick part"] == "yes"
    assert bench.main(["--list", "--folder", str(tmp_path)]) == 0
    assert "| noise " in capsys.readouterr().out
