"""The commands of `sdekit`; importing this module needs typer and rich."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
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

    with _errors():
        run(out, quick=quick, seed=seed, console=Console())


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """The library's errors, and values it refuses, as one paragraph and exit status 1."""
    try:
        yield
    except (SdekitError, ValueError) as error:
        Console(stderr=True).print(
            f"[bold red]error[/] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        raise typer.Exit(1) from error


_Target = Annotated[
    str,
    typer.Option(help="gaussian:d=64,spectrum=1/k | digits | texture | FILE.pt, .npy, .npz or .safetensors."),
]
_Process = Annotated[
    str, typer.Option(help="vp | subvp | ve | cosine | edm | rectified-flow, settings as vp:beta_max=20.")
]
_Nfe = Annotated[str | None, typer.Option(help="Evaluations, as 5,10,20.")]
_Steps = Annotated[str | None, typer.Option(help="Intervals, in place of --nfe.")]
_Grid = Annotated[str | None, typer.Option(help="Grid by name; each sampler's own unless given.")]
_End = Annotated[str, typer.Option(help="t_min | clean.")]
_Against = Annotated[str, typer.Option(help="data | t_min, the exact marginal at the end time.")]
_MonteCarlo = Annotated[int, typer.Option(help="Samples for samplers that an exact certificate refuses.")]
_Seed = Annotated[int, typer.Option(help="Seed of the Monte Carlo samples.")]
_Json = Annotated[Path | None, typer.Option("--json", help="Write every figure to this file.")]
_Png = Annotated[Path | None, typer.Option(help="Write the curves to this file.")]
_Html = Annotated[Path | None, typer.Option(help="Write one self-contained page to this file.")]


@app.command()
def certify(
    sampler: Annotated[str, typer.Argument(help="A name of `sdekit list`.")],
    target: _Target = "gaussian:d=64,spectrum=1/k",
    process: _Process = "vp",
    nfe: _Nfe = None,
    steps: _Steps = None,
    grid: _Grid = None,
    end: _End = "t_min",
    against: _Against = "data",
    monte_carlo: _MonteCarlo = 0,
    seed: _Seed = 0,
    json: _Json = None,
    png: _Png = None,
    html: _Html = None,
) -> None:
    """The exact error of one sampler on Gaussian data, and where it comes from."""
    options = (target, process, nfe, steps, grid, end, against, monte_carlo, seed, json, png, html)
    _study((sampler,), "20", *options, details=True)


@app.command()
def compare(
    samplers: Annotated[
        list[str] | None, typer.Argument(help="Names of `sdekit list`; all unless given.")
    ] = None,
    target: _Target = "gaussian:d=64,spectrum=1/k",
    process: _Process = "vp",
    nfe: _Nfe = None,
    steps: _Steps = None,
    grid: _Grid = None,
    end: _End = "t_min",
    against: _Against = "data",
    monte_carlo: _MonteCarlo = 0,
    seed: _Seed = 0,
    json: _Json = None,
    png: _Png = None,
    html: _Html = None,
) -> None:
    """The exact errors of several samplers on Gaussian data, by number of evaluations."""
    options = (target, process, nfe, steps, grid, end, against, monte_carlo, seed, json, png, html)
    _study(tuple(samplers or ()), "5,8,10,20,50", *options, details=False)


def _study(
    names: tuple[str, ...],
    default: str,
    target: str,
    process: str,
    nfe: str | None,
    steps: str | None,
    grid: str | None,
    end: str,
    against: str,
    monte_carlo: int,
    seed: int,
    json: Path | None,
    png: Path | None,
    html: Path | None,
    *,
    details: bool,
) -> None:
    import sys

    from sdekit.cli.certify import counts, show, write
    from sdekit.cli.problem import WordError, parse_process, parse_target
    from sdekit.cli.study import study

    with _errors():
        if nfe is not None and steps is not None:
            raise WordError("--nfe and --steps are two ways to say one thing. Next: give one of them.")
        if end not in ("t_min", "clean"):
            raise WordError(f"--end must be t_min or clean, got {end!r}.")
        unit = "steps" if steps is not None else "nfe"
        done = study(
            names,
            target,
            parse_target(target),
            parse_process(process),
            unit=unit,
            budgets=counts(steps or nfe or default, f"--{unit}"),
            grid=grid,
            end=end,
            against=against,
            monte_carlo=monte_carlo,
            seed=seed,
            command=shlex.join(["sdekit", *sys.argv[1:]]),
        )
        console = Console()
        show(done, console, parts=details)
        write(
            done,
            json_file=json,
            png=png,
            html=html,
            details=details,
            say=lambda path: console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True),
        )


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
