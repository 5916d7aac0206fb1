"""The diffusions in use, each in closed form and exact at both ends."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdekit.sde.coefficients import coefficient, inverse
from sdekit.sde.gaussian import GaussianDiffusion
from sdekit.sde.preserving import VP, DiscreteVP, SubVP
from sdekit.sde.spec import check_ordered, check_t_min, freeze

__all__ = ["EDM", "VE", "VP", "Cosine", "DiscreteVP", "GaussianDiffusion", "RectifiedFlow", "SubVP"]

HALF_PI = 0.5 * math.pi


@dataclass(frozen=True, repr=False)
class VE(GaussianDiffusion):
    """Variance exploding, dx = sigma sqrt(2 log(sigma_max / sigma_min)) dw on [0, 1],

        alpha = 1,   sigma(t) = sigma_min (sigma_max / sigma_min)^t,   prior N(0, sigma_max^2 I).

    The marginal given clean data has variance sigma(t)^2, the transition from time 0 has
    sigma(t)^2 - sigma_min^2. 0 < sigma_min < sigma_max in units of the data; ValueError otherwise.
    Song et al. 2021 (arXiv:2011.13456), equation 9 and appendix B.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = field(default=1e-5, kw_only=True)

    def __post_init__(self) -> None:
        check_ordered(self, "sigma_min", "sigma_max", "0.01, 50.0")
        check_t_min(self)

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max) - math.log(self.sigma_min)

    def _sigma(self, t: Tensor) -> Tensor:
        inside = torch.exp(math.log(self.sigma_min) * (1.0 - t) + math.log(self.sigma_max) * t)
        # An exponential of a logarithm is off by an ulp; the correction makes both ends exact.
        rounding = torch.where(t == 0, self.sigma_min - inside, torch.zeros_like(t))
        rounding = torch.where(t == 1, self.sigma_max - inside, rounding)
        return inside + rounding.detach()

    @coefficient
    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 + 0.0 * t

    @coefficient
    def log_alpha(self, t: Tensor) -> Tensor:
        return 0.0 * t

    @coefficient
    def dalpha(self, t: Tensor) -> Tensor:
        return 0.0 * t

    @coefficient
    def sigma(self, t: Tensor) -> Tensor:
        return self._sigma(t)

    @coefficient
    def dsigma(self, t: Tensor) -> Tensor:
        return self._rate * self._sigma(t)

    @coefficient
    def half_log_snr(self, t: Tensor) -> Tensor:
        return -(math.log(self.sigma_min) * (1.0 - t) + math.log(self.sigma_max) * t)

    @inverse
    def t_of_half_log_snr(self, lam: Tensor) -> Tensor:
        return (-lam - math.log(self.sigma_min)) / self._rate

    @coefficient
    def drift_coefficient(self, t: Tensor) -> Tensor:
        return 0.0 * t

    @coefficient
    def diffusion_squared(self, t: Tensor) -> Tensor:
        return 2.0 * self._rate * self._sigma(t) ** 2


@dataclass(frozen=True, repr=False)
class Cosine(GaussianDiffusion):
    """alpha = cos(pi t/2), sigma = sin(pi t/2) on [0, 1],

        f = -(pi/2) tan(pi t/2),   g^2 = pi tan(pi t/2),   prior N(0, I).

    alpha(1) = 0 exactly: f and g are infinite there. Salimans and Ho 2022 (arXiv:2202.00512), section 4.
    """

    t_min: float = field(default=1e-3, kw_only=True)

    def __post_init__(self) -> None:
        check_t_min(self)

    @staticmethod
    def _cos(t: Tensor) -> Tensor:
        return torch.sin(HALF_PI * (1.0 - t))  # exact at both ends, accurate where it is small

    @coefficient
    def alpha(self, t: Tensor) -> Tensor:
        return self._cos(t)

    @coefficient
    def dalpha(self, t: Tensor) -> Tensor:
        return -HALF_PI * torch.sin(HALF_PI * t)

    @coefficient
    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(HALF_PI * t)

    @coefficient
    def dsigma(self, t: Tensor) -> Tensor:
        return HALF_PI * self._cos(t)

    @coefficient
    def half_log_snr(self, t: Tensor) -> Tensor:
        return torch.log(self._cos(t)) - torch.log(torch.sin(HALF_PI * t))

    @inverse
    def t_of_half_log_snr(self, lam: Tensor) -> Tensor:
        return torch.atan(torch.exp(-lam)) / HALF_PI

    @coefficient
    def drift_coefficient(self, t: Tensor) -> Tensor:
        return -HALF_PI * torch.sin(HALF_PI * t) / self._cos(t)

    @coefficient
    def diffusion_squared(self, t: Tensor) -> Tensor:
        return math.pi * torch.sin(HALF_PI * t) / self._cos(t)


