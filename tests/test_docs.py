"""The reference pages cover what the package has; their tables and citations are complete. No build."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

import sdekit as sk
from docs import docstrings, league, tables
from sdekit.samplers.registry import SAMPLERS

DOCS = Path(__file__).parent.parent / "docs"
PAGES = {path.name: path.read_text() for path in (DOCS / "reference").glob("*.md")}


def cells(table: str, column: int) -> list[str]:
    """One column of a markdown table, without markup."""
    rows = [line for line in table.splitlines() if line.startswith("|")]
    found = (row.split("|")[column + 1].strip() for row in rows[2:])
    return [re.sub(r"\{py:obj\}`(.*) <.*>`", r"\1", cell).strip("`*") for cell in found]


def test_the_configuration_loads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MATPLOTLIBRC", "")
    monkeypatch.syspath_prepend(str(DOCS.parent))
    conf = runpy.run_path(str(DOCS / "conf.py"))
    assert conf["release"] == sk.__version__
    assert {"myst_nb", "sphinxcontrib.bibtex"} <= set(conf["extensions"])
    assert all((DOCS / file).is_file() for file in conf["bibtex_bibfiles"])
    resolve = conf["_documented"]
    assert resolve("Plan") == resolve("sdekit.Plan") == "sdekit.Plan"
    assert resolve("sdekit.samplers()") == "sdekit.samplers"
    assert resolve("losses") == "sdekit.matching.losses"
    assert resolve("KernelQuadrature") == "sdekit.samplers.KernelQuadrature"
    assert resolve("x_init") is None


@pytest.mark.parametrize("name", sk.__all__)
def test_every_public_name_is_on_a_reference_page(name):
    named = rf"(auto\w+:: |`)sdekit\.{name}(?![\w.])"
    assert any(re.search(named, text) for text in PAGES.values()), (
        f"sdekit.{name} is on no page of docs/reference"
    )


def test_every_sampler_and_solver_is_in_its_table():
    assert cells(tables.samplers(), 0) == [row.name for row in sk.samplers()]
    assert cells(tables.solvers(), 0) == [row.name for row in sk.solvers()]
    for name, cls in SAMPLERS.items():
        assert f".. autoclass:: sdekit.samplers.{cls.__name__}\n" in tables.sampler_classes(), name
        assert getattr(sk.samplers, cls.__name__) is cls


@pytest.mark.parametrize("row", [*sk.samplers(), *sk.solvers()], ids=lambda row: row.name)
def test_every_work_that_a_reference_names_is_in_the_bibliography(row):
    _, rest = tables.citations(row.reference)
    years = re.findall(r"[^;]*\b(?:17|18|19|20)\d\d\b", rest)
    assert not years, f"{years} of {row.reference!r} is not in docs/references.bib (field cited)"


def test_citations_prefer_the_longest_form():
    assert tables.citations("Lu et al. 2022 (DPM-Solver++), algorithm 2")[0] == ["lu2022dpmpp"]
    assert tables.citations("step of Song et al. 2021 (DDIM)")[0] == ["song2021ddim"]
    assert tables.citations("Nobody 2022") == ([], "Nobody 2022")


def test_pages_cite_works_that_are_there():
    keys = {key for form in tables.bibliography().values() for key in form}
    for path in DOCS.glob("[!_]*/*.md"):
        for cited in re.findall(r"\{cite:[pt]\}`([^`]+)`", path.read_text()):
            assert set(cited.split(",")) <= keys, f"{path.name} cites {cited}"


# -- league ---------------------------------------------------------------------------------------------


def test_the_league_table_has_every_affine_sampler():
    for case, found in league.read()["cases"].items():
        assert list(found["samplers"]) == league.affine(), f"{case}: run make league"


@pytest.mark.parametrize("name", ["ddim", "kernel-quadrature", "ancestral"])
def test_the_league_file_is_what_the_samplers_give(name):
    cases = league.read()["cases"]
    for process, power in zip(league.PROCESSES, (1, 2, 1, 2), strict=True):
        stored = cases[f"{type(process).__name__}, k^-{power}"]["samplers"][name]["10"]
        assert not league.differences(stored, league.entry(name, power, process, 10)), "run make league"


def test_league_targets_are_as_described():
    for power in league.POWERS:
        values = league.target(power).eigenvalues.sort(descending=True).values
        assert float(values.mean()) == pytest.approx(0.25)
        assert float(values[0] / values[7]) == pytest.approx(8.0**power)


def test_differences_are_found():
    a = {"x": {"w2": 1.0, "nfe": 10}, "y": None}
    assert league.differences(a, json.loads(json.dumps(a))) == []
    assert league.differences(a, {"x": {"w2": 1.0 + 1e-9, "nfe": 10}, "y": None}) == []
    assert league.differences(a, {"x": {"w2": 1.01, "nfe": 10}, "y": None}) == ["x: w2: 1 and 1.01"]
    assert league.differences(a, {"x": {"w2": 1.0, "nfe": 9}, "y": None}) == ["x: nfe: 10 and 9"]
    assert league.differences(a, {"x": a["x"]}) == ["y: only in one of them"]
    assert league.differences(a, {"x": a["x"], "y": a["x"]}) != []


def test_league_tables_are_sorted_and_the_best_is_bold():
    def case(values):
        return {"prior": 0.5, "samplers": {n: {"5": None, "10": {"w2": v}} for n, v in values.items()}}

    data = {
        "evaluations": [5, 10],
        "cases": {
            "VP, k^-1": case({"ddim": 0.04, "heun": 0.01}),
            "VE, k^-1": case({"ddim": 0.01, "heun": 0.04}),
            "EDM, k^-2": case({"ddim": 0.08, "heun": 0.01}),
        },
    }
    mean, vp, ve, edm = (part[part.index("|") :] for part in tables.league_tables(data).split("## ")[1:])
    assert cells(mean, 0) == ["heun", "ddim"]
    assert cells(mean, 3) == ["0.0159", "0.0317"]
    assert cells(mean, 2) == ["", ""]
    assert cells(vp, 0) == ["heun", "ddim"]
    assert cells(ve, 0) == ["ddim", "heun"]
    assert "**0.01**" in ve.splitlines()[2]
    assert "**" not in ve.splitlines()[3]
    assert cells(edm, 3) == ["0.01", "0.08"]


# -- docstrings -----------------------------------------------------------------------------------------


def rst(text: str) -> str:
    return "\n".join(docstrings.to_rst(text.split("\n"), {"Plan": "sdekit.Plan"}.get))


def test_equations_are_literal_and_prose_is_plain():
    out = rst(
        "x' = x + |h| f, shape (B, *event).\n\n    x' = x + |h| f\n\nSee `Plan`, `run` and ``y_`` of z_."
    )
    assert out == (
        "x' = x + \\|h\\| f, shape (B, \\*event).\n\n::\n\n    x' = x + |h| f\n\n"
        "See :py:obj:`Plan <sdekit.Plan>`, ``run`` and ``y_`` of z\\_.\n"
    )


def test_parameters_become_a_list_and_identifiers_links():
    out = rst(
        "Do.\n\nParameters\n----------\na, b\n    Of `Plan`s.\n\n        a = 1\n\n"
        "Raises\n------\nE: arXiv:2011.13456."
    )
    assert "``a``, ``b``\n    Of :py:obj:`Plan <sdekit.Plan>`\\ s.\n\n    ::\n\n        a = 1\n" in out
    assert ".. rubric:: Raises\n\nE: `arXiv:2011.13456 <https://arxiv.org/abs/2011.13456>`__." in out


def test_formulas_are_mathematics():
    assert rst(r"With $x_t = \alpha_t x_0$ given.") == "With :math:`x_t = \\alpha_t x_0` given.\n"
