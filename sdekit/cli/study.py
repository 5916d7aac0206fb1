"""A study: certificates of several samplers at several budgets, as figures, for a terminal and for JSON."""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import Any, TypeAlias, TypeGuard

import torch

from sdekit.certify import Certificate, MonteCarloCertificate, certify_monte_carlo
from sdekit.certify.exact import certify
from sdekit.errors import CapabilityError, EndpointError, NotAffineError, unknown_name
from sdekit.samplers import plan, samplers
from sdekit.sde import GaussianDiffusion
from sdekit.targets import Gaussian

__all__ = ["PARTS", "Line", "Result", "Study", "study", "versions"]

Result: TypeAlias = "Certificate | MonteCarloCertificate | str | None"
"""A certificate, why it was refused, or None where the budget is less than one interval costs."""

#: The parts of an error, in the order of a run.
PARTS = ("initial", "discretization", "score_error", "truncation")
#: Samplers without a plan.
ADAPTIVE = ("rk45",)


@dataclass(frozen=True)
class Line:
    """One sampler at every budget."""

    sampler: str
    results: tuple[Result, ...]

    @property
    def last(self) -> float:
        """W2 at the largest budget that has a figure; inf for none."""
        return next((r.w2 for r in reversed(self.results) if is_figure(r)), math.inf)


@dataclass(frozen=True)
class Study:
    """What was certified. budgets: evaluations (unit "nfe") or intervals ("steps"); lines: the best first."""

    command: str
    target_word: str
    target: Gaussian
    process: GaussianDiffusion
    against: str
    end: str
    grid: str | None
    unit: str
    budgets: tuple[int, ...]
    lines: tuple[Line, ...]

    @property
    def exact(self) -> list[Certificate]:
        """Every exact certificate."""
        return [r for line in self.lines for r in line.results if isinstance(r, Certificate)]

    def figures(self, details: bool) -> dict[str, Any]:
        """Everything for JSON; details: the errors of every direction too."""
        out: dict[str, Any] = {
            "command": self.command,
            "versions": versions(),
            "target": {
                "word": self.target_word,
                "event_shape": list(self.target.event_shape),
                "dimension": self.target.dimension,
                "data_std": self.target.data_std,
                "data_spread": self.target.data_spread,
            },
            "process": self.process.spec(),
            "against": self.against,
            "end": self.end,
            "grid": self.grid,
            "unit": self.unit,
            "budgets": list(self.budgets),
            "results": [
                {"sampler": line.sampler, self.unit: budget, **_figures(result, details)}
                for line in self.lines
                for budget, result in zip(self.budgets, line.results, strict=True)
            ],
        }
        if details:
            out["target"]["eigenvalues"] = self.target.eigenvalues.tolist()
        return out


def _figures(result: Result, details: bool) -> dict[str, Any]:
    if result is None:
        return {"kind": "none", "reason": "the budget is less than one interval costs"}
    if isinstance(result, str):
        return {"kind": "refused", "reason": result}
    if isinstance(result, MonteCarloCertificate):
        return {
            "kind": "monte-carlo",
            "evaluations": result.nfe,
            **{key: getattr(result, key) for key in ("w2", "low", "high", "confidence", "floor", "samples")},
        }
    out: dict[str, Any] = {
        "kind": "exact",
        "evaluations": result.nfe,
        **{key: finite(getattr(result, key)) for key in ("w2", "kl", "frechet")},
        **{part: finite(getattr(result, part).norm) for part in PARTS},
    }
    if details:
        for name in ("mean", "std"):
            out[f"{name}_error"] = [finite(v) for v in getattr(result.error, name).tolist()]
    return out


def finite(value: float) -> float | None:
    """The number; None where JSON has none, for infinity and NaN."""
    return value if math.isfinite(value) else None


def is_figure(result: Result) -> TypeGuard[Certificate | MonteCarloCertificate]:
    """Whether the result holds a W2."""
    return isinstance(result, Certificate | MonteCarloCertificate)


def study(
    names: tuple[str, ...],
    target_word: str,
    target: Gaussian,
    process: GaussianDiffusion,
    *,
    unit: str,
    budgets: tuple[int, ...],
    grid: str | None,
    end: str,
    against: str,
    monte_carlo: int,
    seed: int,
    command: str,
) -> Study:
    """Certify every sampler at every budget; those that are not affine by Monte Carlo, or refused.

    A sampler that cannot do this process at all is refused where there are others, an error alone. Raises
    UnknownNameError for a name that is no sampler's, with the nearest ones.
    """
    known = [row.name for row in samplers() if row.name not in ADAPTIVE]
    for name in names:
        if name not in known and name not in ADAPTIVE:
            raise unknown_name("sampler", name, known)
    chosen = tuple(dict.fromkeys(names)) or tuple(known)

    def result(name: str, budget: int) -> Result:
        try:
            if unit == "nfe" and plan(name, process, steps=1, end=end).nfe > budget and len(chosen) > 1:
                return None
            return figure(name, budget)
        except (CapabilityError, EndpointError) as error:
            if len(chosen) == 1:
                raise
            return str(error)

    def figure(name: str, budget: int) -> Result:
        settings: dict[str, Any] = {unit: budget, "grid": grid, "end": end}
        try:
            return certify(name, target, process, against=against, **settings)
        except NotAffineError as error:
            if monte_carlo and against == "data":
                return certify_monte_carlo(name, target, process, samples=monte_carlo, seed=seed, **settings)
            return str(error)

    lines = [Line(name, tuple(result(name, budget) for budget in budgets)) for name in chosen]
    return Study(
        command, target_word, target, process, against, end, grid, unit, budgets,
        tuple(sorted(lines, key=lambda line: line.last)),
    )  # fmt: skip


def versions() -> dict[str, str]:
    """Of sdekit, torch and Python."""
    try:
        own = installed("sdekit")
    except PackageNotFoundError:
        own = "from source"
    return {"sdekit": own, "torch": torch.__version__, "python": platform.python_version()}
