"""Gradients through solvers: backprop, checkpoint, closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sdekit.noise import Philox
from sdekit.sde import ODE, SDE, Langevin, UnderdampedLangevin
from sdekit.solvers import ExponentialEuler, Solver, solve
from sdekit.solvers.base import _REGISTRY
from tests.solvers.problems import GaussianFlow, geometric

F64 = torch.float64


def rate(device: torch.device) -> Tensor:
    return torch.tensor(0.7, dtype=F64, device=device, requires_grad=True)


RUNS: list[dict[str, object]] = [
    {"solver": "rk45", "rtol": 1e-10, "atol": 1e-10},
    {"solver": "rk45", "steps": 40},
    {"solver": "heun", "steps": 4000},
    {"solver": "rk45", "rtol": 1e-10, "atol": 1e-10, "save_at": [0.25, 1.0]},
    {"solver": "heun", "steps": 4000, "save_at": [0.25, 1.0]},
]


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint"])
@pytest.mark.parametrize("options", RUNS, ids=range(len(RUNS)))
def test_ode_gradients(gradient: str, options: dict[str, object], device: torch.device) -> None:
    """x = x0 exp(-a sin t): d x/d a = -sin t x, d x/d x0 = exp(-a sin t), in saved states too."""
    a = rate(device)
    x0 = torch.tensor([[0.5], [2.0]], dtype=F64, device=device, requires_grad=True)
    out = solve(
        ODE(lambda x, t: -a * torch.cos(t.reshape(-1, 1)) * x), x0, (0.0, 1.0), gradient=gradient, **options
    )
    states = [(1.0, out.x)]
    if out.xs is not None:
        states += [(0.25, out.xs[0]), (1.0, out.xs[1])]
    for t, x in states:
        da, dx = torch.autograd.grad(x.sum(), (a, x0), retain_graph=True)
        factor = math.exp(-0.7 * math.sin(t))
        assert float(da) == pytest.approx(-math.sin(t) * 2.5 * factor, rel=1e-4)
        torch.testing.assert_close(dx, torch.full_like(dx, factor), rtol=1e-4, atol=0)


def run_em(gradient: str, mu: Tensor, sigma: Tensor, device: torch.device, n: int = 37) -> Tensor:
    sde = SDE(lambda x, t: mu * x, lambda x, t: sigma * x)
    x0 = torch.ones(5, 2, dtype=F64, device=device)
    return solve(sde, x0, (0.0, 1.0), steps=n, seed=4, gradient=gradient).x


def test_sde_gradients(device: torch.device) -> None:
    """Checkpointing repeats the noise: value and gradients are bitwise those of backprop, and exact.

    x = prod(1 + mu h + sigma dW_k), differentiated by hand.
    """
    n, results = 37, []
    for gradient in ("backprop", "checkpoint"):
        mu = torch.tensor(0.3, dtype=F64, device=device, requires_grad=True)
        sigma = torch.tensor(0.5, dtype=F64, device=device, requires_grad=True)
        x = run_em(gradient, mu, sigma, device, n)
        results.append((x.detach(), *torch.autograd.grad(x.sum(), (mu, sigma))))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    like, ids = torch.empty(5, 2, dtype=F64, device=device), torch.arange(5, device=device)
    w = torch.stack([Philox(4).normal(k, like, ids) for k in range(n)]) * math.sqrt(1 / n)
    growth = 1 + 0.3 / n + 0.5 * w
    x = growth.prod(0)
    exact = x, (x * (1 / n / growth).sum(0)).sum(), (x * (w / growth).sum(0)).sum()
    for a, b in zip(results[0], exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_gradient_of_a_probability_flow(device: torch.device) -> None:
    """d x(t1)/d x(t0) of the Gaussian map is sqrt(v1/v0), per coordinate."""
    from sdekit.sde import probability_flow

    law = GaussianFlow(device)
    ode = probability_flow(law.process, law.score)
    x = torch.linspace(-1, 1, 6, dtype=F64, device=device).reshape(2, 3).requires_grad_()
    out = solve(ode, x, (1.0, 1e-3), solver="rk45", rtol=1e-9, atol=1e-9)
    (slope,) = torch.autograd.grad(out.x.sum(), x)
    exact = (law.marginal(1e-3)[1] / law.marginal(1.0)[1]).sqrt().expand(2, 3)
    torch.testing.assert_close(slope, exact, rtol=1e-6, atol=0)


def test_no_graph_unless_it_is_wanted(device: torch.device) -> None:
    a = rate(device)
    ode = ODE(lambda x, t: -a * x)
    x0 = torch.ones(2, 1, dtype=F64, device=device)
    assert not solve(ode, x0, (0, 1), solver="heun", steps=3).x.requires_grad
    assert solve(ode, x0, (0, 1), solver="heun", steps=3, gradient="backprop").x.requires_grad
    with torch.no_grad():
        assert not solve(ode, x0.clone().requires_grad_(), (0, 1), solver="heun", steps=3).x.requires_grad


def saved_tensors(run: Callable[[], Tensor]) -> int:
    """How many tensors of the state's size the graph keeps."""
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda v: kept.append(v.numel()) or v, lambda v: v):
        run()
    return sum(n == 400 for n in kept)


