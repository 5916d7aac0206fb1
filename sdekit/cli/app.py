"""The commands of `sdekit`; importing this module needs typer and rich."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sdekit.errors import SdekitError

__all__ = ["app"]

app = typer.Typer(
    help="Solve SDEs and ODEs, run them backwards with any score, and prove the result.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for pictures, weights and figures.")] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="The same at a tiny scale, in seconds.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
) -> None:
    """Train on real digits, sample, certify every sampler, and draw the pictures: about two minutes."""
    from sdekit.cli.demo import run

    try:
        run(out, quick=quick, seed=seed, console=Console())
    except SdekitError as error:
        Console(stderr=True).print(f"[bold red]error[/] {escape(str(error))}", highlight=False)
        raise typer.Exit(1) from error


@app.command("list")
def list_() -> None:
    """Every sampler and solver by name, with its order and reference; from 120 columns on in full."""
    from sdekit.samplers import samplers
    from sdekit.solvers import solvers

    console = Console()
    for title, rows in (("Samplers: sdekit.sample(model, shape, sampler=name)", samplers()),
                        ("Solvers: sdekit.solve(system, x0, span, solver=name)", solvers())):  # fmt: skip
        console.print(_table(title, rows, narrow=console.width < 120))


#: Headings where the name of the field does not serve.
_HEADINGS = {"cls": "class", "stochastic": "noise", "evaluations": "evals", "adaptive": "adapts"}
#: Fields that a narrow table leaves out.
_WIDE = ("cls", "grid")


def _table(title: str, rows: object, narrow: bool) -> Table:
    """A rich table of a registry: a sequence of rows with named fields. narrow: without `_WIDE`."""
    records = [row._asdict() if hasattr(row, "_asdict") else vars(row) for row in rows]  # type: ignore[attr-defined]
    names = [name for name in records[0] if not (narrow and name in _WIDE)]
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(
            _HEADINGS.get(name, name),
            no_wrap=name not in ("reference", "solves", "order"),
            max_width=11 if narrow and name == "order" else None,
        )
    for record in records:
        table.add_row(*(_cell(record[name], narrow and name == "solves") for name in names))
    return table


def _cell(entry: object, first_word: bool) -> str:
    if isinstance(entry, bool):
        return "yes" if entry else ""
    return str(entry).partition(" ")[0] if first_word else str(entry)


@app.command()
def version() -> None:
    """Versions of sdekit and of torch."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    import torch

    try:
        own = installed("sdekit")
    except PackageNotFoundError:
        own = "from source"
    print(f"sdekit {own}, torch {torch.__version__}")
