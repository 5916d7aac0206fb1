"""Sphinx configuration: ``make docs``."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import sdekit as sk  # noqa: E402
from docs import docstrings, league, tables, third_party  # noqa: E402
from sdekit.samplers.registry import SAMPLERS  # noqa: E402

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# For this process and the kernels that run the pages: one thread, one look.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MATPLOTLIBRC"] = str(HERE / "matplotlibrc")

project = "sdekit"
author = "The sdekit developers"
copyright = "2026, The sdekit developers"
release = version = sk.__version__

extensions = [
    *("sphinx.ext.autodoc", "sphinx.ext.viewcode", "myst_nb", "sphinxcontrib.bibtex"),
    "sphinx-mathjax-offline",  # equations need no network to read
]
exclude_patterns = ["_build", "_generated", "jupyter_execute", "README.md"]
highlight_language = "none"  # equations in docstrings are no Python
smartquotes = False  # x' is a prime
nitpick_ignore_regex = [
    ("py:.*", r"(?!sdekit\.).*|sdekit\._.*|.*\.Self|.*\.statistics\.Sketch")
]  # other packages' names are not linked

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_show_tb = True  # a failing cell is a warning, and `make docs` stops at warnings
nb_execution_timeout = 300
nb_execution_in_temp = True
nb_merge_streams = True
nb_render_markdown_format = "myst"  # tables in what cells display

bibtex_bibfiles = ["references.bib"]

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_default_options = {"members": True}
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90

html_theme = "furo"
html_title = f"sdekit {version}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {"light_css_variables": {"code-font-size": "76%"}}
html_copy_source = False
html_show_sphinx = False


def _documented(name: str) -> str | None:
    """The path under which the reference pages document a name, if they do."""
    path = name.removeprefix("sdekit.").removesuffix("()")
    if path not in sk.__all__:
        ours = {cls.__name__ for cls in SAMPLERS.values()} - set(sk.solvers.__all__)
        return f"sdekit.samplers.{path}" if path in ours else None
    value = getattr(sk, path)
    return value.__name__ if isinstance(value, ModuleType) and not callable(value) else f"sdekit.{path}"


def _docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if what == "function" and isinstance(obj, ModuleType):  # a package that is also a function
        lines[:] = [*(inspect.getdoc(type(obj).__call__) or "").split("\n"), ""]
    lines[:] = docstrings.to_rst(lines, _documented)


def _tables(app: Any) -> None:
    from sphinx.util import logging

    data = league.compute()
    stale = league.differences(league.read(), data)
    if stale:
        logging.getLogger(__name__).warning(
            "reference/league.json is not what the samplers give: %s. Next: make league.",
            "; ".join(stale[:5]),
        )
    tables.write(HERE / "_generated", data)
    third_party.write(HERE / "_generated")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", _tables)
    app.connect("autodoc-process-docstring", _docstring)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
