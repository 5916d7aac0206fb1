"""A black box and its response: runs with noise of our choice, and what they say about its law."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdekit.certify.response.impulses import Fill, Impulses, Layout, Normals, layout_of
from sdekit.errors import NonFiniteError, NotAffineError, ShapeError
from sdekit.solution import Solution
from sdekit.targets.gaussian import Gaussian

__all__ = ["TOLERANCE", "BlackBox", "Measured", "as_samples", "measure", "noise_argument"]

CHECKS = 8
FAR = 4.0
"""Check vectors are run at this size too: clipping beyond a few standard deviations shows there."""
PROBE = (3, 5)
ELEMENTS = 2**21
"""State elements of a run, unless its batch is given."""
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.3}
"""The largest residual that is put down to rounding, by the coarsest dtype of the states."""
SMALL = {torch.float64: 1e-4, torch.float32: 1e-2, torch.float16: 0.1, torch.bfloat16: 0.3}
"""The impulse of a linearised response, about the cube root of the rounding, by dtype."""


def noise_argument(run: Callable[..., Any], noise: bool | None) -> str | None:
    """The parameter of ``run`` that takes a `Noise` ("" for its second, by position); None for none.

    noise None: a parameter without default that is the second, or is named "noise".
    """
    try:
        found = list(inspect.signature(run).parameters.values())
    except (TypeError, ValueError):
        found = []
    named = next((p for p in found[1:] if p.name == "noise"), None)
    second = found[1] if len(found) > 1 and found[1].kind <= inspect.Parameter.POSITIONAL_OR_KEYWORD else None
    if noise is False:
        return None
    if named is not None and (noise or named.default is inspect.Parameter.empty):
        return "noise"
    if second is not None and (noise or second.default is inspect.Parameter.empty):
        return ""
    if noise:
        raise TypeError("noise=True needs run(n, noise), got a run of one argument. Next: def run(n, noise).")
    return None


def as_samples(out: object, n: int, target: Gaussian) -> Tensor:
    """What a run returned, as a floating tensor (n, *event). Raises ShapeError, NonFiniteError."""
    x = out.x if isinstance(out, Solution) else out
    if not isinstance(x, Tensor):
        try:
            x = torch.as_tensor(x)
        except (TypeError, ValueError, RuntimeError):
            raise ShapeError(
                f"run({n}) must return samples as a tensor or array, got {type(out).__name__}. Likely cause: "
                f"an output object, a tuple or a list of tensors. Next: return the tensor in it, or "
                f"torch.stack of the list."
            ) from None
    if x.shape != (n, *target.event_shape) or not x.is_floating_point():
        raise ShapeError(
            f"run({n}) must return floating samples of shape {(n, *target.event_shape)}, got {x.dtype} of "
            f"shape {tuple(x.shape)}. Likely cause: a fixed batch size, or samples made into images. "
            f"Next: make n samples, and return them in the target's own units and shape."
        )
    finite = torch.isfinite(x).reshape(n, -1).all(dim=1)
    if not bool(finite.all()):
        raise NonFiniteError(
            f"run({n}) must return finite samples, got NaN or infinity in {int((~finite).sum())} of them. "
            f"Likely cause: a grid that reaches sigma = 0, or, in certify_response, a step that divides by "
            f"the size of its noise, which is zero in a row without noise. Next: end the grid at t_min; "
            f"print the state at each step."
        )
    return x


class Row(NamedTuple):
    """What one sample gets: ``size`` in all directions at draw ``impulse``, or of check vector ``check``."""

    impulse: int = -1
    size: float = 0.0
    check: int = -1


SILENT = Row()


class BlackBox:
    """Runs of ``run`` with chosen noise; outputs in the eigenbasis of ``target``, (n, D) float64.

    Check vectors are xi_k = weight_k direction, numbers and (D,) in the basis, drawn once.
    """

    def __init__(self, run: Callable[..., Any], target: Gaussian, noise: str | None) -> None:
        self.run, self.target, self.noise = run, target, noise
        self.dtype = torch.float64
        self.runs = 0
        self.layouts: list[Layout] = []
        d = target.dimension
        self.direction = _normals(0, CHECKS, d)
        self.ones = target.from_basis(torch.ones(1, d, dtype=torch.float64)).reshape(1, d)
        self.event = target.from_basis(self.direction).reshape(CHECKS, d)
        self.single = self._lay_out()
        ends = list(accumulate((layout.normals for layout in self.layouts), initial=0))
        #: The normals xi_k that each draw holds; ``draws`` in all.
        self.numbers = [range(a, b) for a, b in pairwise(ends)]
        self.draws = ends[-1]
        self.weight = _normals(1, CHECKS, self.draws)

    def _lay_out(self) -> bool:
        """Learn the draws from runs without noise; True where only one sample at a time can be run."""
        (few, first), (more, second) = (self._probe(n) for n in PROBE)
        self._agree(torch.cat([few, more]))
        self.quiet = few[0]
        if not first:
            raise NotAffineError(
                "expected a run that draws normals, got none: every sample is the same. Likely cause: noise "
                "drawn before run, or by numpy with a fixed seed. Next: draw inside run(n) with torch, or "
                "take a Noise: def run(n, noise), and sdekit.sample(..., noise=noise)."
            )
        d = self.target.dimension
        pairs = zip(first, second, strict=False)
        found = [layout_of(a, b, PROBE, d) for a, b in pairs] if len(first) == len(second) else [None]
        self.layouts = [layout for layout in found if layout is not None]
        if len(self.layouts) == len(found):
            return False
        (one, shapes), (again, _) = self._probe(1), self._probe(1)
        self._agree(torch.cat([one, again, few]))
        for k, shape in enumerate(shapes):
            if shape.numel() % d or not shape.numel():
                raise NotAffineError(
                    f"expected draws of D = {d} numbers for each sample, got draw {k} of shape "
                    f"{tuple(shape)} in run(1). Likely cause: one number shared by all elements of a "
                    f"sample. Next: a normal for each element, or sdekit.certify_monte_carlo(run, target)."
                )
        self.layouts = [Layout(None, shape.numel() // d) for shape in shapes]
        return True

    def _agree(self, x: Tensor) -> None:
        scale = float(x.norm(dim=1).max() + self.target.eigenvalues.sum().sqrt())
        apart = float((x - x[0]).norm(dim=1).max()) / scale
        if apart > TOLERANCE[self.dtype]:
            raise NotAffineError(
                f"expected equal samples where every normal is zero, got samples {apart:.2g} apart, relative "
                f"to their size. Likely cause: noise that torch does not draw (numpy, random, "
                f"sdekit.sample), noise drawn before run, or steps that depend on n or on the whole "
                f"batch. Next: draw inside run(n) with torch, or take a Noise: def run(n, noise), and "
                f"sdekit.sample(..., noise=noise)."
            )

    def _probe(self, n: int) -> tuple[Tensor, list[torch.Size]]:
        shapes: dict[Hashable, torch.Size] = {}

        def fill(key: Hashable, shape: torch.Size) -> Tensor:
            shapes.setdefault(key, shape)
            return torch.zeros(shape, dtype=torch.float64)

        return self._call(n, fill), list(shapes.values())

    def __call__(self, rows: Sequence[Row]) -> Tensor:
        """Outputs (len(rows), D) of samples that get ``rows``, in one run, or one by one if ``single``."""
        if self.single and len(rows) > 1:
            return torch.cat([self([row]) for row in rows])
        n, seen = len(rows), dict[Hashable, int]()
        impulse, check = (torch.tensor([row[i] for row in rows]) for i in (0, 2))
        size = torch.tensor([row.size for row in rows], dtype=torch.float64)

        def normal(k: int) -> Tensor:
            out = torch.zeros(n, self.ones.shape[1], dtype=torch.float64)
            hit, mixed = impulse == k, check >= 0
            out[hit] = size[hit, None] * self.ones
            weight = size[mixed] * self.weight[check[mixed], k]
            out[mixed] = weight[:, None] * self.event[check[mixed]]
            return out

        def fill(key: Hashable, shape: torch.Size) -> Tensor:
            draw = seen.setdefault(key, len(seen))
            if draw >= len(self.layouts):
                raise _unlike(f"more draws than the {len(self.layouts)} of the first run")
            values = torch.stack([normal(k) for k in self.numbers[draw]], dim=1)
            if shape.numel() != values.numel():
                raise _unlike(f"draw {draw} of shape {tuple(shape)} for {n} samples")
            return self.layouts[draw].place(values, shape)

        x = self._call(n, fill)
        if len(seen) != len(self.layouts):
            raise _unlike(f"{len(seen)} draws, and {len(self.layouts)} in the first run")
        return x

    def _call(self, n: int, fill: Fill) -> Tensor:
        self.runs += 1
        source = Impulses(fill, n)
        positional = (n, source) if self.noise == "" else (n,)
        named = {self.noise: source} if self.noise else {}
        caught = Normals(fill, n * self.target.dimension)
        with isolated(0x5DE0_0000_0000 + self.runs), caught:
            out = self.run(*positional, **named)
        x = as_samples(out, n, self.target)
        self.dtype = max(self.dtype, caught.dtype, x.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        return self.target.to_basis(x.detach().to(device="cpu", dtype=torch.float64)).reshape(n, -1)


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """torch's global generators start at ``seed`` here; afterwards they are as they were."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def _unlike(got: str) -> NotAffineError:
    return NotAffineError(
        f"expected the same draws in every run, got {got}. Likely cause: steps that depend on the state or "
        f"on chance. Next: sdekit.certify_monte_carlo(run, target)."
    )


