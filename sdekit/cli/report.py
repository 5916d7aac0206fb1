"""What the demo shows: tables, pictures, and the figures for JSON."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import torch
from rich.table import Table
from torch import Tensor

from sdekit import plot
from sdekit.certify import Certificate, MonteCarloCertificate
from sdekit.cli.quality import Quality
from sdekit.matching import FitResult
from sdekit.score import Denoiser
from sdekit.solution import Solution
from sdekit.targets import Gaussian

__all__ = ["Curves", "certificate_table", "draw_certificates", "draw_digits", "sample_table", "summary"]

Curves: TypeAlias = "dict[str, dict[int, Certificate | MonteCarloCertificate]]"
"""Certificates by sampler and by budget of evaluations."""


def sample_table(runs: dict[str, Solution], quality: dict[str, Quality]) -> Table:
    """One line a run, and one for real digits."""
    table = Table(
        caption="energy distance to the held-out digits, around 0 for exact samples; legible: the five "
        "nearest training digits agree; nearest: distance to the first"
    )
    for title in ("sampler", "NFE", "seconds", "energy distance", "legible", "nearest"):
        table.add_column(title, justify="left" if title == "sampler" else "right", no_wrap=title == "sampler")
    for name, solution in runs.items():
        q, stats = quality[name], solution.stats
        figures = (f"{stats.seconds:.2f}", f"{q.energy:.3f}", f"{q.legible:.0%}", f"{q.nearest:.2f}")
        table.add_row(name.partition(",")[0], str(stats.nfe), *figures)
    q = next(iter(quality.values()))
    table.add_section()
    real = (f"< {q.energy_floor:.3f}", f"{q.legible_real:.0%}", f"{q.nearest_real:.2f}")
    table.add_row("(real digits)", "", "", *real)
    return table


def certificate_table(curves: Curves, budgets: tuple[int, ...]) -> Table:
    """W2 to the data law, samplers in the order of their error at the largest budget."""
    table = Table(
        caption="W2 to the data law by evaluations (NFE). ±: Monte Carlo, 95 %. (n): NFE used, if fewer. "
        "-: too few for one step."
    )
    table.add_column("sampler", no_wrap=True)
    for n in budgets:
        table.add_column(f"NFE {n}", justify="right")
    for name, line in sorted(curves.items(), key=lambda item: item[1][budgets[-1]].w2):
        table.add_row(name, *(_cell(line[n], n) if n in line else "-" for n in budgets))
    return table


def _cell(c: Certificate | MonteCarloCertificate, budget: int) -> str:
    used = "" if c.nfe == budget else f" ({c.nfe})"
    if isinstance(c, MonteCarloCertificate):
        return f"{c.w2:.2f} ± {(c.high - c.low) / 2:.2f}{used}"
    return f"{c.w2:.4f}{used}"


def draw_digits(path: Path, held: Tensor, runs: dict[str, Solution]) -> None:
    """Real digits beside those of each run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 9.5), layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    count = len(next(iter(runs.values())).x)
    plot.image_grid(held[:count], axes[0], gap=2, title="real digits, held out from training")
    for ax, (name, solution) in zip(axes[1:], runs.items(), strict=True):
        sampler, stats = name.partition(",")[0], solution.stats
        title = f"samples: {sampler}, {stats.nfe} evaluations, {stats.seconds:.2g} s"
        plot.image_grid(solution.x, ax, gap=2, title=title)
    figure.savefig(path, dpi=110)


def draw_certificates(path: Path, curves: Curves) -> None:
    """Exact W2 against evaluations, one line a sampler: without and with noise, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14.0, 5.6), layout="constrained")
    lines = [{c.nfe: c for c in line.values()}.values() for line in curves.values()]
    given = [c for line in lines for c in line]
    panels = {"without noise": "kernel-quadrature", "with noise": "gaussian-split"}
    top = 0.0
    axes = figure.subplots(1, 2, sharey=True)
    for ax, noisy, (title, bold) in zip(axes, (False, True), panels.items(), strict=True):
        plot.certificate([c for c in given if c.stochastic == noisy], ax, highlight=bold)
        ax.set_title(title)
        top = max(top, ax.get_ylim()[1])
    axes[0].set_ylim(top=top)
    figure.suptitle("Exact error of every sampler on the Gaussian with the digits' covariance")
    figure.savefig(path, dpi=110)


def summary(
    result: FitResult,
    model: Denoiser,
    runs: dict[str, Solution],
    quality: dict[str, Quality],
    target: Gaussian,
    curves: Curves,
) -> dict[str, Any]:
    """Every figure, for JSON."""
    last = result.losses[-max(len(result.losses) // 10, 1) :]
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "training": {
            "process": model.process.spec(),
            "predicts": model.predicts,
            "parameters": result.parameters,
            "steps": len(result.losses),
            "seconds": result.seconds,
            "loss": float(last.mean()),
            "held_out_steps": result.held_out_steps.tolist(),
            "held_out": result.held_out.tolist(),
            "data_std": model.data_std,
            "data_spread": model.data_spread,
        },
        "samples": {
            name: {"nfe": s.stats.nfe, "seconds": s.stats.seconds, **asdict(quality[name])}
            for name, s in runs.items()
        },
        "target": {
            "dimension": target.dimension,
            "data_std": target.data_std,
            "data_spread": target.data_spread,
        },
        "certificates": {name: [_figures(c) for c in line.values()] for name, line in curves.items()},
    }


def _figures(c: Certificate | MonteCarloCertificate) -> dict[str, Any]:
    if isinstance(c, MonteCarloCertificate):
        return {"nfe": c.nfe, "w2": c.w2, "low": c.low, "high": c.high, "confidence": c.confidence}
    parts = {name: getattr(c, name).norm for name in ("initial", "discretization", "truncation")}
    return {"nfe": c.nfe, "w2": c.w2, "kl": c.kl, **parts}
