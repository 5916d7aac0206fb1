"""torchsde.sdeint, run by `sdekit.solve`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sdekit.adapters.torchsde.brownian import noise_of
from sdekit.adapters.torchsde.system import TorchSDE, from_torchsde
from sdekit.errors import CapabilityError, ShapeError
from sdekit.solvers import Solver, get, solve

__all__ = ["sdeint"]

SMALLEST = 1e-7
"""The least |g| by which a difference of drifts is divided."""

METHODS = {
    "euler": "euler-maruyama",
    "milstein": "milstein",
    "srk": "srk",
    "heun": "heun",
    "midpoint": "midpoint",
    "euler_heun": "euler-heun",
    "reversible_heun": "reversible-heun",
}


def sdeint(
    sde: Any,
    y0: Tensor,
    ts: Sequence[float] | Tensor,
    bm: Any = None,
    method: str | None = None,
    dt: float = 1e-3,
    adaptive: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-4,
    dt_min: float = 1e-5,
    options: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    *,
    seed: int = 0,
    gradient: Any = "backprop",
) -> Tensor | tuple[Tensor, Tensor]:
    """The states (T, B, d) at the increasing times ``ts`` (T,): torchsde.sdeint, run by `sdekit.solve`.

    method: "euler", "milstein", "srk", "heun", "midpoint", "euler_heun", "reversible_heun", or any solver of
    sdekit; by default srk, or euler for general noise, on Ito equations, and midpoint on Stratonovich ones.
    dt: the step, from ts[0]; times of ``ts`` between steps become steps, and nothing is interpolated.
    adaptive: steps of each sample's own, by srk (rtol and atol are per sample), without dt and dt_min.
    bm: a sdekit noise, a `BrownianTree` say, in place of ``seed``; or an object called as bm(ta, tb), with
    return_U where the method needs it, such as torchsde's. options: {"grad_free": True} for milstein.
    gradient: as of `sdekit.solve`, where gradients are enabled; "adjoint" is torchsde's sdeint_adjoint.
    logqp: with a prior drift h(t, y), return (states, (T - 1, B)) with the increments of
    int 1/2 |g^-1 (f - h)|^2 dt between the times, the divergence of the two equations' paths (g^-1 a
    pseudo-inverse; in diagonal noise |g| >= 1e-7). The integral is one more element of the state.

    Raises CapabilityError for what is not offered (extra, log_ode), and as `sdekit.solve`.
    """
    if extra:
        raise CapabilityError("extra=True is not offered: solvers keep their own state. Next: extra=False.")
    if not isinstance(y0, Tensor) or y0.ndim != 2:
        raise ShapeError(f"y0 must be a tensor (B, d), got {getattr(y0, 'shape', type(y0).__name__)}.")
    times = torch.as_tensor(ts, dtype=torch.float64).detach().cpu()
    if logqp:
        prior = getattr(sde, (names or {}).get("prior_drift", "h"), None)
        if not callable(prior):
            raise TypeError(f"logqp=True needs a prior drift, {type(sde).__name__}.h(t, y). Next: define it.")
        own = {role: name for role, name in (names or {}).items() if role != "prior_drift"}
        sde, names = _LogRatio(from_torchsde(sde, y0, names=own, t0=float(times.reshape(-1)[0])), prior), None
        y0 = torch.cat([y0, torch.zeros_like(y0[:, :1])], dim=1)
    system = from_torchsde(
        sde, y0, noise_dim=getattr(bm, "shape", (0, None))[1], names=names, t0=float(times.reshape(-1)[0])
    )
    system.t_min = min(system.t_min, float(times[0]))
    solver = _solver(system, method, adaptive, dict(options or {}))
    steps = {"rtol": rtol, "atol": atol} if adaptive else {"dt": float(dt)}
    found = solve(
        system,
        y0,
        (float(times[0]), float(times[-1])),
        solver=solver,
        save_at=times.tolist(),
        seed=seed,
        noise=noise_of(bm, solver, adaptive),
        gradient=gradient if torch.is_grad_enabled() else None,
        **steps,  # type: ignore[arg-type]
    )
    assert found.xs is not None
    return (found.xs[..., :-1], found.xs[..., -1].diff(dim=0)) if logqp else found.xs


def _solver(system: TorchSDE, method: str | None, adaptive: bool, options: dict[str, Any]) -> Solver:
    ito = system.sde_type == "ito"
    if method is None:
        stratonovich = "spark" if adaptive else "midpoint"
        method = stratonovich if not ito else "euler" if system.promise == "general" else "srk"
    if method in ("log_ode", "adjoint_reversible_heun"):
        raise CapabilityError(f"method {method!r} is not offered. Next: one of {', '.join(METHODS)}.")
    name = METHODS.get(method, method)
    if name == "srk" and system.promise == "additive":
        name = "sra1"
    if options.pop("grad_free", False) and name == "milstein":
        name = "milstein-free"
    if options:
        warnings.warn(f"options {sorted(options)} are not used.", stacklevel=3)
    solver = get(name, "sde")
    if adaptive and not solver.adaptive:
        raise CapabilityError(
            f"method {method!r} has no error estimate, so adaptive=True cannot choose its steps. Next: "
            f"method='srk' ('spark' on a Stratonovich equation), or a small dt and adaptive=False."
        )
    return solver


class _LogRatio:
    """(Y, int 1/2 |u|^2 dt), u = g^-1 (f - h), as one more object of torchsde's kind."""

    def __init__(self, system: TorchSDE, prior: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.system, self.prior = system, prior
        self.noise_type, self.sde_type = system.promise, system.sde_type

    def f(self, t: Tensor, z: Tensor) -> Tensor:
        y = z[:, :-1]
        f, g = self.system._f(t, y), self.system._g(t, y)
        gap = f - self.prior(t, y)
        if self.noise_type == "diagonal":
            floor = torch.where(g < 0, -SMALLEST, SMALLEST)
            u = gap / torch.where(g.abs() > SMALLEST, g, floor)
        else:
            u = (torch.linalg.pinv(g[..., None] if g.ndim == 2 else g) @ gap[..., None])[..., 0]
        return torch.cat([f, 0.5 * (u * u).sum(dim=1, keepdim=True)], dim=1)

    def g(self, t: Tensor, z: Tensor) -> Tensor:
        g = self.system._g(t, z[:, :-1])
        return torch.cat([g, torch.zeros_like(g[:, :1])], dim=1)
