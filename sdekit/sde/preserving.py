"""Variance preserving diffusions, alpha = exp(-B/2): VP, sub-VP, and VP from a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdekit.sde.coefficients import coefficient, inverse
from sdekit.sde.gaussian import GaussianDiffusion
from sdekit.sde.spec import check_ordered, check_t_min, freeze

__all__ = ["VP", "DiscreteVP", "SubVP"]


class _Exponential(GaussianDiffusion):
    """alpha = exp(-B/2), sigma^2 = 1 - exp(-B), with B' = beta: f = -beta/2, g^2 = beta."""

    def _integral(self, t: Tensor) -> Tensor:
        """B(t)."""
        raise NotImplementedError

    def _beta(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def _t_of_integral(self, b: Tensor) -> Tensor:
        raise NotImplementedError

    @coefficient
    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._integral(t))

    @coefficient
    def log_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * self._integral(t)

    @coefficient
    def dalpha(self, t: Tensor) -> Tensor:
        return -0.5 * self._beta(t) * torch.exp(-0.5 * self._integral(t))

    @coefficient
    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    @coefficient
    def dsigma(self, t: Tensor) -> Tensor:
        b = self._integral(t)
        return 0.5 * self._beta(t) * torch.exp(-b) / torch.sqrt(-torch.expm1(-b))

    @coefficient
    def half_log_snr(self, t: Tensor) -> Tensor:
        b = self._integral(t)
        return -0.5 * (b + torch.log(-torch.expm1(-b)))

    @inverse
    def t_of_half_log_snr(self, lam: Tensor) -> Tensor:
        return self._t_of_integral(torch.logaddexp(-2.0 * lam, torch.zeros_like(lam)))

    @coefficient
    def drift_coefficient(self, t: Tensor) -> Tensor:
        return -0.5 * self._beta(t)

    @coefficient
    def diffusion_squared(self, t: Tensor) -> Tensor:
        return self._beta(t)

    def prior_std(self, t: float | None = None) -> float:
        """1: sqrt(alpha^2 + sigma^2) at every time."""
        if t is not None:
            self.alpha(t)
        return 1.0


