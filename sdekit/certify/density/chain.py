r"""A plan on one-dimensional data as a Markov chain, its law carried exactly.

Between draws every register is a function of the coordinates of the chain: the state y, at most one earlier
state z, and draws that the plan uses again. A register holds its values over them and its derivatives along
each, by the chain rule. When a draw enters a register for the last time and all else that the plan still
reads depends on one coordinate at most, that register becomes the new state.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sdekit.certify.density.lattice import CUT, WIDE, Band, Line, fourier, onto_band, onto_line, uniform
from sdekit.certify.density.registers import Ending, Needs, Register, last_reads, widen, xi_rule
from sdekit.errors import CapabilityError
from sdekit.samplers.plan import Combine, Evaluate, Plan, state
from sdekit.score.predictions import conversion
from sdekit.targets.gaussian import Gaussian
from sdekit.targets.mixture import GaussianMixture

__all__ = ["Chain"]


class Chain:
    """One run over the plan, on grids of ``resolution`` points per scale.

    needs: the scales that the grids must resolve, None for a first, coarse run. found: those that this run
    met, where ``record`` asks for them. start: law (mean, std) of x[0]. narrowest: scale of the reference.
    """

    def __init__(
        self,
        plan: Plan,
        target: GaussianMixture | Gaussian,
        start: tuple[float, float],
        narrowest: float,
        needs: Needs | None = None,
        resolution: float = 1.0,
        record: bool = True,
    ) -> None:
        self.plan, self.target, self.resolution = plan, target, resolution
        self.needs, self.found, self.narrowest = needs, Needs(), narrowest
        self.record = record or needs is None
        self.reads = last_reads(plan)
        self.axis, self.events = 0, 0
        self.earlier: int | None = None
        self.kept: dict[int, int] = {}
        mean, std = start
        self.found.scale[0] = std
        reach = (CUT + 0.5) * std
        y = uniform(mean - reach, mean + reach, self._spacing(0))
        u = (y - mean) / std
        mass = torch.exp(-0.5 * u * u) * (float(y[1] - y[0]) / (std * math.sqrt(2 * math.pi)))
        self.frame: Line | Band = Line(y, mass, torch.special.ndtr(u))
        self.registers = {state(0): Register(y, {0: torch.ones_like(y)})}

    # -- the run -------------------------------------------------------------------------------------------

    def run(self) -> Ending:
        """From x[0] to the output. Raises CapabilityError where the memory is too long."""
        for k, ins in enumerate(self.plan.instructions):
            if isinstance(ins, Evaluate):
                self.registers[ins.out] = self._evaluate(ins)
                fresh = 0.0
            else:
                assert isinstance(ins, Combine)
                entering: dict[int, float] = {}
                for c, draw in ins.noise:
                    if self._is_last(draw, k):
                        entering[draw] = entering.get(draw, 0.0) + float(c)
                fresh = math.hypot(*entering.values())
                for _, draw in ins.noise:
                    if not self._is_last(draw, k) and draw not in self.kept:
                        self._keep(draw, k)
                self.registers[ins.out] = self._combine(ins, k)
            self._forget(k)
            if ins.out == self.plan.output:
                return self._ending(self.registers[ins.out], fresh)
            if ins.out in self.registers and (fresh > 0 or self._may_close(ins.out, k)):
                self._close(ins.out, fresh, k)
        return self._ending(self.registers[self.plan.output], 0.0)

    def _is_last(self, draw: int, k: int) -> bool:
        """Whether a new draw enters at instruction k and never again."""
        return draw not in self.kept and self.reads.draws[draw] == k

    def _forget(self, k: int) -> None:
        done = [n for n in self.registers if self.reads.registers.get(n, -1) <= k and n != self.plan.output]
        for name in done:
            del self.registers[name]

    def _evaluate(self, ins: Evaluate) -> Register:
        assert ins.node is not None
        x = self.registers[ins.x]
        _, alpha, sigma, *_ = ins.node
        p, q = conversion("x0", ins.predicts, ins.node, None, ins.data_std)
        with torch.enable_grad():
            at = x.value.detach().reshape(-1, 1).requires_grad_(True)
            out = self.target._mean_given(at, float(alpha), float(sigma))
            (gain,) = torch.autograd.grad(out.sum(), at, create_graph=self.record)
            if self.record and gain.requires_grad:
                (bend,) = torch.autograd.grad(gain.sum(), at)
                self._resolve(x, bend.reshape(x.value.shape), float(alpha), float(sigma))
        denoised, gain = out.detach().reshape(x.value.shape), gain.detach().reshape(x.value.shape)
        rate = float(p) + float(q) * gain
        value = float(p) * x.value + float(q) * denoised
        return Register(value, {axis: rate * slope for axis, slope in x.slopes.items()}, x.table)

    def _resolve(self, x: Register, bend: Tensor, alpha: float, sigma: float) -> None:
        """The denoiser turns from one component to another within S^2/(alpha (m_i - m_j)): grids must see it.

        Only where mass times what D'' bends over that width is above rounding.
        """
        if x.table:
            return
        spread = math.sqrt(alpha**2 * float(self.target.eigenvalues.min()) + sigma**2)
        gap = 0.0
        if isinstance(self.target, GaussianMixture):
            gap = alpha * float(self.target.means.max() - self.target.means.min())
        width = spread * min(1.0, spread / gap) if gap > 0 else spread
        _, mass = self._points(x)
        size = widen(bend.abs(), mass.ndim).expand_as(mass) * width**2
        seen = mass * size > 1e-13
        for axis, slope in x.slopes.items():
            if not isinstance(axis, str) and bool(seen.any()):
                most = float(widen(slope, mass.ndim).expand_as(mass)[seen].abs().max())
                if most > 0:
                    self.found.later[axis] = min(self.found.later.get(axis, math.inf), width / most)

    def _combine(self, ins: Combine, k: int) -> Register:
        """The deterministic part; draws that enter here for the only time are left to `_close`."""
        parts = [(float(w), self.registers[name]) for w, name in ins.terms]
        tables = [part.table for _, part in parts]
        if any(tables) and not all(tables):
            parts = [(w, self._spread(part)) for w, part in parts]
        dims = max(part.value.ndim for _, part in parts)
        table = all(tables)
        value: Any = 0.0
        slopes: dict[Any, Any] = {}
        for w, part in parts:
            value = value + w * widen(part.value, dims)
            for axis, slope in part.slopes.items():
                slopes[axis] = slopes.get(axis, 0.0) + w * widen(slope, dims)
        for c, draw in ins.noise:
            if draw in self.kept:
                position = self.kept[draw]
                xi = xi_rule()[0]
                shape = [1] * (position + 1)
                shape[position] = len(xi)
                dims = max(dims, position + 1)
                value = widen(value, dims) + float(c) * widen(xi.reshape(shape), dims)
                slopes = {axis: widen(slope, dims) for axis, slope in slopes.items()}
                key = f"xi:{draw}"
                slopes[key] = slopes.get(key, 0.0) + torch.full((1,) * dims, float(c), dtype=torch.float64)
        return Register(value, slopes, table)

    def _spread(self, part: Register) -> Register:
        """A register over z as one over the band."""
        if not part.table:
            return part
        assert isinstance(self.frame, Band)
        index = self.frame.index
        return Register(
            part.value[index], {axis: s.expand_as(part.value)[index] for axis, s in part.slopes.items()}
        )

    # -- coordinates ---------------------------------------------------------------------------------------

    def _keep(self, draw: int, k: int) -> None:
        if isinstance(self.frame, Band) or any(self.reads.draws[old] < k for old in self.kept):
            raise CapabilityError(
                f"{self.plan.sampler!r} uses draw {draw} at more than one place and keeps an earlier "
                f"prediction: its chain has three coordinates. {_NEXT}"
            )
        self.kept[draw] = 1 + len(self.kept)

    def _may_close(self, name: str, k: int) -> bool:
        """Whether this register alone still holds the kept draws, none of which is read again."""
        if not self.kept or any(self.reads.draws[draw] > k for draw in self.kept):
            return False
        held = self.registers.get(name)
        others = any(r.slopes for n, r in self.registers.items() if n != name)
        return held is not None and not others and any(isinstance(axis, str) for axis in held.slopes)

    def _close(self, name: str, std: float, k: int) -> None:
        """The register, plus std times a fresh normal, becomes the state."""
        register = self.registers.pop(name)
        alive = any(self.reads.draws[draw] > k for draw in self.kept)
        others = {axis for r in self.registers.values() for axis in r.slopes}
        if alive or len(others) > 1 or any(isinstance(axis, str) for axis in others):
            raise CapabilityError(
                f"after {name!r} the plan of {self.plan.sampler!r} still reads "
                f"{', '.join(map(repr, sorted(self.registers))) or 'draws'}, which depend on "
                f"{'more than one earlier state' if not alive else 'a draw'}"
                f"{'' if alive else ' or on a predicted one'}: its chain has more than two "
                f"coordinates. {_NEXT}"
            )
        mean, mass = self._points(register)
        smooth = self._observe(register, mass, std)
        new = self.axis + 1
        self.found.scale[new] = smooth
        spacing = self._spacing(new)
        if not others:
            if std >= 0.2 * smooth and std < 2 * WIDE * spacing:
                self.frame = onto_line(mean, mass, std, min(spacing, std))
            else:
                self.frame = fourier(mean, mass, std, smooth, min(spacing, smooth / WIDE))
            self.earlier = None
        else:
            if self.kept:
                raise CapabilityError(
                    f"{self.plan.sampler!r} uses a draw at more than one place and keeps an earlier "
                    f"prediction: its chain has three coordinates. {_NEXT}"
                )
            (old,) = others
            if old != self.axis:
                raise CapabilityError(
                    f"{self.plan.sampler!r} keeps a prediction two steps old: its chain has more than two "
                    f"coordinates. {_NEXT}"
                )
            axis = self.frame.y
            self.frame = onto_band(axis, mean, mass, std, spacing)
            self.registers = {
                n: Register(r.value.reshape(-1), {a: s.reshape(-1) for a, s in r.slopes.items()}, True)
                for n, r in self.registers.items()
            }
            self.earlier = old
        self.axis, self.kept = new, {}
        y = self.frame.y if isinstance(self.frame, Line) else self.frame.y[:, None]
        self.registers[name] = Register(y, {new: torch.ones_like(y)})

    def _points(self, register: Register) -> tuple[Tensor, Tensor]:
        """Values and masses over all coordinates that the register depends on."""
        register = self._spread(register)
        dims = register.value.ndim
        mass = self.frame.mass
        if isinstance(self.frame, Band) and dims < 2:
            dims = 2
        mass = widen(mass, dims)
        weights = xi_rule()[1]
        for position in self.kept.values():
            if position < dims:
                shape = [1] * dims
                shape[position] = len(weights)
                mass = mass * weights.reshape(shape)
        value = widen(register.value, dims)
        full = (value + mass).shape
        return value.expand(full), mass.expand(full)

    def _observe(self, register: Register, mass: Tensor, std: float) -> float:
        """The scale of the new state's law, given the coordinates; and what it asks of their grids."""
        event = self.events
        self.events += 1
        if not self.record:
            assert self.needs is not None
            return self.needs.smooth[event]
        register = self._spread(register)
        heavy = mass > 1e-11 * mass.max()
        square = std * std
        for axis, slope in register.slopes.items():
            if isinstance(axis, str):
                square += float(widen(slope, mass.ndim).expand_as(mass)[heavy].min().clamp(min=0)) ** 2
        smooth = math.sqrt(square)
        if smooth == 0:
            raise CapabilityError(
                f"a step of {self.plan.sampler!r} is not increasing in its noise: its density may be "
                f"singular. {_NEXT}"
            )
        self._ask(register, mass, heavy, smooth)
        self.found.smooth[event] = smooth
        return smooth if self.needs is None else self.needs.smooth[event]

    def _ask(self, register: Register, mass: Tensor, heavy: Tensor, smooth: float) -> None:
        for axis, slope in register.slopes.items():
            if not isinstance(axis, str):
                most = float(widen(slope, mass.ndim).expand_as(mass)[heavy].abs().max())
                if most > 0:
                    self.found.later[axis] = min(self.found.later.get(axis, math.inf), smooth / most)

    def _spacing(self, axis: int) -> float:
        if self.needs is None:
            return self.found.scale[axis] / (4.0 if axis else 200.0)
        return self.needs.spacing(axis) / self.resolution

    def _ending(self, register: Register, std: float) -> Ending:
        mean, mass = self._points(register)
        line = self.frame if isinstance(self.frame, Line) and not self.kept else None
        if std == 0 and line is not None:
            fine = float(line.y[-1] - line.y[0]) / 2000
            self.found.later[self.axis] = min(self.found.later.get(self.axis, math.inf), fine)
            if self.record:
                self._ask(register, mass, mass > 1e-11 * mass.max(), 0.1 * self.narrowest)
            return Ending(mean, mass, 0.0, 0.0, line, register.slopes.get(self.axis))
        if std == 0 and not self.kept:
            raise CapabilityError(
                f"{self.plan.sampler!r} ends without noise in its last step and with history: its output has "
                f"no density given the grid. {_NEXT}"
            )
        smooth = self._observe(register, mass, std)
        return Ending(mean, mass, std, smooth, None, None)


_NEXT = "Next: sdekit.certify on a Gaussian with the same mean and variance, or samples (sdekit.sample)."
