"""What a certificate holds: laws in the target's eigenbasis, and the parts of their difference."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from sdekit.samplers.plan import Plan
from sdekit.targets.gaussian import Gaussian

__all__ = ["Certificate", "Component", "Law"]


@dataclass(frozen=True, eq=False)
class Law:
    """A Gaussian in the target's eigenbasis: coordinates of the mean and standard deviations, (D,)."""

    mean: Tensor
    std: Tensor

    def __sub__(self, other: Law) -> Component:
        return Component(self.mean - other.mean, self.std - other.std)


@dataclass(frozen=True, eq=False)
class Component:
    """One part of the error, per eigendirection: differences of means and of standard deviations, (D,).

    The parts of a certificate add up: initial + discretization + score_error + truncation = output -
    reference, in ``mean`` and in ``std``. Norms need not add.
    """

    mean: Tensor
    std: Tensor

    @property
    def squared_norm(self) -> Tensor:
        """|mean|^2 + |std|^2, (): the same as ``norm`` squared, with its gradient."""
        return self.mean.square().sum() + self.std.square().sum()

    @property
    def norm(self) -> float:
        """sqrt(|mean|^2 + |std|^2): the W2 distance that this part alone would make."""
        return float(self.squared_norm.detach().sqrt())

    def __float__(self) -> float:
        return self.norm

    def __repr__(self) -> str:
        return f"Component(norm={self.norm:.4g})"


@dataclass(frozen=True, kw_only=True, eq=False)
class Certificate:
    """The exact law of a sampler's output and its distance to the reference law, per direction and in all.

    name, nfe: the sampler, and its evaluations for one sample (None where nobody counted). plan: its
    instructions; None for a black box. law, reference: output and reference in the target's eigenbasis.
    initial: from starting at the process's prior instead of the true marginal. discretization: from the
    plan's steps. score_error: from a model that is not the exact denoiser. truncation: from ending at t_min
    (with end="clean": from ending with the Tweedie map there) instead of at the data.

    Numbers are floats. ``error.squared_norm`` (W2 squared) and ``divergence`` (KL) are tensors, with
    gradients when nodes or weights of the plan have them.
    """

    name: str
    target: Gaussian
    against: str
    law: Law = field(repr=False)
    reference: Law = field(repr=False)
    initial: Component
    discretization: Component
    score_error: Component
    truncation: Component
    plan: Plan | None = None
    nfe: int | None = None
    stochastic: bool = False

    @cached_property
    def mean(self) -> Tensor:
        """(*event,) mean of the output."""
        return self.target.from_basis(self.law.mean[None])[0]

    @cached_property
    def cov(self) -> Tensor:
        """(D, D) covariance of the output. Raises ShapeError where D^2 numbers are too many."""
        return self.target.assemble(self.law.std**2)

    @property
    def error(self) -> Component:
        """Output minus reference, the sum of the four parts."""
        return self.law - self.reference

    @property
    def w2(self) -> float:
        """2-Wasserstein distance to the reference: W2^2 = sum (mean difference)^2 + (std difference)^2."""
        return self.error.norm

    @property
    def frechet(self) -> float:
        """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), the Frechet distance as FID takes it: W2 squared."""
        return float(self.error.squared_norm.detach())

    @property
    def kl(self) -> float:
        """KL(output || reference) in nats; inf where the output has no density."""
        return float(self.divergence.detach())

    @property
    def divergence(self) -> Tensor:
        """``kl`` as a tensor ()."""
        ratio = self.law.std / self.reference.std
        excess = (ratio - 1) * (ratio + 1)
        shift = self.error.mean / self.reference.std
        return 0.5 * (_minus_log1p(excess) + shift.square()).sum()

    def __repr__(self) -> str:
        parts = {"initial": self.initial, "discretization": self.discretization}
        if self.score_error.norm > 0:
            parts["score error"] = self.score_error
        parts["truncation"] = self.truncation
        split = ", ".join(f"{name} {part.norm:.3g}" for name, part in parts.items())
        evaluations = "" if self.nfe is None else f"nfe={self.nfe}, "
        return (
            f"{type(self).__name__}({self.name!r}, {evaluations}W2 to "
            f"{'data' if self.against == 'data' else 'marginal at t_min'} = {self.w2:.6g}, KL = "
            f"{self.kl:.6g}; {split})"
        )


def _minus_log1p(e: Tensor) -> Tensor:
    """e - log(1 + e), accurate near 0."""
    small = e.abs() < 1e-3
    near = torch.where(small, e, 0.0)
    series = near * near * (0.5 - near * (1 / 3 - near * (0.25 - near * 0.2)))
    return torch.where(small, series, e - torch.log1p(torch.where(small, 0.0, e)))
