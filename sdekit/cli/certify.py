"""`sdekit certify` and `sdekit compare`: from words to a table, JSON, a picture and a page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sdekit.certify import Certificate, MonteCarloCertificate
from sdekit.cli.problem import WordError
from sdekit.cli.study import PARTS, Result, Study, is_figure

__all__ = ["counts", "draw", "error_table", "notes", "part_table", "refusals", "show", "write"]


def counts(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers >= 1 from "5,8,10", sorted, each once. Raises WordError."""
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise WordError(
            f"{option} must be whole numbers >= 1 separated by commas, got {text!r}. Next: {option} 5,10,20."
        )
    return tuple(found)


def error_table(study: Study) -> Table:
    """W2 by budget, the best sampler first."""
    table = _table()
    table.add_column("sampler", no_wrap=True)
    for budget in study.budgets:
        table.add_column(
            f"{'NFE' if study.unit == 'nfe' else 'steps'} {budget}", justify="right", no_wrap=True
        )
    for line in study.lines:
        cells = (_cell(r, study, b) for r, b in zip(line.results, study.budgets, strict=True))
        table.add_row(line.sampler, *cells)
    return table


def _table() -> Table:
    return Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))


def notes(study: Study) -> str:
    """What the marks in `error_table` mean; empty for none."""
    pairs = [(r, b) for line in study.lines for r, b in zip(line.results, study.budgets, strict=True)]
    found = []
    if any(isinstance(r, MonteCarloCertificate) for r, _ in pairs):
        found.append("±: Monte Carlo, 95 %.")
    if study.unit == "nfe" and any(is_figure(r) and r.nfe != b for r, b in pairs):
        found.append("(n): evaluations used, where whole steps take fewer.")
    if any(r is None for r, _ in pairs):
        found.append("-: too few evaluations for one step.")
    return " ".join(found)


def _cell(result: Result, study: Study, budget: int) -> str:
    if result is None:
        return "-"
    if isinstance(result, str):
        return "refused"
    used = "" if study.unit != "nfe" or result.nfe == budget else f" ({result.nfe})"
    if isinstance(result, MonteCarloCertificate):
        return f"{result.w2:.2g} ± {(result.high - result.low) / 2:.1g}{used}"
    return f"{result.w2:.4g}{used}"


def part_table(study: Study) -> Table:
    """The parts of every exact error, KL and evaluations."""
    used = [p for p in PARTS if any(getattr(c, p).norm > 0 for c in study.exact)]
    table = _table()
    for name in ("sampler", "NFE", "W2", *(p.replace("_", " ") for p in used), "KL, nats"):
        table.add_column(name, justify="left" if name == "sampler" else "right", no_wrap=True)
    for c in study.exact:
        table.add_row(
            c.name, str(c.nfe), f"{c.w2:.6g}", *(f"{getattr(c, p).norm:.4g}" for p in used), f"{c.kl:.6g}"
        )
    return table


def refusals(study: Study) -> list[str]:
    """Why samplers were refused, one line each."""
    found = {line.sampler: r for line in study.lines for r in line.results if isinstance(r, str)}
    return [f"{name}: refused. {reason}" for name, reason in found.items()]


def draw(path: Path, study: Study) -> None:
    """Error against evaluations, spectrum and parts, as PNG."""
    from sdekit import plot

    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise plot.missing() from error
    figures = [r for line in study.lines for r in line.results if is_figure(r)]
    if not figures:
        raise WordError("no figures to draw: every sampler was refused. Next: --monte-carlo 20000.")
    budget = study.budgets[-1]
    last = [c for line in study.lines if isinstance(c := line.results[-1], Certificate)]
    figure = Figure(figsize=(9.0, 14.0 if last else 5.0), layout="constrained")
    axes = figure.subplots(3 if last else 1, 1, squeeze=False)[:, 0]
    plot.certificate(figures, axes[0], highlight=study.lines[0].sampler, floor=study.against == "data")
    reference = "the data law" if study.against == "data" else "the marginal at the end time"
    axes[0].set_ylabel(f"$W_2$ to {reference} (data units)")
    if last:
        plot.spectrum(last[:6], axes[1]).set_title(f"{'NFE' if study.unit == 'nfe' else 'steps'} {budget}")
        plot.split(last[:16], axes[2])
    figure.savefig(path, dpi=110)


def write(study: Study, *, json_file: Path | None, png: Path | None, html: Path | None, details: bool,
          say: Callable[[str], None]) -> None:  # fmt: skip
    """The files asked for, folders made as needed."""

    def text(path: Path, content: str) -> None:
        path.write_text(content, encoding="utf-8")

    def page(path: Path) -> None:
        from sdekit.cli.html import page as render

        text(path, render(study))

    makers: list[tuple[Path | None, Callable[[Path], None]]] = [
        (json_file, lambda p: text(p, json.dumps(study.figures(details), indent=2, allow_nan=False) + "\n")),
        (png, lambda p: draw(p, study)),
        (html, page),
    ]
    for path, make in makers:
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            make(path)
        except OSError as error:
            raise WordError(
                f"cannot write {str(path)!r}: {error.strerror or error}. Next: another path."
            ) from error
        say(str(path))


def show(study: Study, console: Console, *, parts: bool) -> None:
    """The tables, what they say, and why samplers were refused."""
    reference = "the data law" if study.against == "data" else "the marginal at the end time"

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say(f"W2 to {reference}, in data units: {study.target_word}, {study.process.spec()['name']}")
    console.print(error_table(study))
    if marks := notes(study):
        say(marks)
    if parts and study.exact:
        say("Where the error comes from: parts that add up by direction; these norms need not")
        console.print(part_table(study))
    for line in (refused := refusals(study)):
        say(line)
    if refused and study.against == "data":
        say("Next: --monte-carlo 20000 measures samplers that are not affine.")
