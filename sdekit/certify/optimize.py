r"""optimize_grid: the times at which an exact error of a sampler is least, by its gradient.

A grid enters a plan's coefficients, and these the certificate, all in closed form. With
l = ln(sigma/alpha) at the inner nodes,

    l_i = l_0 - (l_0 - l_n) sum_{j <= i} softmax(u)_j,    minimise ln E(l(u)) over u in R^n,

times decrease by themselves. Adam goes first, L-BFGS after it, from several grids; the best is kept, which
may be one of those begun with.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from sdekit.certify.affine import exact_denoiser, respond
from sdekit.errors import CapabilityError, NotAffineError, check_count, unknown_name
from sdekit.samplers.base import Path, Sampler, nodes_at
from sdekit.samplers.build import plan
from sdekit.samplers.grids import Grid
from sdekit.samplers.layout import jump
from sdekit.samplers.plan import Instruction, Plan
from sdekit.samplers.registry import as_sampler
from sdekit.score.predictions import Node
from sdekit.sde.gaussian import GaussianDiffusion
from sdekit.targets.gaussian import Gaussian

__all__ = ["optimize_grid"]

STARTS = ("quantile", "karras", "uniform-lambda")
OBJECTIVES = ("w2", "map")
RATE = 0.05


def optimize_grid(
    sampler: str | Sampler,
    target: Gaussian | None,
    process: GaussianDiffusion,
    *,
    steps: int,
    objective: str = "w2",
    spectrum: Tensor | Sequence[float] | None = None,
    against: str = "data",
    end: str = "t_min",
    eta: float | None = None,
    predicts: str | None = None,
    finite: bool = False,
    iterations: int = 120,
) -> Grid:
    r"""The grid of ``steps`` intervals with the least exact error E on a Gaussian law N(m, C).

        "w2"    E^2 = sum_k (mean_k - m_k)^2 + (std_k - s_k)^2, the distance that `certify` reports,
        "map"   E^2 = sum_k (g_k - g*_k)^2 v_k + (b_k + g_k mu_k - mu*_k)^2,

    k over eigendirections of C. The second is the mean square distance to the end of each start's own
    trajectory, x -> b + g x against the probability flow's x -> mu* + g*(x - mu), the start N(mu, v) that of
    the true marginal.

    Parameters
    ----------
    sampler
        Any affine one, stochastic or not; "map" is for those without noise.
    target, process
        As in `certify`. target may be None where ``spectrum`` is given.
    steps
        Intervals, at least 2; with end="clean" the clean node is one of them.
    spectrum
        (K,) eigenvalues of a law of zero mean, in place of the target's.
    against
        "data", or "t_min": the law that W2 is measured to.
    end, eta, predicts, finite
        As in `sdekit.plan`.
    iterations
        Of Adam, from the two best of the sampler's own grid, "quantile", "karras" and "uniform-lambda";
        L-BFGS takes a third as many.

    Returns
    -------
    Grid
        ``Grid.explicit``, never worse than any of these four.

    Raises
    ------
    NotAffineError: a plan with `Apply`. CapabilityError: noise under "map", or a recipe through which no
    gradient passes. UnknownNameError, ValueError: names and numbers that do not fit.

    Reference: gradients of a sampler's quality through its steps, Watson et al. 2022 (arXiv:2202.05830), by
    Monte Carlo; here the error and its gradient are exact.
    """
    if objective not in OBJECTIVES:
        raise unknown_name("objective", objective, OBJECTIVES)
    if against not in ("data", "t_min"):
        raise ValueError(f"against must be 'data' or 't_min', got {against!r}.")
    if end not in ("t_min", "clean"):
        raise ValueError(f"end must be 't_min' or 'clean', got {end!r}: an optimised grid ends at data.")
    intervals = check_count(steps, "steps", 3 if end == "clean" else 2) - (end == "clean")
    law = _law(target, spectrum)
    method = as_sampler(sampler).with_eta(eta)
    problem = _Problem(method, law, process, objective, against, end, predicts)

    def named(grid: Grid | None) -> Tensor:
        known = {"data_std": law.data_std, "data_spread": law.data_spread, "predicts": predicts}
        made = plan(method, process, steps=intervals, grid=grid, finite=finite, **known)  # type: ignore[arg-type]
        problem.check(made)
        return torch.tensor(made.times, dtype=torch.float64)

    begun = [named(None), *(named(Grid(name)) for name in STARTS)]
    best = min(begun, key=problem.value)
    for times in sorted(begun, key=problem.value)[:2]:
        for found in _descend(problem, times, iterations):
            if problem.value(found) < problem.value(best):
                best = found
    return Grid.explicit(best)


def _law(target: Gaussian | None, spectrum: Tensor | Sequence[float] | None) -> Gaussian:
    if spectrum is not None:
        values = torch.as_tensor(spectrum, dtype=torch.float64).reshape(-1)
        if not len(values) or not bool((values > 0).all()):
            raise ValueError(f"spectrum must hold eigenvalues > 0, got {values.tolist()[:5]}.")
        return Gaussian(torch.zeros_like(values), variance=values)
    if not isinstance(target, Gaussian):
        raise TypeError(
            f"optimize_grid needs a Gaussian target, got {type(target).__name__}: only there is the error "
            f"exact. Next: spectrum= with the eigenvalues of the data's covariance; sdekit.calibrate for "
            f"any model."
        )
    return target


class _Problem:
    """E^2 of a sampler on a grid, differentiable in the inner times."""

    def __init__(
        self,
        method: Sampler,
        law: Gaussian,
        process: GaussianDiffusion,
        objective: str,
        against: str,
        end: str,
        predicts: str | None,
    ) -> None:
        self.method, self.law, self.process = method, law, process
        self.objective, self.against, self.end, self.predicts = objective, against, end, predicts
        self.c, self.m = law.eigenvalues, law.to_basis(law.mean)
        self.denoiser = exact_denoiser(self.c, self.m)

    def check(self, made: Plan) -> None:
        """Refuse plans without an exact error. Raises NotAffineError, CapabilityError."""
        if not made.affine:
            raise NotAffineError(
                f"{made.sampler!r} is not affine in its noise, so its error is not known exactly. Next: a "
                f"sampler that sdekit.certify takes."
            )
        if self.objective == "map" and made.stochastic:
            raise CapabilityError(
                f"objective 'map' follows single trajectories, and {made.sampler!r} injects noise. Next: "
                f"objective='w2', or eta=0 where the sampler has it."
            )

    def plan(self, inner: Tensor, ends: Tensor) -> Plan:
        """The plan on ends[0], inner, ends[1]; only the inner nodes carry gradients."""
        first, last = nodes_at(self.process, ends)
        nodes = [first, *nodes_at(self.process, inner), last]
        clean = self.end == "clean"
        known = self.law.data_std, self.law.data_spread
        path = Path(tuple(nodes), *known, self.process, clean, self.predicts)
        instructions: list[Instruction] = list(self.method.recipe(path))
        if clean:
            i = len(nodes) - 1
            instructions += jump(path, i, f"clean[{i}]", "x0", 1.0)
            nodes.append(Node(0.0, 1.0, 0.0, 0.0, 0.0))
        prior = float(self.process.prior_std(float(ends[0])))
        return Plan(tuple(instructions), tuple(nodes), prior, self.method.name, repr(self.process), self.end)

    def squared(self, inner: Tensor, ends: Tensor) -> Tensor:
        """E^2."""
        made = self.plan(inner, ends)
        response = respond(made, self.denoiser, self.law.dimension)
        first = made.nodes[0]
        last = made.nodes[-2] if self.end == "clean" else made.nodes[-1]
        spread = torch.sqrt(last.alpha**2 * self.c + last.sigma**2)
        mean, std = last.alpha * self.m, spread
        if self.end == "clean":
            mean, std = self.m, last.alpha * self.c / spread
        if self.objective == "map":
            start = torch.sqrt(first.alpha**2 * self.c + first.sigma**2)
            shift = response.constant + response.gain * first.alpha * self.m - mean
            return (shift.square() + (response.gain * start - std).square()).sum()
        if self.against == "data":
            mean, std = self.m, torch.sqrt(self.c)
        reached = torch.sqrt((response.gain * made.prior_std).square() + response.variance)
        return ((response.constant - mean).square() + (reached - std).square()).sum()

    def value(self, times: Tensor) -> float:
        """E^2 of a grid; inf where it is not finite."""
        with torch.no_grad():
            found = float(self.squared(times[1:-1], times[[0, -1]]))
        return found if math.isfinite(found) else math.inf


def _descend(problem: _Problem, times: Tensor, iterations: int) -> list[Tensor]:
    """Grids after Adam and after L-BFGS, begun at ``times``."""
    process, ends = problem.process, times[[0, -1]]
    log_rho = process.rho(times[1:]).log()
    first = float(process.rho(times[0]))
    top = math.log(first) if math.isfinite(first) else math.log(200 * problem.law.data_std)
    top = max(top, float(log_rho[0]) + 0.1)
    steps = -torch.cat([torch.tensor([top], dtype=torch.float64), log_rho]).diff()
    u = steps.clamp_min(1e-12).log().requires_grad_()
    length = float(steps.sum())

    def inner() -> Tensor:
        return process.t_of_rho((top - length * torch.softmax(u, 0).cumsum(0)[:-1]).exp())

    def loss() -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Converting a tensor with requires_grad")
            squared = problem.squared(inner(), ends)
        if not squared.requires_grad:
            raise CapabilityError(
                f"no gradient passes through the recipe of {problem.method.name!r}. Likely cause: it turns "
                f"its nodes into floats. Next: write it with the functions of sdekit._math, which take both."
            )
        return squared.clamp_min(1e-300).log()

    kept: list[tuple[float, Tensor]] = []

    def note(value: Tensor) -> None:
        if math.isfinite(float(value)):
            kept.append((float(value), u.detach().clone()))

    def best() -> Tensor:
        with torch.no_grad():
            if kept:
                u.copy_(min(kept, key=lambda item: item[0])[1])
            return torch.cat([ends[:1], inner(), ends[1:]])

    adam = torch.optim.Adam([u], lr=RATE)
    for k in range(iterations):
        adam.param_groups[0]["lr"] = RATE * (1 - k / iterations)
        adam.zero_grad()
        value = loss()
        note(value.detach())
        value.backward()  # type: ignore[no-untyped-call]
        if u.grad is None or not bool(torch.isfinite(u.grad).all()):
            break
        adam.step()
    found = [best()]
    most = max(1, iterations // 3)
    newton = torch.optim.LBFGS([u], max_iter=most, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> float:
        """ln E^2 and its gradient; a large number and none where they are not finite."""
        newton.zero_grad()
        if not bool(torch.isfinite(u).all()):
            return 1e10
        value = loss()
        note(value.detach())
        value.backward()  # type: ignore[no-untyped-call]
        if u.grad is None or not bool(torch.isfinite(u.grad).all()):
            newton.zero_grad()
        return float(value.detach()) if math.isfinite(float(value.detach())) else 1e10

    if iterations:
        newton.step(closure)  # type: ignore[no-untyped-call]
        found.append(best())
    return [times for times in found if bool((times.diff() < 0).all())]
