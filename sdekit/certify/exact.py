r"""Exact law of a plan's output on a Gaussian target: no random numbers, no Monte Carlo error.

For data N(m, C) the denoiser is affine, and in the eigenbasis of C it acts on each direction alone:

    D(x) = m + alpha c / (alpha^2 c + sigma^2) (x - alpha m),  c an eigenvalue of C.

A plan's Combines have scalar weights, so every register is, direction by direction,

    r = b + g x_init + sum_k G_k xi_k

with numbers b, g, G_k that the plan's own instructions propagate. The output is Gaussian with mean
b + g mu_T and variance g^2 v_T + sum_k G_k^2, for any law N(mu_T, v_T) of the initial state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sdekit.errors import DirectionError, NotAffineError
from sdekit.samplers.base import Sampler
from sdekit.samplers.build import GridLike, plan, same_schedule
from sdekit.samplers.plan import Combine, Evaluate, Plan, state
from sdekit.score.predictions import conversion
from sdekit.sde.gaussian import GaussianDiffusion
from sdekit.targets.gaussian import Gaussian

__all__ = ["Certificate", "Component", "Law", "certify", "propagate"]


@dataclass(frozen=True)
class Law:
    """A Gaussian in the target's eigenbasis: coordinates of the mean and standard deviations, (D,)."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Component:
    """One part of the error, per eigendirection: differences of means and of standard deviations, (D,).

    The parts of a certificate add up: initial + discretization + truncation = output - reference, in
    ``mean`` and in ``std``. Norms need not add.
    """

    mean: Tensor
    std: Tensor

    @property
    def norm(self) -> float:
        """sqrt(|mean|^2 + |std|^2): the W2 distance that this part alone would make."""
        return float(torch.sqrt(self.mean.square().sum() + self.std.square().sum()))

    def __float__(self) -> float:
        return self.norm

    def __repr__(self) -> str:
        return f"Component(norm={self.norm:.4g})"


def _minus(a: Law, b: Law) -> Component:
    return Component(a.mean - b.mean, a.std - b.std)


@dataclass(frozen=True)
class Certificate:
    """The exact law of a sampler's output and its distance to the reference law, per direction and in all.

    law, reference: output and reference in the target's eigenbasis. initial: from starting at the
    process's prior instead of the true marginal. discretization: from the plan's steps. truncation: from
    ending at t_min (with end="clean": from ending with the Tweedie map there) instead of at the data.
    """

    plan: Plan
    target: Gaussian
    against: str
    law: Law
    reference: Law
    initial: Component
    discretization: Component
    truncation: Component

    @cached_property
    def mean(self) -> Tensor:
        """(*event,) mean of the output."""
        return self.target.from_basis(self.law.mean[None])[0]

    @cached_property
    def cov(self) -> Tensor:
        """(D, D) covariance of the output."""
        variance = self.law.std**2
        if self.target.basis is None:
            return torch.diag(variance)
        basis = self.target.basis.to(variance)
        return (basis * variance) @ basis.T

    @property
    def error(self) -> Component:
        """Output minus reference, the sum of the three parts."""
        return _minus(self.law, self.reference)

    @property
    def w2(self) -> float:
        """2-Wasserstein distance to the reference: W2^2 = sum (mean difference)^2 + (std difference)^2."""
        return self.error.norm

    @property
    def kl(self) -> float:
        """KL(output || reference) in nats; inf where the output has no density."""
        ratio = self.law.std / self.reference.std
        excess = (ratio - 1) * (ratio + 1)
        shift = self.error.mean / self.reference.std
        return float(0.5 * (_minus_log1p(excess) + shift.square()).sum())

    @property
    def nfe(self) -> int:
        """Evaluations for one sample."""
        return self.plan.nfe

    def __repr__(self) -> str:
        return (
            f"Certificate({self.plan.sampler!r}, nfe={self.nfe}, W2 to "
            f"{'data' if self.against == 'data' else 'marginal at t_min'} = {self.w2:.6g}, KL = "
            f"{self.kl:.6g}; initial {self.initial.norm:.3g}, discretization "
            f"{self.discretization.norm:.3g}, truncation {self.truncation.norm:.3g})"
        )


