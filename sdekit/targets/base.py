"""Target: what every closed-form law of the data offers, from four methods that know its formula."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from sdekit._typing import Field, Number
from sdekit.errors import ShapeError, check_count, check_state_time
from sdekit.score.model import ExactDenoiser
from sdekit.targets._moments import Moments

if TYPE_CHECKING:
    from sdekit.noise import Noise
    from sdekit.sde import SDE, GaussianDiffusion

__all__ = ["Target"]

Self = TypeVar("Self", bound="Target")


class Target(ABC):
    r"""A law of x0 whose noised law p_t of x_t = alpha x0 + sigma eps is known in closed form.

    Rows never influence each other: sample i has the same bits alone and in any batch, on any number
    of threads. Everything is computed in float64 and returned in the dtype of x (float32, float64,
    bfloat16 or float16), on its device. Scores and denoisers are differentiable in x, to any order,
    also under ``torch.func``.
    """

    event_shape: torch.Size
    #: Normals that a sample takes before its D own ones: 1 where a component is chosen first.
    _choices: ClassVar[int] = 0

    # What a law defines.

    @abstractmethod
    def diffused(self: Self, alpha: Number, sigma: Number) -> Self:
        """The law of alpha x0 + sigma eps, eps ~ N(0, I); alpha >= 0, sigma >= 0: numbers."""

    @abstractmethod
    def posterior(self, A: Any, y: Any, noise_cov: Any) -> Target:
        """The law of x0 given y = A x0 + n, n ~ N(0, noise_cov).

        A: (k, D) or (k, *event); y: (k,); noise_cov: a number, (k,) or (k, k).
        """

    @abstractmethod
    def _density(self, x: Tensor) -> Tensor:
        """log p(x), (R, D) -> (R,), float64."""

    @abstractmethod
    def _draw(self, normals: Tensor) -> Tensor:
        """Samples (n, D) from normals (n, width), float64."""

    @abstractmethod
    def _mean_given(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        """E[x0 | x_t = x], (R, D) -> (R, D); alpha, sigma: numbers or (R, 1)."""

    @abstractmethod
    def _score_at(self, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        """grad log p_t(x), (R, D) -> (R, D); alpha, sigma: numbers or (R, 1)."""

    @abstractmethod
    def _moments(self) -> Moments:
        """Second moments of x0."""

    # What follows.

    @property
    def dimension(self) -> int:
        """D, the number of elements of one sample."""
        return self.event_shape.numel()

    @cached_property
    def _scales(self) -> tuple[float, float]:
        return self._moments().scales()

    @property
    def data_std(self) -> float:
        """s = sqrt(tr C / D), C the covariance about the mean.

        About zero instead, E[x x^T], where the mean is far: its RMS more than 2 s.
        Raises ValueError where that is 0.
        """
        return self._scales[0]

    @property
    def data_spread(self) -> float:
        """s2 = sqrt(tr C^2 / tr C) >= s, the RMS deviation along the directions that carry the variance."""
        return self._scales[1]

    def sample(
        self,
        n: int,
        seed: int = 0,
        *,
        noise: Noise | None = None,
        first_id: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """n samples (n, *event); row i is sample ``first_id + i``, a pure function of seed and id.

        ``noise`` in place of ``seed`` must supply normals of shape (n, *event) for a `Gaussian`, and
        (n, 1 + D) for mixtures, whose first number chooses the component.
        """
        from sdekit.noise import Philox, Purpose

        n = check_count(n, "n", minimum=0)
        first = check_count(first_id, "first_id", minimum=0)
        ids = torch.arange(first, first + n, dtype=torch.int64, device=device)
        event = (self._choices + self.dimension,) if self._choices else self.event_shape
        like = torch.empty((), dtype=torch.float64, device=ids.device).expand(n, *event)
        if noise is None:
            normals = Philox(seed).normal(0, like, ids, purpose=Purpose.DATA)
        else:
            normals = noise.normal(0, like, ids)
        with torch.no_grad():
            return (
                self._draw(normals.reshape(n, self._choices + self.dimension))
                .reshape(n, *self.event_shape)
                .to(dtype)
            )

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (B, *event) -> (B,), in x's dtype (at least float32); differentiable in x."""
        x = torch.as_tensor(x)
        dtype: torch.dtype = torch.promote_types(x.dtype, torch.float32)
        return self._density(self._flat(x)).to(dtype)

    def score(self, process: SDE) -> Field:
        """grad log p_t as a function of x (B, *event) and t, a number, shape () or (B,).

        p_t is the law at t of ``process`` started from this law.

        process: a GaussianDiffusion, or an OrnsteinUhlenbeck with numbers as parameters. For a Gaussian or a
        GaussianMixture also any `OrnsteinUhlenbeck`, `LinearSDE`, `CriticallyDampedLangevin` or
        `HarmonicLangevin`, started at t = 0. Their states (B, 2, *event) start from positions of this law and
        velocities N(0, gamma M) or N(0, T), if this is not the law of both.

        Raises CapabilityError for other processes.
        """
        from sdekit.sde.gaussian import GaussianDiffusion

        if not isinstance(process, GaussianDiffusion):
            from sdekit.targets.propagated import score_under

            return score_under(self, process)

        def score(x: Tensor, t: Number) -> Tensor:
            x = check_state_time(x, t, "score")
            time = torch.as_tensor(t, dtype=torch.float64)
            return self._field(self._score_at, x, process.alpha(time), process.sigma(time))

        return score

    def denoiser(self, process: GaussianDiffusion) -> ExactDenoiser:
        """E[x0 | x_t = x] as a `Denoiser` of ``process``, exact at both ends of time."""
        return ExactDenoiser(
            lambda x, alpha, sigma: self._field(self._mean_given, x, alpha, sigma),
            process,
            data_std=self.data_std,
            data_spread=self.data_spread,
            event_shape=self.event_shape,
            target=self,
            score_fn=lambda x, alpha, sigma: self._field(self._score_at, x, alpha, sigma),
        )

    def marginal(self: Self, process: GaussianDiffusion, t: float) -> Self:
        """The law of x_t, of the same kind as this one."""
        time = torch.as_tensor(t, dtype=torch.float64)
        if time.ndim:
            raise ShapeError(
                f"t must be one time, got shape {tuple(time.shape)}. Next: one marginal for each."
            )
        return self.diffused(process.alpha(time), process.sigma(time))

    # Plumbing.

    def _flat(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            raise ShapeError(
                f"x must be floating, got dtype {x.dtype}. Next: x.float(), scaled as the law is."
            )
        if x.ndim != 1 + len(self.event_shape) or x.shape[1:] != self.event_shape:
            event = ", ".join(map(str, self.event_shape))
            hint = " Next: x[None] for a single sample." if x.shape == self.event_shape else ""
            raise ShapeError(f"x must have shape (B, {event}), got {tuple(x.shape)}.{hint}")
        return x.reshape(len(x), self.dimension).to(torch.float64)

    def _field(self, fn: Any, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
        x = torch.as_tensor(x)
        flat = self._flat(x := torch.as_tensor(x))
        out: Tensor = fn(flat, _per_row(alpha, x, "alpha"), _per_row(sigma, x, "sigma"))
        return out.reshape(x.shape).to(x.dtype)

    def __repr__(self) -> str:
        event = ", ".join(map(str, self.event_shape))
        return f"{type(self).__name__}(event_shape=({event}{',' if len(self.event_shape) == 1 else ''}))"


def _per_row(value: Number, x: Tensor, name: str) -> Number:
    """A coefficient as a float, a 0-d tensor, or (R, 1) float64 on x's device."""
    if not isinstance(value, Tensor):
        return float(value)
    value = value.to(device=x.device, dtype=torch.float64)
    if value.numel() == 1:
        return value.reshape(())
    if value.numel() != len(x):
        raise ShapeError(f"{name} has {value.numel()} values for {len(x)} samples; expected 1 or {len(x)}.")
    return value.reshape(-1, 1)


def at_clean(x: Tensor, alpha: Number, sigma: Number, otherwise: Tensor) -> Tensor:
    """x / alpha where sigma = 0, ``otherwise`` elsewhere: the exact limit of a denoiser."""
    if not isinstance(sigma, Tensor):
        return x / alpha if sigma == 0 else otherwise
    clean = sigma == 0
    safe = torch.where(clean, torch.as_tensor(alpha, dtype=x.dtype, device=x.device), 1.0)
    return torch.where(clean, x / safe, otherwise)


def by_blocks(fn: Callable[..., Tensor], size: int, x: Tensor, *coefficients: Number) -> Tensor:
    """fn over blocks of at most ``size`` rows of x and of the coefficients that come by row."""
    if len(x) <= size:
        return fn(x, *coefficients)
    pieces = []
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        own = (c[rows] if isinstance(c, Tensor) and c.ndim else c for c in coefficients)
        pieces.append(fn(x[rows], *own))
    return torch.cat(pieces)


def number(value: Any, name: str) -> float:
    """A finite number >= 0. Raises ValueError."""
    result = float(value)
    if not (result >= 0 and math.isfinite(result)):
        raise ValueError(f"{name} must be finite and >= 0, got {value}.")
    return result


class PerDevice:
    """Constants kept once for each device they are used on."""

    def __init__(self, *tensors: Tensor) -> None:
        self._host = tensors
        self._held: dict[torch.device, tuple[Tensor, ...]] = {}

    def on(self, device: torch.device) -> tuple[Tensor, ...]:
        """The tensors on ``device``."""
        held = self._held.get(device)
        if held is None:
            held = self._held[device] = tuple(tensor.to(device) for tensor in self._host)
        return held
