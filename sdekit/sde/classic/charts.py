"""SDEs that a change of variable makes a Brownian motion with drift, so that every path is known."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sdekit._typing import Number
from sdekit.sde.base import SDE
from sdekit.sde.classic._door import check_domain, elapsed, positive
from sdekit.sde.classic.laws import Transformed
from sdekit.sde.coefficients import as_tensor
from sdekit.sde.laws import Normal
from sdekit.sde.rows import constant, over_event, parameter

__all__ = ["ArctanDiffusion", "DecayingAdditive", "SinhDiffusion", "TanhDiffusion"]


class _Charted(SDE):
    """psi(X_t, t) = psi(X_s, s) + trend (t - s) + scale (W_t - W_s), psi increasing in X, elementwise.

    By Ito's formula the diffusion of X is scale/(d psi/dx).
    """

    noise_type: str = "diagonal"
    _claims_checked: bool = True

    def _rates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(trend, scale) in x's dtype and device."""
        raise NotImplementedError

    def to_brownian(self, x: Tensor, t: Number) -> Tensor:
        """psi(x, t), (B, *event). Raises ValueError outside the domain."""
        raise NotImplementedError

    def from_brownian(self, y: Tensor, t: Number) -> Tensor:
        """The x with psi(x, t) = y, (B, *event)."""
        raise NotImplementedError

    def solution(self, x0: Tensor, t: Number, w: Tensor) -> Tensor:
        """X_t on the path with X_0 = x0 and W_t = w, (B, *event); t: () or (B,)."""
        trend, scale = self._rates(x0)
        h = elapsed(x0, 0.0, t).to(x0.dtype)
        return self.from_brownian(self.to_brownian(x0, 0.0) + trend * h + scale * w, t)

    def transition(self, x: Tensor, s: Number, t: Number) -> Any:
        """Law of X_t given X_s = x, elementwise. s <= t: () or (B,).

        Raises DirectionError for s > t, ValueError for x outside the domain.
        """
        trend, scale = self._rates(x)
        h = elapsed(x, s, t).to(x.dtype)
        return Transformed(
            self.to_brownian(x, s) + trend * h,
            scale * torch.sqrt(h),
            lambda y: self.from_brownian(y, t),
            lambda z: self.to_brownian(z, t),
            lambda z: self.diffusion(z, t) / scale,
        )

    def __repr__(self) -> str:
        values = (f"{k}={v.tolist()}" for k, v in vars(self).items() if isinstance(v, Tensor))
        return f"{type(self).__name__}({', '.join(values)})"


class ArctanDiffusion(_Charted):
    """dX = -a^2 sin X cos^3 X dt + a cos^2 X dW, elementwise, with X_t = arctan(tan x0 + a W_t).

    a > 0 (1/sqrt(time)): a number, or a tensor that broadcasts to the event; |x| < pi/2. Its noise is not
    linear, its drift comes from the noise alone. Kloeden and Platen 1992, section 4.4.

    Raises ValueError for a <= 0, NonFiniteError for NaN.
    """

    def __init__(self, a: Any = 1.0) -> None:
        self.a = positive(a, "a", "a")
        super().__init__()

    def _rates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.new_zeros(()), parameter(self.a, x)

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """-a^2 sin x cos^3 x, (B, *event)."""
        return -(parameter(self.a, x) ** 2) * torch.sin(x) * torch.cos(x) ** 3

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """a cos^2 x, (B, *event)."""
        return parameter(self.a, x) * torch.cos(x) ** 2

    def divergence_ggt(self, x: Tensor, t: Number) -> Tensor:
        """-4 a^2 sin x cos^3 x, (B, *event)."""
        return 4.0 * self.drift(x, t)

    def correction(self, x: Tensor, t: Number) -> Tensor:
        """-a^2 sin x cos^3 x, (B, *event): the Stratonovich drift is 0."""
        return self.drift(x, t)

    def to_brownian(self, x: Tensor, t: Number) -> Tensor:
        """tan x, (B, *event). Raises ValueError unless |x| < pi/2."""
        check_domain(x, x.abs() < 0.5 * math.pi, "(-pi/2, pi/2)")
        return torch.tan(x)

    def from_brownian(self, y: Tensor, t: Number) -> Tensor:
        """arctan y, (B, *event)."""
        return torch.atan(y)


