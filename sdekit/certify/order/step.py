"""A solver's step as random affine maps: one matrix for each node of a quadrature over the step's noise."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from sdekit.certify.order.linear import LinearProblem
from sdekit.errors import CapabilityError, NonFiniteError, NotAffineError, ShapeError
from sdekit.solvers.base import Carry, Interval, Solver
from sdekit.solvers.problem import Counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["NoiseLaw", "Stepper", "check_laws", "check_step", "noise_rule"]

NoiseLaw: TypeAlias = "str | tuple[Sequence[float], Sequence[float]]"
"""The law of a step's unit variables: "normal", "two-point", "three-point", or (values, probabilities)."""

DISCRETE: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "two-point": ((-1.0, 1.0), (0.5, 0.5)),
    "three-point": ((-math.sqrt(3.0), 0.0, math.sqrt(3.0)), (1 / 6, 2 / 3, 1 / 6)),
}

POINTS = {1: 16, 2: 10, 3: 6, 4: 5}
"""Of Gauss-Hermite along each of that many variables, 4 beyond: n nodes miss terms of size h^n in a step."""

LIMIT = 100_000


@lru_cache(maxsize=64)
def noise_rule(laws: tuple[NoiseLaw, ...], channels: int) -> tuple[Floats, Floats]:
    """Nodes (Q, len(laws) channels) and weights (Q,) of the product of the laws, laws slowest.

    Exact to degree 2 n - 1 in each normal variable (`POINTS`), and for everything in the discrete ones.
    """
    normal = laws.count("normal") * channels
    axes: list[tuple[Floats, Floats]] = []
    for law in laws:
        axes += [_axis(law, POINTS.get(normal, 4))] * channels
    size = math.prod(len(values) for values, _ in axes)
    if size > LIMIT:
        raise CapabilityError(
            f"a step with {len(axes)} random variables needs {size} quadrature nodes, more than {LIMIT}. "
            f"Next: noise_types= with fewer channels."
        )
    nodes = np.array(list(itertools.product(*(values for values, _ in axes))))
    weights = np.prod(list(itertools.product(*(probabilities for _, probabilities in axes))), axis=1)
    return nodes.reshape(size, len(axes)), weights


def _axis(law: NoiseLaw, n: int) -> tuple[Floats, Floats]:
    if law == "normal":
        x, w = np.polynomial.hermite_e.hermegauss(n)
        return x, w / w.sum()
    if isinstance(law, str):
        if law not in DISCRETE:
            raise ValueError(
                f"a law is 'normal', {', '.join(map(repr, DISCRETE))} or (values, weights); got {law!r}."
            )
        law = DISCRETE[law]
    values, weights = (np.asarray(part, dtype=np.float64) for part in law)
    if (
        values.shape != weights.shape
        or values.ndim != 1
        or not (weights >= 0).all()
        or abs(weights.sum() - 1) > 1e-12
    ):
        raise ValueError("a law is (values, probabilities) of one length, with probabilities that sum to 1.")
    return values, weights