@dataclass(frozen=True, repr=False)
class RectifiedFlow(GaussianDiffusion):
    """alpha = 1 - t, sigma = t on [0, 1]: straight lines from data to noise,

        f = -1/(1 - t),   g^2 = 2 t/(1 - t),   prior N(0, I).

    alpha(1) = 0 exactly: f and g are infinite there. Liu et al. 2023 (arXiv:2209.03003), equation 1;
    Lipman et al. 2023 (arXiv:2210.02747), with t reversed.
    """

    t_min: float = field(default=1e-3, kw_only=True)

    def __post_init__(self) -> None:
        check_t_min(self)

    @coefficient
    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - t

    @coefficient
    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.log1p(-t)

    @coefficient
    def dalpha(self, t: Tensor) -> Tensor:
        return 0.0 * t - 1.0

    @coefficient
    def sigma(self, t: Tensor) -> Tensor:
        return t

    @coefficient
    def dsigma(self, t: Tensor) -> Tensor:
        return 0.0 * t + 1.0

    @coefficient
    def half_log_snr(self, t: Tensor) -> Tensor:
        return torch.log1p(-t) - torch.log(t)

    @inverse
    def t_of_half_log_snr(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam)

    @coefficient
    def drift_coefficient(self, t: Tensor) -> Tensor:
        return -1.0 / (1.0 - t)

    @coefficient
    def diffusion_squared(self, t: Tensor) -> Tensor:
        return 2.0 * t / (1.0 - t)


@dataclass(frozen=True, repr=False)
class EDM(GaussianDiffusion):
    """alpha = 1, sigma = t: dx = sqrt(2 t) dw, the time is the noise level itself,

        t from sigma_min (data) to sigma_max (noise),   prior N(0, sigma_max^2 I).

    Coefficients exist at every t >= 0. 0 < sigma_min < sigma_max in units of the data; ValueError
    otherwise. Karras et al. 2022 (arXiv:2206.00364), equation 4 and table 1.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    t_min: float = field(init=False, repr=False, compare=False)
    t_max: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_ordered(self, "sigma_min", "sigma_max", "0.002, 80.0")
        freeze(self, t_min=self.sigma_min, t_max=self.sigma_max)

    @property
    def domain(self) -> tuple[float, float]:
        """[0, inf)."""
        return 0.0, math.inf

    @coefficient
    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 + 0.0 * t

    @coefficient
    def log_alpha(self, t: Tensor) -> Tensor:
        return 0.0 * t

    @coefficient
    def dalpha(self, t: Tensor) -> Tensor:
        return 0.0 * t

    @coefficient
    def sigma(self, t: Tensor) -> Tensor:
        return t

    @coefficient
    def dsigma(self, t: Tensor) -> Tensor:
        return 0.0 * t + 1.0

    @coefficient
    def rho(self, t: Tensor) -> Tensor:
        return t

    @inverse
    def t_of_rho(self, rho: Tensor) -> Tensor:
        return rho

    @coefficient
    def half_log_snr(self, t: Tensor) -> Tensor:
        return -torch.log(t)

    @inverse
    def t_of_half_log_snr(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam)

    @coefficient
    def drift_coefficient(self, t: Tensor) -> Tensor:
        return 0.0 * t

    @coefficient
    def diffusion_squared(self, t: Tensor) -> Tensor:
        return 2.0 * t
