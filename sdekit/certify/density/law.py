r"""The exact output density of a sampler on one-dimensional data, and its distances to the data.

Gaussian data hide what samplers do to modes. With a mixture on the line the denoiser is still exact, and a
plan is a Markov chain whose transition densities are known: N(f(x), s^2) for a step x' = f(x) + s xi. The
densities are carried on grids (`sdekit.certify.density.chain`), the noise of the last step analytically.
Nothing is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdekit.certify.density.chain import Chain
from sdekit.certify.density.lattice import WIDE, fourier, onto_line
from sdekit.certify.density.pushforward import Curve, pushforward
from sdekit.certify.density.registers import Ending, Needs
from sdekit.certify.exact import as_plan
from sdekit.errors import CapabilityError, NotAffineError, ShapeError, check_positive
from sdekit.samplers.base import Sampler
from sdekit.samplers.build import GridLike
from sdekit.samplers.plan import Combine, Evaluate, Plan
from sdekit.sde.gaussian import GaussianDiffusion
from sdekit.targets.gaussian import Gaussian
from sdekit.targets.mixture import GaussianMixture

__all__ = ["DensityCertificate", "density"]


@dataclass(frozen=True, eq=False)
class DensityCertificate:
    """The law of the output on one-dimensional data.

    x, pdf, cdf: (n,) float64, increasing points, the output's density and distribution function there.
    mean, std: of the output. ks = sup |F - G|, w1 = int |F - G| dx, kl = KL(output || reference) in nats,
    with G the reference's distribution function. errors: for each of these five four times the difference to
    a run on grids 1.25 times coarser, which bounds its error where it converges at first order or faster
    (KL does so across folds of an output without noise; all else is much faster).
    """

    plan: Plan
    target: GaussianMixture | Gaussian
    against: str
    x: Tensor = field(repr=False)
    pdf: Tensor = field(repr=False)
    cdf: Tensor = field(repr=False)
    mean: float
    std: float
    ks: float
    w1: float
    kl: float
    errors: Mapping[str, float]

    @property
    def nfe(self) -> int:
        """Evaluations for one sample."""
        return self.plan.nfe

    def __repr__(self) -> str:
        return (
            f"DensityCertificate({self.plan.sampler!r}, nfe={self.nfe}, against {self.against}: KS = "
            f"{self.ks:.6g}, W1 = {self.w1:.6g}, KL = {self.kl:.6g}; mean {self.mean:.6g}, std "
            f"{self.std:.6g}; self-convergence {max(self.errors.values()):.2g})"
        )


QUANTITIES = ("mean", "std", "ks", "w1", "kl")

SCOUTS = 4
"""Runs at most that look for the scales."""


def density(
    sampler: str | Sampler | Plan,
    target: GaussianMixture | Gaussian,
    process: GaussianDiffusion,
    *,
    steps: int | None = None,
    nfe: int | None = None,
    grid: GridLike = None,
    end: str = "t_min",
    eta: float | None = None,
    against: str = "data",
    start: str = "prior",
    resolution: float = 2.0,
) -> DensityCertificate:
    r"""p(x) of a sampler's output, by transfer operators p'(y) = int p(z) N(y; f(z), s(z)^2) dz.

    Exact up to quadrature, whose error is measured. The memory of the plan between draws may be one number
    (one-step samplers, with any number of evaluations in a step) or two (one earlier prediction); without
    noise it may be anything, since the output is a function of x[0].

    Parameters
    ----------
    sampler
        A name, a sampler object or a `Plan`.
    target
        A `GaussianMixture` or `Gaussian` of one-dimensional events.
    steps, nfe, grid, end, eta
        As in `sdekit.plan`.
    against
        The reference: "data", or "t_min", the marginal at the last node.
    start
        "prior", as a run starts, or "marginal", the true law at the first node (a Gaussian target only).
    resolution
        Grid points per standard deviation of the narrowest factor in each step. 2 gives about 1e-10.

    Raises
    ------
    ShapeError: the data are not one-dimensional. TypeError: another kind of target. NotAffineError: the
    plan has steps with `Apply`. CapabilityError: more memory than two numbers, or grids too large.
    """
    if not isinstance(target, GaussianMixture | Gaussian):
        raise TypeError(
            f"density needs a GaussianMixture or Gaussian, got {type(target).__name__}. Next: "
            f"GaussianMixture([1/n] * n, points, bandwidth**2) is the law of data points with a bandwidth."
        )
    if target.dimension != 1:
        raise ShapeError(
            f"density needs one-dimensional events, got event shape {tuple(target.event_shape)}. Next: "
            f"sdekit.certify on a Gaussian, or a mixture along one line."
        )
    if against not in ("data", "t_min"):
        raise ValueError(f"against must be 'data' or 't_min', got {against!r}.")
    if start not in ("prior", "marginal"):
        raise ValueError(f"start must be 'prior' or 'marginal', got {start!r}.")
    made = as_plan(sampler, target, process, steps, nfe, grid, end, eta)  # type: ignore[arg-type]
    for ins in made.instructions:
        if not isinstance(ins, Evaluate | Combine):
            raise NotAffineError(
                f"{made.sampler!r} applies {ins.name!r}, whose noise does not enter linearly: its transition "
                f"density has no formula here. Next: draw samples (sdekit.sample)."
            )
    resolution = check_positive(resolution, "resolution")
    begin = _start(made, target, start)
    reference = target if against == "data" else _marginal(target, made)
    with torch.no_grad():
        scale = float(reference.eigenvalues.min().sqrt())
        needs = _scales(made, target, begin, scale)
        coarse, fine = (
            _curve(Chain(made, target, begin, scale, needs, r, record=False).run(), scale, r)
            for r in (0.8 * resolution, resolution)
        )
        found = [dict(zip(QUANTITIES, curve.measure(reference), strict=True)) for curve in (coarse, fine)]
    errors = {key: 4 * abs(found[1][key] - found[0][key]) for key in QUANTITIES}
    return DensityCertificate(made, target, against, fine.x, fine.pdf, fine.cdf, errors=errors, **found[1])


def _scales(
    plan: Plan, target: GaussianMixture | Gaussian, start: tuple[float, float], scale: float
) -> Needs:
    """What the grids must resolve, met on ever finer grids until these resolve it."""
    needs: Needs | None = None
    for _ in range(SCOUTS):
        chain = Chain(plan, target, start, scale, needs)
        chain.run()
        wanted = chain.found if needs is None else needs.joined(chain.found)
        done = needs is not None and all(wanted.spacing(a) > 0.8 * needs.spacing(a) for a in wanted.scale)
        needs = wanted
        if done:
            break
    assert needs is not None
    return needs


def _start(plan: Plan, target: GaussianMixture | Gaussian, start: str) -> tuple[float, float]:
    if start == "prior":
        return 0.0, plan.prior_std
    if not isinstance(target, Gaussian):
        raise CapabilityError(
            "start='marginal' needs a Gaussian target. Next: start='prior', which is the run that is made."
        )
    first = plan.nodes[0]
    variance = float(first.alpha) ** 2 * float(target.eigenvalues[0]) + float(first.sigma) ** 2
    return float(first.alpha) * float(target.mean.reshape(-1)[0]), math.sqrt(variance)


def _marginal(target: GaussianMixture | Gaussian, plan: Plan) -> GaussianMixture | Gaussian:
    if plan.end == "clean":
        raise ValueError(
            "against='t_min' with end='clean' has no closed form on a mixture. Next: against='data'."
        )
    last = plan.nodes[-1]
    return target.diffused(float(last.alpha), float(last.sigma))


def _curve(ending: Ending, scale: float, resolution: float) -> Curve:
    if ending.std == 0 and ending.line is not None:
        slope = torch.zeros_like(ending.mean) if ending.slope is None else ending.slope
        return pushforward(ending.line, ending.mean, slope.expand_as(ending.mean))
    if ending.std >= 0.2 * ending.smooth:
        spacing = min(ending.std, scale) / (2 * resolution)
        if ending.mean.numel() < 20_000:
            spacing = min(spacing, (float(ending.mean.max() - ending.mean.min()) + 18 * ending.std) / 2000)
        line = onto_line(ending.mean, ending.mass, ending.std, spacing)
    else:
        spacing = min(ending.smooth, 2 * scale) / (2.35 * resolution)
        line = fourier(
            ending.mean, ending.mass, ending.std, ending.smooth, min(spacing, ending.smooth / WIDE)
        )
    mean = float((ending.mean * ending.mass).sum())
    variance = float(((ending.mean - mean) ** 2 * ending.mass).sum()) + ending.std**2
    return Curve(line.y, line.mass / line.spacing, line.cdf, mean, math.sqrt(variance))