@dataclass(frozen=True)
class Stepper:
    """A solver, or step(system, x, t, h, *noise), on one linear problem.

    The state carried is (x, what the solver keeps between steps, 1), of N elements. laws: one for each
    normal-like variable that a step takes, of the noise's shape; they are scaled like W, H, K, that is by
    sqrt(h), sqrt(h/12), sqrt(h/720).
    """

    method: Solver | Callable[..., Tensor]
    problem: LinearProblem
    laws: tuple[NoiseLaw, ...]

    @cached_property
    def counted(self) -> Any:
        return Counted(self.problem.system)

    @cached_property
    def noise_shape(self) -> tuple[int, ...]:
        x = torch.zeros(1, len(self.problem.x0), dtype=torch.float64)
        return self.problem.system.noise_shape(x)[1:]

    def begin(self, x: Tensor) -> Carry:
        """The carry at t = 0 of rows x (B, d)."""
        if isinstance(self.method, Solver):
            return self.method.init(self.counted, x, torch.zeros((), dtype=torch.float64))
        return ()

    @cached_property
    def start(self) -> Floats:
        """(x0, carry, 1), (N,)."""
        x = torch.tensor([self.problem.x0], dtype=torch.float64)
        parts = [x, *(c.reshape(1, -1) for c in self.begin(x))]
        return np.append(torch.cat(parts, dim=1)[0].numpy(), 1.0)

    @cached_property
    def _shapes(self) -> list[tuple[int, ...]]:
        x = torch.tensor([self.problem.x0], dtype=torch.float64)
        return [tuple(x.shape[1:]), *(tuple(c.shape[1:]) for c in self.begin(x))]

    def _step(self, state: Tensor, t: float, h: float, noise: list[Tensor]) -> Tensor:
        """Rows (R, N - 1) of (x, carry) through one step."""
        sizes = [math.prod(shape) for shape in self._shapes]
        pieces = torch.split(state, sizes, dim=1)
        x, *carry = (p.reshape(len(p), *shape) for p, shape in zip(pieces, self._shapes, strict=True))
        if isinstance(self.method, Solver):
            times = tuple(torch.tensor(t + c * h, dtype=torch.float64) for c in self.method.nodes)
            out, kept = self.method.step(self.counted, x, Interval(times, h, *noise), tuple(carry))
        else:
            out, kept = self.method(self.counted, x, torch.tensor(t, dtype=torch.float64), h, *noise), ()
        if not isinstance(out, Tensor) or out.shape != x.shape or out.dtype != x.dtype:
            got = f"{out.dtype} {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise ShapeError(
                f"a step must return a tensor of x's shape and dtype, {x.dtype} {tuple(x.shape)}, got {got}. "
                f"Next: apply noise by system.apply_noise(g, W), and cast nothing."
            )
        if not bool(torch.isfinite(out).all()):
            raise NonFiniteError(
                f"a step returned NaN or infinity on the linear problem {self.problem.name!r} from a finite "
                f"state, at t = {t:.4g} with h = {h:.4g}. Likely cause: a division by noise or time, which "
                f"may be 0. Next: print the terms of the step."
            )
        return torch.cat([out.reshape(len(x), -1), *(c.reshape(len(x), -1) for c in kept)], dim=1)

    @torch.no_grad()
    def maps(self, t: float, h: float) -> tuple[Floats, Floats, Floats]:
        """(M (Q, N, N), weights (Q,), nodes (Q, normals m)) of the step from t.

        (x, carry, 1)' = M (x, carry, 1).

        Raises NotAffineError when the step is not affine in (x, carry).
        """
        nodes, weights = noise_rule(self.laws, self.problem.channels)
        n, q = len(self.start) - 1, len(weights)
        probe = np.cos(1.0 + np.arange(n))
        basis = torch.from_numpy(np.concatenate([np.zeros((1, n)), np.eye(n), probe[None]]))
        rows = basis.repeat(q, 1)
        noise = []
        for part, scale in zip(_columns(nodes, len(self.laws)), _scales(h), strict=False):
            values = torch.from_numpy(part * scale).repeat_interleave(len(basis), dim=0)
            noise.append(values.reshape(len(rows), *self.noise_shape))
        out = self._step(rows, t, h, noise).reshape(q, len(basis), n).numpy()
        maps = np.zeros((q, n + 1, n + 1))
        maps[:, :-1, -1] = out[:, 0]
        maps[:, :-1, :-1] = np.swapaxes(out[:, 1:-1] - out[:, :1], 1, 2)
        maps[:, -1, -1] = 1.0
        gap = np.abs(maps[:, :-1] @ np.append(probe, 1.0) - out[:, -1]).max()
        if not gap <= 1e-9 * (1.0 + np.abs(out).max()):
            raise NotAffineError(
                f"the step is not affine in its state on the linear problem {self.problem.name!r}: it misses "
                f"the affine map through its values by {gap:.3g}. Likely cause: an accept-reject decision, "
                f"limiter or norm in the step, random numbers of its own, or float32 in it (a miss near "
                f"1e-7). Next: float64 and the noise it is given; or the order from paths on one Brownian "
                f"motion."
            )
        return maps, weights, nodes


def _columns(nodes: Floats, parts: int) -> list[Floats]:
    width = nodes.shape[1] // parts
    return [nodes[:, k * width : (k + 1) * width] for k in range(parts)]


def _scales(h: float) -> tuple[float, ...]:
    """Of W, H and K: standard deviations over a step of length h."""
    return math.sqrt(h), math.sqrt(h / 12), math.sqrt(h / 720)


def check_laws(laws: NoiseLaw | Sequence[NoiseLaw]) -> tuple[NoiseLaw, ...]:
    """One to three laws, hashable. Raises ValueError."""
    given = (laws,) if isinstance(laws, str) else tuple(laws)
    if not 1 <= len(given) <= 3:
        raise ValueError(
            f"laws must hold one law for each of W, H, K that the step takes, 1 to 3, got {len(given)}. "
            f"Next: kind='ode' for a step without noise."
        )
    return tuple(law if isinstance(law, str) else _numbers(*law) for law in given)


def _numbers(values: Sequence[float], probabilities: Sequence[float]) -> NoiseLaw:
    return tuple(map(float, values)), tuple(map(float, probabilities))


def check_step(step: object, noises: int) -> None:
    """A callable step(system, x, t, h, *noise) of that many noises. Raises TypeError."""
    if not callable(step):
        raise TypeError(
            f"certify_order takes a solver, a sampler or step(system, x, t, h, W), got "
            f"{type(step).__name__}. Next: print sdekit.solvers()."
        )
    try:
        signature = inspect.signature(step)
    except (TypeError, ValueError):
        return
    wanted = ("system", "x", "t", "h", "W", "H", "K")[: 4 + noises]
    try:
        signature.bind(*wanted)
    except TypeError:
        raise TypeError(
            f"a step takes ({', '.join(wanted)}) here, and this one takes "
            f"({', '.join(signature.parameters)}). Likely cause: kind='ode' for a step with noise, or laws= "
            f"for more or fewer noises than it takes. Next: wrap it: lambda {', '.join(wanted)}: ..."
        ) from None