def _normals(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Measured:
    """b, G at the start (or zero) and sum G_k^2 over the others, (D,) each.

    residual, coupling: how far samples are from their prediction, and the same sample in two batches.
    """

    base: Tensor
    start: Tensor
    injected: Tensor
    residual: float
    coupling: float
    batch: int


def measure(box: BlackBox, start: int, batch: int | None, frozen: bool) -> Measured:
    r"""The response b, G_1, ..., G_K of a black box, and the distance of runs with noise to b + sum G_k xi_k.

    Each run of ``batch`` samples holds a row without noise, the first check vector and impulses; smaller runs
    hold all check vectors in other places, and ``FAR`` times as large. frozen: G_k = (x(+e) - x(-e))/(2 e),
    e small, the response linearised about the noiseless path.
    """
    size = SMALL[box.dtype] if frozen else 1.0
    signs = (size, -size) if frozen else (size,)
    d = box.target.dimension
    if batch is None:
        batch = max(16, ELEMENTS // d)
    batch = min(max(batch, len(signs) + 2), len(signs) * box.draws + 2)
    width = (batch - 2) // len(signs)
    predicted, (at_start, injected) = torch.zeros(CHECKS, d).double(), torch.zeros(2, d).double()
    silent, mixed = [], []
    check = Row(check=0, size=1.0)
    for low in range(0, box.draws, width):
        draws = range(low, min(low + width, box.draws))
        x = box([SILENT, check, *(Row(k, s) for s in signs for k in draws)])
        silent.append(x[0])
        mixed.append(x[1])
        gains = x[2:].reshape(len(signs), len(draws), d)
        gains = (gains[0] - gains[1]) / (2 * size) if frozen else gains[0] - x[0]
        predicted += box.direction * (box.weight[:, low : low + len(draws)] @ gains)
        if start in draws:
            at_start, gains[start - low] = gains[start - low].clone(), 0.0
        injected += gains.square().sum(dim=0)
    last = box([*(Row(check=k, size=1.0) for k in range(CHECKS)), SILENT])
    base, spread = silent[0], float((at_start.square() + injected).sum().sqrt())
    size_of = predicted.norm(dim=1).clamp_min(spread)
    residual = float(((last[:-1] - base - predicted).norm(dim=1) / size_of).max())
    apart = [x - last[-1] for x in [*silent, box.quiet]] + [x - last[0] for x in mixed]
    coupling = float(torch.stack(apart).norm(dim=1).max() / size_of[0])
    if not frozen and residual <= TOLERANCE[box.dtype]:  # see what acts on rare samples only
        far = box([Row(check=k, size=FAR) for k in range(CHECKS)])
        residual = max(residual, float(((far - base - FAR * predicted).norm(dim=1) / (FAR * size_of)).max()))
    return Measured(base, at_start, injected, residual, coupling, 1 if box.single else batch)
