"""The commands of `sdekit`; importing this module needs typer and rich."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
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
    """Every sampler and solver by name, with its order and reference."""
    from sdekit.samplers import samplers
    from sdekit.solvers import solvers

    console = Console()
    for title, rows in (("Samplers: sdekit.sample(model, shape, sampler=name)", samplers()),
                        ("Solvers: sdekit.solve(system, x0, span, solver=name)", solvers())):  # fmt: skip
        console.print(_table(title, rows))


def _table(title: str, rows: object) -> Table:
    """A rich table of a registry: a sequence of rows with named fields."""
    records = [row._asdict() if hasattr(row, "_asdict") else vars(row) for row in rows]  # type: ignore[attr-defined]
    table = Table(title=title, title_justify="left")
    for name in records[0]:
        table.add_column("class" if name == "cls" else name, overflow="fold", no_wrap=name == "name")
    for record in records:
        table.add_row(*({True: "yes", False: ""}.get(v, str(v)) if isinstance(v, bool) else str(v)
                        for v in record.values()))  # fmt: skip
    return table


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