class TanhDiffusion(_Charted):
    """dX = -(a + b^2 X)(1 - X^2) dt + b (1 - X^2) dW, with X_t = tanh(artanh x0 - a t + b W_t), elementwise.

    a (1/time), b > 0 (1/sqrt(time)): numbers, or tensors that broadcast to the event; |x| < 1. Both
    coefficients are polynomials that grow faster than linearly, and the path stays between -1 and 1.
    Kloeden and Platen 1992, section 4.4.

    Raises ValueError for b <= 0, NonFiniteError for NaN.
    """

    def __init__(self, a: Any = 1.0, b: Any = 1.0) -> None:
        self.a, self.b = constant(a, "a"), positive(b, "b", "a, b")
        super().__init__()

    def _rates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return -parameter(self.a, x), parameter(self.b, x)

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """-(a + b^2 x)(1 - x^2), (B, *event)."""
        return -(parameter(self.a, x) + parameter(self.b, x) ** 2 * x) * (1.0 - x * x)

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """b (1 - x^2), (B, *event)."""
        return parameter(self.b, x) * (1.0 - x * x)

    def divergence_ggt(self, x: Tensor, t: Number) -> Tensor:
        """-4 b^2 x (1 - x^2), (B, *event)."""
        return -4.0 * parameter(self.b, x) ** 2 * x * (1.0 - x * x)

    def correction(self, x: Tensor, t: Number) -> Tensor:
        """-b^2 x (1 - x^2), (B, *event)."""
        return 0.25 * self.divergence_ggt(x, t)

    def to_brownian(self, x: Tensor, t: Number) -> Tensor:
        """artanh x, (B, *event). Raises ValueError unless |x| < 1."""
        check_domain(x, x.abs() < 1.0, "(-1, 1)")
        return torch.atanh(x)

    def from_brownian(self, y: Tensor, t: Number) -> Tensor:
        """tanh y, (B, *event)."""
        return torch.tanh(y)


class SinhDiffusion(_Charted):
    """dX = (X/2 + sqrt(X^2 + 1)) dt + sqrt(X^2 + 1) dW, with X_t = sinh(arsinh x0 + t + W_t), elementwise.

    From x0 = 0, Z = arsinh X has E(Z^3 - 6 Z^2 + 8 Z) = t^3 - 3 t^2 + 2 t, the functional on which weak
    schemes are compared (`functional`). Debrabant and Roessler 2008 (arXiv:1303.4223).
    """

    def _rates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.new_ones(()), x.new_ones(())

    @staticmethod
    def functional(x: Tensor) -> Tensor:
        """z^3 - 6 z^2 + 8 z with z = arsinh x, elementwise."""
        z = torch.asinh(x)
        return z * (8.0 + z * (z - 6.0))

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """x/2 + sqrt(x^2 + 1), (B, *event)."""
        return 0.5 * x + torch.sqrt(x * x + 1.0)

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """sqrt(x^2 + 1), (B, *event)."""
        return torch.sqrt(x * x + 1.0)

    def divergence_ggt(self, x: Tensor, t: Number) -> Tensor:
        """2 x, (B, *event)."""
        return 2.0 * x

    def correction(self, x: Tensor, t: Number) -> Tensor:
        """x/2, (B, *event)."""
        return 0.5 * x

    def to_brownian(self, x: Tensor, t: Number) -> Tensor:
        """arsinh x, (B, *event)."""
        return torch.asinh(x)

    def from_brownian(self, y: Tensor, t: Number) -> Tensor:
        """sinh y, (B, *event)."""
        return torch.sinh(y)


class DecayingAdditive(_Charted):
    """dX = (beta/sqrt(1 + t) - X/(2 (1 + t))) dt + alpha beta/sqrt(1 + t) dW, elementwise, with
    X_t = (x0 + beta (t + alpha W_t))/sqrt(1 + t).

    alpha beta > 0: numbers, or tensors that broadcast to the event. Drift and noise depend on time, and the
    noise not on the state. Roessler 2010, SIAM Journal on Numerical Analysis 48, 922.

    Raises ValueError for alpha <= 0 or beta <= 0, NonFiniteError for NaN.
    """

    noise_type: str = "additive"

    def __init__(self, alpha: Any = 0.1, beta: Any = 0.5) -> None:
        self.alpha, self.beta = (positive(v, n, "alpha, beta") for v, n in ((alpha, "alpha"), (beta, "beta")))
        super().__init__()

    def _rates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        beta = parameter(self.beta, x)
        return beta, parameter(self.alpha, x) * beta

    @staticmethod
    def _root(t: Number, x: Tensor) -> Tensor:
        """sqrt(1 + t), over the event."""
        return torch.sqrt(1.0 + over_event(as_tensor(t, "t").to(x.device), x))

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """beta/sqrt(1 + t) - x/(2 (1 + t)), (B, *event)."""
        root = self._root(t, x)
        return parameter(self.beta, x) / root - x / (2.0 * root * root)

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """alpha beta/sqrt(1 + t), broadcast over the event."""
        return self._rates(x)[1] / self._root(t, x)

    def transition(self, x: Tensor, s: Number, t: Number) -> Normal:
        """Law of X_t given X_s = x, elementwise. s <= t: () or (B,). Raises DirectionError for s > t."""
        law, root = super().transition(x, s, t), self._root(t, x)
        return Normal(law.loc / root, law.scale / root)

    def to_brownian(self, x: Tensor, t: Number) -> Tensor:
        """sqrt(1 + t) x, (B, *event)."""
        return self._root(t, x) * x

    def from_brownian(self, y: Tensor, t: Number) -> Tensor:
        """y/sqrt(1 + t), (B, *event)."""
        return y / self._root(t, y)
