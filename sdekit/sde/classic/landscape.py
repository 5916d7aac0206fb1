"""Nonlinear equations of which something is known exactly: a double well, Lorenz, Lotka-Volterra."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sdekit._typing import Number
from sdekit.errors import ShapeError, check_not_negative, check_positive
from sdekit.sde.base import SDE
from sdekit.sde.classic._door import check_domain
from sdekit.sde.classic.quadrature import QuadratureLaw
from sdekit.sde.rows import constant

__all__ = ["DoubleWell", "Lorenz63", "LotkaVolterra"]


class DoubleWell(SDE):
    """dX = -V'(X) dt + sqrt(2/beta) dW with V(x) = height (x^2 - 1)^2, elementwise.

    beta, height > 0: the depth of the wells at -1 and 1 in units of the noise is beta height. The stationary
    density is e^(-beta V)/Z, Z = (pi/2) e^(-b) (I_(1/4)(b) + I_(-1/4)(b)) with b = beta height/2. The drift
    grows as x^3, so that Euler-Maruyama diverges from large states: take tamed or implicit methods there.

    Kramers 1940, Physica 7, 284. Raises ValueError for parameters <= 0.
    """

    noise_type: str = "additive"
    _claims_checked: bool = True

    def __init__(self, beta: float = 1.0, height: float = 1.0) -> None:
        self.beta, self.height = check_positive(beta, "beta"), check_positive(height, "height")
        super().__init__()

    def potential(self, x: Tensor) -> Tensor:
        """V(x), (B, *event)."""
        return self.height * (x * x - 1.0) ** 2

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """-4 height x (x^2 - 1), (B, *event)."""
        return -4.0 * self.height * x * (x * x - 1.0)

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """sqrt(2/beta)."""
        return torch.full_like(x, math.sqrt(2.0 / self.beta))

    def score(self, x: Tensor, t: Number = 0.0) -> Tensor:
        """The gradient of the stationary log density, -beta V', (B, *event)."""
        return self.beta * self.drift(x, t)

    def stationary(self, x: Tensor) -> QuadratureLaw:
        """The law e^(-beta V)/Z in the shape of ``x``, by quadrature."""
        depth = self.beta * self.height
        end = math.sqrt(1.0 + math.sqrt(760.0 / depth))
        width = 0.5 / math.sqrt(8.0 * depth + 1.0)
        return QuadratureLaw(
            lambda y: -self.beta * self.potential(y), -end, end, math.ceil(2.0 * end / width), x
        )

    def __repr__(self) -> str:
        return f"DoubleWell(beta={self.beta:g}, height={self.height:g})"


class Lorenz63(SDE):
    """dX = s (Y - X) dt + q dW_1, dY = (X (r - Z) - Y) dt + q dW_2, dZ = (X Y - b Z) dt + q dW_3.

    s, r, b > 0 (10, 28, 8/3 where it is chaotic), q >= 0 the noise. States are (B, 3). Known exactly: the
    divergence of the drift, -(s + 1 + b), at which volumes shrink; the symmetry (x, y, z) -> (-x, -y, z); for
    r > 1 the fixed points (+-c, +-c, r - 1), c = sqrt(b (r - 1)), of the drift; the balance

        d E X^2/dt = 2 s E(X Y - X^2) + q^2,   d E Z/dt = E X Y - b E Z.

    Lorenz 1963, Journal of the Atmospheric Sciences 20, 130, equations 25 to 27. Raises ValueError for
    parameters outside these ranges.
    """

    noise_type: str = "additive"
    _claims_checked: bool = True

    def __init__(self, s: float = 10.0, r: float = 28.0, b: float = 8.0 / 3.0, noise: float = 1.0) -> None:
        self.s, self.r, self.b = (check_positive(v, n) for v, n in ((s, "s"), (r, "r"), (b, "b")))
        self.noise = check_not_negative(noise, "noise")
        super().__init__()

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """The velocity of the flow, (B, 3). Raises ShapeError for states of another shape."""
        if x.ndim != 2 or x.shape[1] != 3:
            raise ShapeError(f"x must have shape (B, 3), got {tuple(x.shape)}.")
        a, b, c = x.unbind(1)
        return torch.stack([self.s * (b - a), a * (self.r - c) - b, a * b - self.b * c], dim=1)

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """q, the shape of x."""
        return torch.full_like(x, self.noise)

    @property
    def divergence(self) -> float:
        """-(s + 1 + b), the divergence of the drift everywhere."""
        return -(self.s + 1.0 + self.b)

    def fixed_points(self) -> Tensor:
        """The zeros of the drift, float64: (1, 3) for r <= 1, (3, 3) beyond."""
        if self.r <= 1:
            return torch.zeros(1, 3, dtype=torch.float64)
        c, z = math.sqrt(self.b * (self.r - 1.0)), self.r - 1.0
        return torch.tensor([[0.0, 0.0, 0.0], [c, c, z], [-c, -c, z]], dtype=torch.float64)

    def __repr__(self) -> str:
        return f"Lorenz63(s={self.s:g}, r={self.r:g}, b={self.b:g}, noise={self.noise:g})"