def _minus_log1p(e: Tensor) -> Tensor:
    """e - log(1 + e), accurate near 0."""
    series = e * e * (0.5 - e * (1 / 3 - e * (0.25 - e * 0.2)))
    return torch.where(e.abs() < 1e-3, series, e - torch.log1p(e))


def propagate(plan: Plan, eigenvalues: Tensor, mean: Tensor) -> Tensor:
    """(2 + K, D): rows b, g and G_1, ..., G_K of the plan's output (see the module's equations).

    eigenvalues, mean: (D,) float64, the target's eigenvalues and the coordinates of its mean.
    Differentiable in the plan's weights and nodes. Raises NotAffineError for a plan with `Apply`.
    """
    _require_affine(plan)
    zero, one = torch.zeros_like(mean), torch.ones_like(mean)
    registers: dict[str, Tensor] = {state(0): torch.stack([zero, one])}
    row: dict[int, int] = {}
    last = {name: k for k, ins in enumerate(plan.instructions) for name in ins.inputs}
    for k, ins in enumerate(plan.instructions):
        if isinstance(ins, Evaluate):
            out = _denoise(ins, registers[ins.x], eigenvalues, mean)
        else:
            assert isinstance(ins, Combine)
            for _, draw in ins.noise:
                row.setdefault(draw, 2 + len(row))
            out = _sum(ins, registers, row)
        registers[ins.out] = out
        for name in ins.inputs:
            if last[name] == k and name != plan.output:
                registers.pop(name, None)
    return registers[plan.output]


def _denoise(ins: Evaluate, x: Tensor, c: Tensor, m: Tensor) -> Tensor:
    assert ins.node is not None
    _, alpha, sigma, *_ = ins.node
    gain = alpha * c / (alpha * alpha * c + sigma * sigma)
    p, q = conversion("x0", ins.predicts, ins.node, None, ins.data_std)
    out = x * (p + q * gain)
    constant = q * (1 - alpha * gain) * m
    return torch.cat([(out[0] + constant)[None], out[1:]])


def _sum(ins: Combine, registers: dict[str, Tensor], row: dict[int, int]) -> Tensor:
    parts = [(w, registers[name]) for w, name in ins.terms]
    height = max([part.shape[0] for _, part in parts] + [row[draw] + 1 for _, draw in ins.noise])
    total = torch.zeros((height, parts[0][1].shape[1]), dtype=torch.float64)
    for w, part in parts:
        total = total + torch.nn.functional.pad(part * w, (0, 0, 0, height - part.shape[0]))
    for c, draw in ins.noise:
        unit = torch.zeros(height, 1, dtype=torch.float64)
        unit[row[draw]] = 1.0
        total = total + unit * c
    return total


def _require_affine(plan: Plan) -> None:
    if plan.affine:
        return
    name = next(ins.name for ins in plan.instructions if not isinstance(ins, Evaluate | Combine))
    raise NotAffineError(
        f"{plan.sampler!r} applies {name!r}, which is not affine in the noise: its output is not Gaussian, "
        f"and an exact certificate would be false. Next: sdekit.certify_monte_carlo(...) measures the same "
        f"distances from samples, with a confidence interval."
    )