def test_checkpoint_keeps_the_square_root(device: torch.device) -> None:
    """900 steps: about 30 states in place of 900 or more."""
    x0 = torch.ones(400, 1, dtype=F64, device=device, requires_grad=True)
    ode = ODE(lambda x, t: torch.sin(x))

    def run(gradient: str) -> Tensor:
        return solve(ode, x0, (0.0, 1.0), solver="euler", steps=900, gradient=gradient).x

    assert saved_tensors(lambda: run("backprop")) >= 900
    assert saved_tensors(lambda: run("checkpoint")) <= 70


def test_greeks(device: torch.device) -> None:
    """E[X_1] = x0 e^mu: the pathwise derivative in mu, 20,000 paths, within 5 standard errors (6e-7)."""
    n, paths = 50, 20_000
    mu = torch.tensor(0.3, dtype=F64, device=device, requires_grad=True)
    sde = SDE(lambda x, t: mu * x, geometric(0.3, 0.4).diffusion)
    x = solve(sde, torch.ones(paths, 1, dtype=F64, device=device), (0.0, 1.0), steps=n, gradient="backprop").x
    (slope,) = torch.autograd.grad(x.mean(), mu)
    exact = (1 + 0.3 / n) ** (n - 1)  # of the scheme: E x = (1 + mu h)^n
    assert abs(float(slope) - exact) < 5 * float(x.detach().std()) / math.sqrt(paths)


SPLITTINGS = ("aboba", "baoab", "oabao", "obabo")


def any_system(solver: type[Solver], a: Tensor, s: Tensor) -> ODE | SDE:
    """A nonlinear system that the solver takes, with a in its drift and s in its noise."""

    def drift(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(x) * torch.cos(t) - a * x

    if solver.kind == "ode":
        return ODE(drift)
    if solver.name in ("ula", "mala"):
        return Langevin(lambda x: -a * x, log_prob=lambda x: -(a * x * x / 2).sum(1))
    if solver.name in SPLITTINGS:
        return UnderdampedLangevin(lambda x: -a * torch.sin(x))
    additive = "diagonal" not in solver.noise_types
    return SDE(
        drift,
        lambda x, t: s * (1 + t) if additive else s * (1 + torch.cos(x) / 2),
        noise_type="additive" if additive else "diagonal",
        sde_type=solver.sde_types[0],
    )


@pytest.mark.parametrize("key", sorted(_REGISTRY), ids="-".join)
def test_every_solver_is_differentiable(key: tuple[str, str], device: torch.device) -> None:
    """Eight steps: backprop along a direction in x0 and both parameters is the central difference, and
    checkpointing changes no bit of it.
    """
    cls = _REGISTRY[key]
    solver: str | Solver = ExponentialEuler(linear=-0.8) if key[0] == "exponential-euler" else key[0]
    at = [torch.tensor(v, dtype=F64, device=device) for v in (0.8, 0.3, [[0.5, 1.0], [2.0, -1.0]])]
    way = [torch.tensor(v, dtype=F64, device=device) for v in (0.3, -0.7, [[0.2, 0.5], [-1.0, 0.4]])]

    def value(a: Tensor, s: Tensor, x0: Tensor, gradient: str | None = None) -> Tensor:
        system = any_system(cls, a, s)
        return (solve(system, x0, (0.0, 1.0), solver=solver, steps=8, gradient=gradient).x ** 2).sum()

    def slopes(gradient: str) -> tuple[Tensor, ...]:
        inputs = [v.clone().requires_grad_() for v in at]
        out = value(*inputs, gradient=gradient)
        return torch.autograd.grad(out, inputs, materialize_grads=True, allow_unused=True)

    whole = slopes("backprop")
    for g, again in zip(whole, slopes("checkpoint"), strict=True):
        assert torch.equal(g, again)
    ends = [float(value(*(v + eps * w for v, w in zip(at, way, strict=True)))) for eps in (1e-5, -1e-5)]
    slope = float(sum((g * w).sum() for g, w in zip(whole, way, strict=True)))
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-7)


def test_checkpointing_a_reversal_whose_noise_depends_on_the_state(device: torch.device) -> None:
    """The divergence of the noise is a derivative itself, within the steps that are run again."""
    from sdekit.sde import reverse

    s = torch.tensor(0.4, dtype=F64, device=device, requires_grad=True)
    back = reverse(SDE(lambda x, t: -x, lambda x, t: s * x), lambda x, t: -x)
    x0 = torch.tensor([[0.5], [2.0]], dtype=F64, device=device)
    ends = [solve(back, x0, (1.0, 0.0), steps=20, gradient=g).x for g in ("backprop", "checkpoint")]
    grads = [torch.autograd.grad(x.sum(), s)[0] for x in ends]
    assert torch.equal(*grads)
    assert grads[0] != 0