@dataclass(frozen=True, repr=False)
class VP(_Exponential):
    """Variance preserving, dx = -1/2 beta(t) x dt + sqrt(beta(t)) dw on [0, 1],

        beta(t) = beta_min + t (beta_max - beta_min),   B(t) = int_0^t beta,
        alpha = exp(-B/2),   sigma^2 = 1 - exp(-B),   prior N(0, I).

    0 < beta_min < beta_max, both per unit of time. Raises ValueError otherwise.
    Song et al. 2021 (arXiv:2011.13456), equation 11 and appendix B.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = field(default=1e-3, kw_only=True)

    def __post_init__(self) -> None:
        check_ordered(self, "beta_min", "beta_max", "0.1, 20.0")
        check_t_min(self)

    def _integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _t_of_integral(self, b: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        return 2.0 * b / (self.beta_min + torch.sqrt(self.beta_min**2 + 2.0 * slope * b))


@dataclass(frozen=True, repr=False)
class SubVP(VP):
    """Sub-variance preserving, dx = -1/2 beta x dt + sqrt(beta (1 - exp(-2 B))) dw on [0, 1],

        alpha = exp(-B/2),   sigma = 1 - exp(-B),   sigma/alpha = 2 sinh(B/2),   prior N(0, I),

    with beta and B of `VP`. Song et al. 2021 (arXiv:2011.13456), equation 12 and appendix B.
    """

    @coefficient
    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self._integral(t))

    @coefficient
    def dsigma(self, t: Tensor) -> Tensor:
        return self._beta(t) * torch.exp(-self._integral(t))

    @coefficient
    def half_log_snr(self, t: Tensor) -> Tensor:
        b = self._integral(t)
        return -(0.5 * b + torch.log(-torch.expm1(-b)))

    @inverse
    def t_of_half_log_snr(self, lam: Tensor) -> Tensor:
        return self._t_of_integral(2.0 * torch.asinh(0.5 * torch.exp(-lam)))

    @coefficient
    def diffusion_squared(self, t: Tensor) -> Tensor:
        return self._beta(t) * -torch.expm1(-2.0 * self._integral(t))

    def prior_std(self, t: float | None = None) -> float:
        """1 at t_max, where sigma is 1 - exp(-B); sigma(t) before."""
        return 1.0 if t is None or t >= self.t_max else float(self.sigma(t))


@dataclass(frozen=True, repr=False)
class DiscreteVP(_Exponential):
    """The discrete diffusion of a table of N cumulative products, as a process in continuous time,

        alpha(t)^2 = alphas_cumprod[t - 1] at t = 1, ..., N,   alpha(0) = 1,   sigma^2 = 1 - alpha^2,

    log alpha piecewise linear in t between them. At a node the derivative (beta, drift, diffusion) is that
    of the interval that ends there. t_min = 1, t_max = N, prior N(0, I).

    alphas_cumprod: N >= 1 numbers in (0, 1), strictly decreasing; ValueError otherwise. Give float64: a
    float32 table is off by 1e-4 in sigma at t = 1 (`from_betas` computes in float64).
    Ho et al. 2020 (arXiv:2006.11239), equation 4.
    """

    alphas_cumprod: Sequence[float] | Tensor = field(repr=False)
    t_min: float = field(init=False, repr=False, compare=False)
    t_max: float = field(init=False, repr=False, compare=False)
    _tables: dict[torch.device, Tensor] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        values = _check_table(self.alphas_cumprod)
        table = torch.cat([values.new_zeros(1), 0.5 * torch.log(values)])
        freeze(self, alphas_cumprod=tuple(values.tolist()), t_min=1.0, t_max=float(len(values)))
        freeze(self, _tables={table.device: table})

    @classmethod
    def from_betas(cls, betas: Sequence[float] | Tensor) -> DiscreteVP:
        """From the N one-step variances beta_k in (0, 1): alphas_cumprod = cumprod(1 - beta), in float64."""
        b = torch.as_tensor(betas, dtype=torch.float64).detach().cpu()
        return cls(torch.cumprod(1.0 - b, dim=0))

    def _log_alphas(self, t: Tensor) -> Tensor:
        """log alpha at t = 0, ..., N, (N + 1,), on t's device."""
        if t.device not in self._tables:
            self._tables[t.device] = next(iter(self._tables.values())).to(t.device)
        return self._tables[t.device]

    def _interval(self, t: Tensor) -> Tensor:
        """Index of the interval (j, j + 1] that holds t."""
        last = int(self.t_max) - 1
        return (torch.ceil(t.detach()) - 1.0).nan_to_num(0.0).clamp(0, last).to(torch.int64)

    def _integral(self, t: Tensor) -> Tensor:
        table, j = self._log_alphas(t), self._interval(t)
        w = t - j
        return -2.0 * ((1.0 - w) * table[j] + w * table[j + 1])

    def _beta(self, t: Tensor) -> Tensor:
        table, j = self._log_alphas(t), self._interval(t)
        return 2.0 * (table[j] - table[j + 1]) + 0.0 * t

    def _t_of_integral(self, b: Tensor) -> Tensor:
        nodes = -2.0 * self._log_alphas(b)
        j = (torch.searchsorted(nodes, b.detach().contiguous()) - 1).clamp(0, len(nodes) - 2)
        return j + (b - nodes[j]) / (nodes[j + 1] - nodes[j])

    def __repr__(self) -> str:
        a = self.alphas_cumprod
        return f"DiscreteVP(<{len(a)} alphas_cumprod, {a[0]:g} to {a[-1]:g}>)"


def _check_table(table: object) -> Tensor:
    """alphas_cumprod as a float64 tensor (N,) on the host, or a ValueError that says what is wrong."""
    try:
        values = torch.as_tensor(table, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"alphas_cumprod must be N numbers, got {type(table).__name__}: {error}.") from error
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"alphas_cumprod must have shape (N,), N >= 1, got {tuple(values.shape)}.")
    if not bool(((values > 0) & (values < 1)).all()):
        k = int((~((values > 0) & (values < 1))).nonzero()[0])
        cause = (
            "a table with zero terminal SNR; Cosine and RectifiedFlow are processes with alpha = 0 at the end"
            if k == len(values) - 1 and values[k] == 0
            else "a table that starts with alpha = 1 (leave that entry out), or another quantity"
        )
        raise ValueError(
            f"alphas_cumprod must lie strictly between 0 and 1, got {float(values[k]):g} at index {k}. "
            f"Likely cause: {cause}."
        )
    if not bool((values.diff() < 0).all()):
        k = int((values.diff() >= 0).nonzero()[0]) + 1
        raise ValueError(
            f"alphas_cumprod must decrease strictly, but entry {k} is {float(values[k]):g} after "
            f"{float(values[k - 1]):g}. Likely cause: betas or alphas in its place, or a reversed table. "
            f"Next: DiscreteVP.from_betas(betas)."
        )
    return values