def certify(
    sampler: str | Sampler | Plan,
    target: Gaussian,
    process: GaussianDiffusion,
    *,
    steps: int | None = None,
    nfe: int | None = None,
    grid: GridLike = None,
    end: str = "t_min",
    eta: float | None = None,
    against: str = "data",
) -> Certificate:
    """The exact law that ``sampler`` produces on Gaussian data, and its distances W2 and KL.

    The run certified is the run made: start at the process's prior, every step of the plan, noise of the
    last step kept. The three parts of the error are telescoped:

        initial         law from the prior - law from the true marginal at the first time
        discretization  law from the true marginal - exact law at the last node
        truncation      exact law at the last node - data

    with the exact law at a clean node that of D(x, t_min), x from the true marginal.

    Parameters
    ----------
    sampler
        A name, a sampler object or a `Plan` (any prediction, lowered or not).
    target
        A `Gaussian`; one eigendecomposition serves every certificate of it.
    steps, nfe, grid, end, eta
        As in `sdekit.plan`.
    against
        "data": the data law. "t_min": the marginal at the end time, without truncation.

    Raises
    ------
    NotAffineError: the plan has steps that are not affine. TypeError: the target is not Gaussian.
    DirectionError: the plan goes from data to noise (end="t_max").
    """
    if not isinstance(target, Gaussian):
        raise TypeError(
            f"certify needs a Gaussian target, got {type(target).__name__}: only there is the output's law "
            f"Gaussian. Next: Gaussian(mean, cov) with the target's own covariance, or "
            f"sdekit.certify_monte_carlo for the target itself."
        )
    if against not in ("data", "t_min"):
        raise ValueError(f"against must be 'data' or 't_min', got {against!r}.")
    made = as_plan(sampler, target, process, steps, nfe, grid, end, eta)
    c = target.eigenvalues.to(dtype=torch.float64, device="cpu")
    m = target.to_basis(target.mean[None]).reshape(-1).to(dtype=torch.float64, device="cpu")
    rows = propagate(made, c, m)
    first, last = made.nodes[0], made.nodes[-2] if made.end == "clean" else made.nodes[-1]
    prior = _output(rows, torch.zeros_like(m), torch.full_like(c, made.prior_std))
    exact = _output(rows, first.alpha * m, torch.sqrt(first.alpha**2 * c + first.sigma**2))
    std_end = torch.sqrt(last.alpha**2 * c + last.sigma**2)
    reached = Law(m, last.alpha * c / std_end) if made.end == "clean" else Law(last.alpha * m, std_end)
    reference = Law(m, torch.sqrt(c)) if against == "data" else reached
    return Certificate(
        plan=made,
        target=target,
        against=against,
        law=prior,
        reference=reference,
        initial=_minus(prior, exact),
        discretization=_minus(exact, reached),
        truncation=_minus(reached, reference),
    )


def _output(rows: Tensor, mean: Tensor, std: Tensor) -> Law:
    variance = (rows[1] * std).square() + rows[2:].square().sum(dim=0)
    return Law(rows[0] + rows[1] * mean, torch.sqrt(variance))


def as_plan(
    sampler: str | Sampler | Plan,
    target: Gaussian,
    process: GaussianDiffusion,
    steps: int | None,
    nfe: int | None,
    grid: GridLike,
    end: str,
    eta: float | None,
) -> Plan:
    """The plan to certify, made with what the target knows of itself."""
    if isinstance(sampler, Plan):
        given: Sequence[object] = (steps, nfe, grid, eta)
        if any(value is not None for value in given) or end != "t_min":
            raise ValueError("a Plan holds its own steps, grid, end and eta; pass it alone.")
        _require_data(sampler.end)
        same_schedule(sampler, process)
        return sampler
    _require_data(end)
    return plan(
        sampler,
        process,
        steps=steps,
        nfe=nfe,
        grid=grid,
        end=end,
        eta=eta,
        data_std=target.data_std,
        data_spread=target.data_spread,
    )


def _require_data(end: str) -> None:
    """Refuse plans that go from data to noise: a certificate is of samples."""
    if end == "t_max":
        raise DirectionError(
            "expected a plan from noise to data, got end = 't_max', data to noise: its output is no sample "
            "of the data. Likely cause: a plan made for sdekit.encode. Next: certify the same sampler with "
            "end='t_min' or 'clean'; sdekit.roundtrip measures what encoding loses."
        )