class LotkaVolterra(SDE):
    """dX = X (a - b Y) dt + q_1 X dW_1 (prey), dY = Y (c X - d) dt + q_2 Y dW_2 (predators), X, Y > 0.

    a, b, c, d > 0; q = (q_1, q_2) >= 0, or one number for both. States are (B, 2). The noise of
    U = (log X, log Y) is additive (`logarithmic`):

        dU_1 = (a - q_1^2/2 - b e^(U_2)) dt + q_1 dW_1,   dU_2 = (c e^(U_1) - d - q_2^2/2) dt + q_2 dW_2,

    and V = c X - d log X + b Y - a log Y (`invariant`), constant without noise, has E V_t = E V_0 + rate t,
    rate = (q_1^2 d + q_2^2 a)/2 (`invariant_rate`), exactly: there is no stationary law.

    Arnold, Horsthemke and Stucki 1979, Biometrical Journal 21, 451; V is Volterra's. Raises ValueError for
    parameters outside these ranges.
    """

    noise_type: str = "diagonal"
    _claims_checked: bool = True

    def __init__(self, a: float = 1.0, b: float = 1.0, c: float = 1.0, d: float = 1.0, q: Any = 0.1) -> None:
        rates = (("a", a), ("b", b), ("c", c), ("d", d))
        self.a, self.b, self.c, self.d = (check_positive(v, n) for n, v in rates)
        noise = constant(q, "q").detach()
        if noise.shape not in ((), (2,)) or bool((noise < 0).any()):
            raise ValueError(f"q must be a number >= 0 or two of them, got {q}.")
        self.q = noise.expand(2).clone()
        super().__init__()

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim != 2 or x.shape[1] != 2:
            raise ShapeError(f"x must have shape (B, 2), prey and predators, got {tuple(x.shape)}.")
        prey, predators = x.unbind(1)
        return prey, predators

    def drift(self, x: Tensor, t: Number) -> Tensor:
        """(X (a - b Y), Y (c X - d)), (B, 2)."""
        u, v = self._split(x)
        return torch.stack([u * (self.a - self.b * v), v * (self.c * u - self.d)], dim=1)

    def diffusion(self, x: Tensor, t: Number) -> Tensor:
        """q x, (B, 2)."""
        return self.q.to(x) * x

    def divergence_ggt(self, x: Tensor, t: Number) -> Tensor:
        """2 q^2 x, (B, 2)."""
        return 2.0 * self.q.to(x) ** 2 * x

    def correction(self, x: Tensor, t: Number) -> Tensor:
        """q^2 x/2, (B, 2)."""
        return 0.5 * self.q.to(x) ** 2 * x

    def logarithmic(self) -> SDE:
        """The equation of (log X, log Y), with additive noise: its states never leave the domain."""

        def drift(u: Tensor, t: Tensor) -> Tensor:
            prey, predators = self._split(torch.exp(u))
            half = 0.5 * self.q.to(u) ** 2
            first = self.a - half[0] - self.b * predators
            return torch.stack([first, self.c * prey - self.d - half[1]], dim=1)

        return SDE(drift, lambda u, t: self.q.to(u).expand(u.shape), noise_type="additive")

    def invariant(self, x: Tensor) -> Tensor:
        """V = c X - d log X + b Y - a log Y, (B,). Raises ValueError unless X, Y > 0."""
        u, v = self._split(x)
        check_domain(x, x > 0, "(0, inf)")
        return self.c * u - self.d * torch.log(u) + self.b * v - self.a * torch.log(v)

    @property
    def invariant_rate(self) -> float:
        """d E V/dt = (q_1^2 d + q_2^2 a)/2."""
        return float(0.5 * (self.q[0] ** 2 * self.d + self.q[1] ** 2 * self.a))

    def __repr__(self) -> str:
        rates = ", ".join(f"{name}={getattr(self, name):g}" for name in "abcd")
        return f"LotkaVolterra({rates}, q={self.q.tolist()})"
