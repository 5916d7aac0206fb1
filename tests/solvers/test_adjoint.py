"""gradient="adjoint": closed forms, orders, exactness of reversible Heun, memory, errors."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdekit.errors import CapabilityError, SolveError
from sdekit.noise import BrownianTree, Noise, Philox, TorchNoise
from sdekit.sde import ODE, SDE, VP, reverse
from sdekit.solvers import Adjoint, solve
from sdekit.solvers.adjoint_equation import _Augmented
from tests.solvers.test_gradients import saved_tensors

F64 = torch.float64
D = 2
KINDS = ("additive", "diagonal", "scalar", "general")


class Net(nn.Module):
    """A drift and a diffusion that share a layer."""

    def __init__(self, device: torch.device, width: int = 6) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        shapes = ((D, width), (width, D), (width, 2 * D), (D,))
        self.first, self.up, self.across, self.level = (
            nn.Parameter(0.5 * torch.randn(s, generator=generator, dtype=F64).to(device)) for s in shapes
        )

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x @ self.first) @ self.up * torch.cos(t)

    def diffusion(self, kind: str) -> Callable[[Tensor, Tensor], Tensor]:
        def general(x: Tensor, t: Tensor) -> Tensor:
            return (torch.tanh(x @ self.first) @ self.across).reshape(-1, D, 2) * self.level[:, None]

        return {
            "additive": lambda x, t: self.level * (1 + t),
            "diagonal": lambda x, t: self.level * (1 + torch.sin(x) / 2),
            "scalar": lambda x, t: self.level * x,
            "general": general,
        }[kind]

    def system(self, kind: str, sde_type: str = "stratonovich") -> SDE:
        m = 2 if kind == "general" else None
        return SDE(self.drift, self.diffusion(kind), noise_type=kind, sde_type=sde_type, noise_dim=m)


def start(device: torch.device) -> Tensor:
    return torch.tensor([[0.5, -1.0], [2.0, 0.1], [-0.4, 0.7]], dtype=F64, device=device)


def loss_gradient(
    system: ODE | SDE,
    x0: Tensor,
    parameters: list[Tensor],
    gradient: Any,
    span: Any = (0.0, 1.0),
    **options: Any,
) -> Tensor:
    """d/d(x0, parameters) of a loss on the end and on the saved states, as one vector."""
    x0 = x0.clone().requires_grad_()
    out = solve(system, x0, span, gradient=gradient, **options)
    loss = (out.x**2).sum()
    if out.xs is not None:
        weights = torch.arange(1.0, out.xs.numel() + 1, dtype=F64, device=x0.device).view_as(out.xs)
        loss = loss + (weights * torch.sin(out.xs)).sum()
    grads = torch.autograd.grad(loss, [x0, *parameters], materialize_grads=True, allow_unused=True)
    return torch.cat([g.flatten() for g in grads])


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# -- ODEs -----------------------------------------------------------------------------------------------


def logistic(device: torch.device) -> tuple[ODE, Tensor, Callable[..., Tensor]]:
    """x' = r x (1 - x) cos t, x = x0 e^u/(1 + x0 (e^u - 1)), u = r sin t."""
    r = torch.tensor([1.3, -0.6], dtype=F64, device=device, requires_grad=True)
    ode = ODE(lambda x, t: r * x * (1 - x) * torch.cos(t.reshape(-1, 1)))

    def exact(x0: Tensor, ends: tuple[float, ...]) -> Tensor:
        grows = (torch.exp(r * math.sin(t)) for t in ends)
        states = [x0 * e / (1 + x0 * (e - 1)) for e in grows]
        return torch.stack(states)

    return ode, r, exact


@pytest.mark.parametrize(
    ("solver", "steps", "order"), [("euler", 50, 1), ("heun", 20, 2), ("midpoint", 20, 2), ("rk45", 4, 5)]
)
@pytest.mark.parametrize("save_at", [None, (0.0, 0.5, 2.0)])
def test_ode_gradients_converge_at_the_order_of_the_solver(
    solver: str, steps: int, order: int, save_at: Any, device: torch.device
) -> None:
    ode, r, exact = logistic(device)
    x0 = torch.tensor([[0.3, 0.6], [0.1, 1.4]], dtype=F64, device=device)
    x = x0.clone().requires_grad_()
    states = exact(x, (2.0, *(save_at or ())))
    loss = (states[0] ** 2).sum()
    if save_at is not None:
        weights = torch.arange(1.0, states[1:].numel() + 1, dtype=F64, device=device).view_as(states[1:])
        loss = loss + (weights * torch.sin(states[1:])).sum()
    true = torch.cat([g.flatten() for g in torch.autograd.grad(loss, [x, r])])
    errors = [
        distance(
            loss_gradient(ode, x0, [r], "adjoint", (0.0, 2.0), solver=solver, steps=n, save_at=save_at), true
        )
        for n in (steps, 2 * steps, 4 * steps)
    ]
    assert errors[2] < 0.1
    assert math.log2(errors[1] / errors[2]) > order - 0.15, errors


@pytest.mark.parametrize("scale", [1.0, 1e-9])
@pytest.mark.parametrize("solver", ["rk45", "scipy:DOP853"])
def test_adaptive_gradients_keep_the_tolerance_at_any_size_of_the_loss(
    solver: str, scale: float, device: torch.device
) -> None:
    """Every sample with its own steps; many are rejected, since the rates differ by 100 and turn on late."""
    rate = torch.tensor([0.7], dtype=F64, device=device, requires_grad=True)
    fast = torch.tensor([[1.0], [100.0]], dtype=F64, device=device)
    ode = ODE(
        lambda x, t: -rate * fast * (x - torch.sin(fast * t.reshape(-1, 1))) * (t.reshape(-1, 1) > 0.25) * 0.1
    )
    x0 = torch.tensor([[2.0], [-1.0]], dtype=F64, device=device, requires_grad=True)

    def gradients(gradient: str, solver: str, tolerance: float) -> tuple[Tensor, ...]:
        out = solve(ode, x0, (0.0, 0.6), solver=solver, rtol=tolerance, atol=tolerance, gradient=gradient)
        return torch.autograd.grad(scale * (out.x**2).sum(), (x0, rate))

    true, found = gradients("backprop", "rk45", 1e-11), gradients("adjoint", solver, 1e-7)
    for a, b in zip(found, true, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=0)


def test_adaptive_gradients_at_saved_times(device: torch.device) -> None:
    """The start, the end and two times between, each with a slope of its own that enters there."""
    ode, r, exact = logistic(device)
    x0 = torch.tensor([[0.3, 0.6], [0.1, 1.4]], dtype=F64, device=device)
    x, times = x0.clone().requires_grad_(), (0.0, 0.5, 1.2, 2.0)
    states = exact(x, times)
    weights = torch.arange(1.0, states.numel() + 1, dtype=F64, device=device).view_as(states)
    loss = (states[-1] ** 2).sum() + (weights * torch.sin(states)).sum()
    true = torch.cat([g.flatten() for g in torch.autograd.grad(loss, [x, r])])
    options: dict[str, Any] = {"solver": "rk45", "rtol": 1e-8, "atol": 1e-8, "save_at": times}
    assert distance(loss_gradient(ode, x0, [r], "adjoint", (0.0, 2.0), **options), true) < 1e-6


def test_a_gradient_does_not_depend_on_the_batch(device: torch.device) -> None:
    """dL/dx0 of a sample, alone and among others, bit for bit."""
    ode = ODE(lambda x, t: torch.sin(3 * x) - x * x * x)
    x0 = torch.linspace(-2, 2, 5, dtype=F64, device=device).reshape(5, 1)
    for options in ({"solver": "heun", "steps": 20}, {"solver": "rk45"}):
        whole = loss_gradient(ode, x0, [], "adjoint", **options)
        alone = torch.cat([loss_gradient(ode, x0[i : i + 1], [], "adjoint", **options) for i in range(5)])
        assert torch.equal(whole, alone)


def test_an_ode_runs_in_either_direction(device: torch.device) -> None:
    """x = x0 exp(a (t1 - t0)) with t1 < t0."""
    a = torch.tensor(0.4, dtype=F64, device=device, requires_grad=True)
    x0 = torch.ones(1, 1, dtype=F64, device=device, requires_grad=True)
    for options in ({"solver": "rk45", "rtol": 1e-10, "atol": 1e-10}, {"solver": "rk45", "steps": 30}):
        out = solve(ODE(lambda x, t: a * x), x0, (2.0, 0.5), gradient="adjoint", **options)
        da, dx = torch.autograd.grad(out.x.sum(), (a, x0))
        assert float(da) == pytest.approx(-1.5 * math.exp(-0.6), rel=1e-8)
        assert float(dx) == pytest.approx(math.exp(-0.6), rel=1e-8)


def test_a_solver_that_has_no_adjoint_may_run_forward(device: torch.device) -> None:
    ode, r, _ = logistic(device)
    x0 = torch.tensor([[0.3, 0.6]], dtype=F64, device=device)
    true = loss_gradient(ode, x0, [r], "backprop", solver="rk45", steps=40)
    found = loss_gradient(ode, x0, [r], Adjoint(solver="rk45"), solver="abm4", steps=400)
    assert distance(found, true) < 1e-7
    with pytest.raises(CapabilityError, match=r"explicit Runge-Kutta.*'abm4'.*Adjoint\(solver='rk45'\)"):
        solve(ode, x0, (0.0, 1.0), solver="abm4", gradient="adjoint")
    with pytest.raises(CapabilityError, match="adaptive explicit Runge-Kutta"):
        solve(ode, x0, (0.0, 1.0), solver="rk45", gradient=Adjoint(solver="heun"))


# -- SDEs with closed forms -----------------------------------------------------------------------------


@pytest.mark.parametrize("sde_type", ["ito", "stratonovich"])
@pytest.mark.parametrize(("noise_type", "elements"), [("diagonal", 2), ("scalar", 2), ("general", 1)])
def test_gradients_of_geometric_brownian_motion(
    sde_type: str, noise_type: str, elements: int, device: torch.device
) -> None:
    """X = x0 exp(c T + s W), c = mu (- s^2/2, Ito): dX/dmu = T X, dX/ds = (W - (s T)) X, dX/dx0 = X/x0.

    On a path the error falls with the step, as h where the solver is of strong order 1: the noise commutes.
    """
    paths = 128
    mu = torch.full((paths, 1), 0.3, dtype=F64, device=device, requires_grad=True)
    s = torch.full((paths, 1), 0.5, dtype=F64, device=device, requires_grad=True)
    matrix = noise_type == "general"
    sde = SDE(
        lambda x, t: mu * x,
        lambda x, t: (s * x)[..., None] if matrix else s * x,
        noise_type=noise_type,
        sde_type=sde_type,
        noise_dim=1 if matrix else None,
    )
    x0 = torch.linspace(0.5, 2.0, paths * elements, dtype=F64, device=device).reshape(paths, elements)
    x0.requires_grad_()
    noise, ids = BrownianTree(5), torch.arange(paths, device=device)
    like = torch.empty(sde.noise_shape(x0), dtype=F64, device=device)
    w = noise.increments(0.0, 1.0, like, ids).W.reshape(paths, -1)
    shift = -0.125 if sde_type == "ito" else 0.0
    x = (x0 * torch.exp(0.3 + shift + 0.5 * w)).detach()
    slope = (w - (0.5 if sde_type == "ito" else 0.0)) * x
    exact = (x / x0.detach(), x.sum(1, keepdim=True), slope.sum(1, keepdim=True))
    solver = ("euler-maruyama" if matrix else "milstein") if sde_type == "ito" else "heun"
    errors = []
    for n in (8, 64):
        out = solve(sde, x0, (0.0, 1.0), steps=n, noise=noise, solver=solver, gradient="adjoint")
        found = torch.autograd.grad(out.x, (x0, mu, s), torch.ones_like(out.x))
        errors.append([distance(a, b) for a, b in zip(found, exact, strict=True)])
    for first, last in zip(*errors, strict=True):
        assert last < (0.05 if solver == "euler-maruyama" else 0.02), errors
        assert last < first * (0.5 if solver == "euler-maruyama" else 0.2), errors


def test_gradients_of_ornstein_uhlenbeck(device: torch.device) -> None:
    """X = m + (x0 - m) e^-kT + s N, N = int e^-k(T-u) dW = W_T - k int_0^T e^-k(T-u) W_u du on a path, and
    dX/ds = N, dX/dm = 1 - e^-kT, dX/dk = -T (x0 - m) e^-kT + s dN/dk.
    """
    rows, cells = 64, 512
    k, m, s = (
        torch.full((rows, 1), v, dtype=F64, device=device, requires_grad=True) for v in (1.5, 0.4, 0.7)
    )
    sde = SDE(lambda x, t: k * (m - x), lambda x, t: s, noise_type="additive")
    noise, ids = BrownianTree(2), torch.arange(rows, device=device)
    x0 = torch.linspace(-1, 1, rows, dtype=F64, device=device)[:, None].requires_grad_()
    h, w, area, _ = noise.steps(torch.linspace(0, 1, cells + 1), x0.detach(), ids)
    left = torch.cat([torch.zeros_like(w[:1]), w.cumsum(0)[:-1]])
    whole = h * (left + w / 2 + area)  # int W du over each cell
    middle = torch.linspace(0, 1, cells + 1, dtype=F64, device=device)[:-1, None, None] + h / 2
    decay = torch.exp(-k * (1 - middle))
    path = w.sum(0) - k * (decay * whole).sum(0)
    x = m + (x0 - m) * torch.exp(-k) + s * path
    true = torch.cat([g.flatten() for g in torch.autograd.grad((x**3).sum(), (x0, k, m, s))])
    errors = []
    for n in (8, 64):
        out = solve(sde, x0, (0.0, 1.0), steps=n, noise=noise, solver="sra1", gradient="adjoint")
        found = torch.autograd.grad((out.x**3).sum(), (x0, k, m, s))
        errors.append(distance(torch.cat([g.flatten() for g in found]), true))
    assert errors[1] < 1e-2
    assert errors[1] < 0.15 * errors[0], errors


def test_without_the_noise_of_the_adjoint_gradients_are_wrong(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Net(device)
    parameters = list(net.parameters())

    def error() -> float:
        options: dict[str, Any] = {"noise": BrownianTree(1), "steps": 200, "solver": "heun"}
        runs = (
            loss_gradient(net.system("diagonal"), start(device), parameters, gradient, **options)
            for gradient in ("adjoint", "backprop")
        )
        return distance(*runs)

    assert error() < 5e-3
    honest = _Augmented.apply_noise

    def deaf(self: _Augmented, g: Any, dw: Tensor) -> Tensor:
        out = honest(self, g, dw)
        return torch.cat([out[:, :D], torch.zeros_like(out[:, D : 2 * D]), out[:, 2 * D :]], 1)

    monkeypatch.setattr(_Augmented, "apply_noise", deaf)
    assert error() > 5e-2


# -- networks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", [Philox(4), BrownianTree(4)], ids=["philox", "tree"])
def test_the_adjoint_of_reversible_heun_is_backprop(kind: str, noise: Noise, device: torch.device) -> None:
    """Each step undone and differentiated: equal to rounding, for every noise and at saved times."""
    net = Net(device)
    options: dict[str, Any] = {
        "solver": "reversible-heun",
        "steps": 60,
        "noise": noise,
        "save_at": (0.0, 0.3, 1.0),
        "span": (0.0, 1.5),
    }
    runs = [
        loss_gradient(net.system(kind), start(device), list(net.parameters()), g, **options)
        for g in ("adjoint", "backprop")
    ]
    assert distance(*runs) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("sde_type", "solver", "bound"),
    [
        ("stratonovich", "heun", 8e-3),
        ("stratonovich", "midpoint", 8e-3),
        ("stratonovich", "euler-heun", 2e-2),
        ("ito", "euler-maruyama", 6e-2),
    ],
)
def test_the_adjoint_equation_agrees_with_backprop(
    kind: str, sde_type: str, solver: str, bound: float, device: torch.device
) -> None:
    """The two differ by the error of the solver, and less at smaller steps."""
    net = Net(device)
    x0 = torch.linspace(-1.0, 2.0, 32 * D, dtype=F64, device=device).reshape(32, D)
    errors = []
    for steps in (8, 64):
        options: dict[str, Any] = {
            "solver": solver,
            "steps": steps,
            "noise": BrownianTree(1),
            "save_at": (0.4, 1.0),
        }
        runs = [
            loss_gradient(net.system(kind, sde_type), x0, list(net.parameters()), g, **options)
            for g in ("adjoint", "backprop")
        ]
        errors.append(distance(*runs))
    assert errors[1] < min(bound, 0.6 * errors[0]), errors


def test_gradients_agree_with_finite_differences(device: torch.device) -> None:
    """Along a random direction in x0 and all parameters at once; central differences, to their accuracy."""
    net = Net(device)
    parameters = list(net.parameters())
    generator = torch.Generator().manual_seed(0)
    x0 = start(device)
    way = [torch.randn(v.shape, generator=generator, dtype=F64).to(device) for v in (x0, *parameters)]
    run: dict[str, Any] = {"solver": "reversible-heun", "steps": 30, "seed": 9}
    whole = loss_gradient(net.system("general"), x0, parameters, "adjoint", **run)
    slope = float(whole @ torch.cat([w.flatten() for w in way]))

    def value(eps: float) -> float:
        with torch.no_grad():
            for p, w in zip(parameters, way[1:], strict=True):
                p.add_(eps * w)
            x = solve(net.system("general"), x0 + eps * way[0], (0.0, 1.0), **run).x
            for p, w in zip(parameters, way[1:], strict=True):
                p.sub_(eps * w)
        return float((x**2).sum())

    assert slope == pytest.approx((value(1e-5) - value(-1e-5)) / 2e-5, rel=1e-7)


def test_the_gradient_of_a_reverse_process(device: torch.device) -> None:
    """Time runs down, and the score has parameters, inside the drift of the reversal alone."""
    scale = torch.tensor(-0.8, dtype=F64, device=device, requires_grad=True)
    back = reverse(VP(), lambda x, t: scale * x)
    x0 = start(device)
    errors = []
    for steps in (50, 400):
        options: dict[str, Any] = {
            "noise": BrownianTree(3),
            "steps": steps,
            "save_at": (0.7,),
            "span": (1.0, 0.2),
        }
        runs = [loss_gradient(back, x0, [scale], g, **options) for g in ("adjoint", "backprop")]
        errors.append(distance(*runs))
    assert errors[1] < min(0.02, errors[0] / 4), errors


def test_a_parameter_used_inside_and_outside_the_run(device: torch.device) -> None:
    """L = a x(1), x(1) = x0 e^a: dL/da = (1 + a) x0 e^a; two runs add up."""
    a = torch.tensor(0.3, dtype=F64, device=device, requires_grad=True)
    ode = ODE(lambda x, t: a * x)
    x0 = torch.ones(1, 1, dtype=F64, device=device)
    ends = [solve(ode, x0, (0.0, 1.0), solver="rk45", steps=30, gradient="adjoint").x for _ in range(2)]
    (slope,) = torch.autograd.grad((a * (ends[0] + ends[1])).sum(), a)
    assert float(slope) == pytest.approx(2 * 1.3 * math.exp(0.3), rel=1e-8)


# -- which tensors --------------------------------------------------------------------------------------


def test_tensors_that_are_not_leaves(device: torch.device) -> None:
    """Through the graph, or cut at the tensor by params: the same gradient of what it was made from."""
    for params in (False, True):
        w = torch.tensor(0.5, dtype=F64, device=device, requires_grad=True)
        a = torch.sin(w)
        x0 = torch.ones(2, 1, dtype=F64, device=device)
        gradient = Adjoint(params=[a]) if params else Adjoint()
        x = solve(ODE(lambda x, t, a=a: a * x), x0, (0.0, 1.0), solver="rk45", steps=20, gradient=gradient).x
        (slope,) = torch.autograd.grad(x.sum(), w)
        assert float(slope) == pytest.approx(2 * math.cos(0.5) * math.exp(math.sin(0.5)), rel=1e-8)


def test_only_the_tensors_that_are_asked_for(device: torch.device) -> None:
    a, b = (torch.tensor(v, dtype=F64, device=device, requires_grad=True) for v in (0.3, 0.2))
    x0 = torch.ones(1, 1, dtype=F64, device=device)
    frozen = torch.tensor(0.1, dtype=F64, device=device)
    ode, some = ODE(lambda x, t: (a + b + frozen) * x), Adjoint(params=iter([a, a, frozen]))
    x = solve(ode, x0, (0.0, 1.0), solver="heun", steps=5, gradient=some).x
    grads = torch.autograd.grad(x.sum(), (a, b), allow_unused=True)
    assert grads[0] is not None
    assert grads[1] is None


class Late(nn.Module):
    """A module half of which is used after t = 1/2 only."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor(v, dtype=F64, device=device)) for v in (0.3, 0.2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return (self.a if t < 0.5 else self.b) * x


@pytest.mark.parametrize("solver", ["heun", "reversible-heun"])
def test_a_tensor_that_turns_up_late(solver: str, device: torch.device) -> None:
    """Held by the system it is found; hidden in a function it raises, until it is named."""
    net = Late(device)
    x0 = torch.ones(1, 1, dtype=F64, device=device)

    def run(drift: Callable[[Tensor, Tensor], Tensor], gradient: Any) -> Tensor:
        system = SDE(drift, lambda x, t: 0.1, noise_type="additive", sde_type="stratonovich")
        return solve(system, x0, (0.0, 1.0), solver=solver, steps=20, gradient=gradient).x.sum()

    grads = [
        torch.autograd.grad(run(net.forward, "adjoint"), [net.a, net.b]),
        torch.autograd.grad(run(lambda x, t: net(x, t), Adjoint(params=net.parameters())), [net.a, net.b]),
        torch.autograd.grad(run(net.forward, "backprop"), [net.a, net.b]),
    ]
    for a, b, c in zip(*grads, strict=True):
        assert torch.equal(a, b)
        assert float(a) == pytest.approx(float(c), rel=0.05)
    with pytest.raises(ValueError, match=r"met 1 tensor\(s\).*Adjoint\(params="):
        run(lambda x, t: net(x, t), "adjoint").backward()


def test_nothing_to_differentiate(device: torch.device) -> None:
    x0 = torch.ones(2, 1, dtype=F64, device=device)
    out = solve(ODE(lambda x, t: -x), x0, (0.0, 1.0), solver="heun", steps=4, gradient="adjoint")
    assert not out.x.requires_grad
    x0.requires_grad_()
    still = solve(
        ODE(lambda x, t: torch.ones_like(x)), x0, (0.0, 1.0), solver="heun", steps=4, gradient="adjoint"
    )
    (slope,) = torch.autograd.grad(still.x.sum(), x0)
    assert torch.equal(slope, torch.ones_like(x0))


# -- memory ---------------------------------------------------------------------------------------------


RUNS: list[tuple[str, dict[str, Any]]] = [
    ("ode", {"solver": "heun"}),
    ("sde", {"solver": "heun"}),
    ("sde", {"solver": "reversible-heun"}),
]


@pytest.mark.parametrize(("kind", "options"), RUNS)
def test_memory_does_not_grow_with_the_steps(
    kind: str, options: dict[str, Any], device: torch.device
) -> None:
    """Tensors kept for the backward pass, and states alive while it runs."""
    p = torch.tensor(0.5, dtype=F64, device=device, requires_grad=True)
    x0 = torch.ones(400, 1, dtype=F64, device=device, requires_grad=True)
    alive: list[Any] = []
    most = 0

    def drift(x: Tensor, t: Tensor) -> Tensor:
        nonlocal most
        out = torch.sin(p * x)
        alive.append(weakref.ref(out))
        most = max(most, sum(ref() is not None for ref in alive))
        return out

    system = (
        ODE(drift)
        if kind == "ode"
        else SDE(drift, lambda x, t: p, noise_type="additive", sde_type="stratonovich")
    )
    found = []
    for steps in (20, 300):
        ends: list[Tensor] = []

        def run(steps: int = steps, ends: list[Tensor] = ends) -> Tensor:
            ends.append(solve(system, x0, (0.0, 1.0), steps=steps, gradient="adjoint", **options).x)
            return ends[0]

        kept = saved_tensors(run)
        alive.clear()
        most = 0
        gc.collect()
        ends[0].sum().backward()
        found.append((kept, most))
    assert found[0] == found[1]
    assert found[1][0] <= 8
    assert found[1][1] <= 6


# -- the door -------------------------------------------------------------------------------------------


def test_refusals(device: torch.device) -> None:
    x0 = torch.ones(1, 1, dtype=F64, device=device)
    sde = SDE(lambda x, t: -x, lambda x, t: x)

    def run(gradient: Any = "adjoint", **options: Any) -> None:
        solve(sde, x0, (0.0, 1.0), gradient=gradient, **{"steps": 3, **options})

    with pytest.raises(CapabilityError, match="TorchNoise cannot"):
        run(noise=TorchNoise())
    with pytest.raises(CapabilityError, match="'platen' does not follow the Brownian path"):
        run(solver="platen")
    with pytest.raises(CapabilityError, match="does not follow the Brownian path at fixed steps"):
        run(solver="sosri", steps=None)
    with pytest.raises(CapabilityError, match="one of 'euler-heun', 'heun', 'midpoint', got 'milstein'"):
        run(Adjoint(solver="milstein"))
    for wrong in (torch.ones(2), ["a"]):
        with pytest.raises(TypeError, match="params must be a list of tensors"):
            Adjoint(params=wrong)  # type: ignore[arg-type]


def test_second_derivatives_and_changed_parameters_raise(device: torch.device) -> None:
    a = torch.tensor(0.3, dtype=F64, device=device, requires_grad=True)
    x0 = torch.ones(1, 1, dtype=F64, device=device)

    def run() -> Tensor:
        return solve(
            ODE(lambda x, t: a * x), x0, (0.0, 1.0), solver="heun", steps=3, gradient="adjoint"
        ).x.sum()

    with pytest.raises(CapabilityError, match="first derivatives only"):
        torch.autograd.grad(run(), a, create_graph=True)
    end = run()
    with torch.no_grad():
        a.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        end.backward()


def test_a_run_that_cannot_be_traced_back_raises(device: torch.device) -> None:
    """x' = -100 x forgets where it came from: back it grows by e^100, which takes more steps than forward."""
    x0 = torch.ones(2, 1, dtype=F64, device=device, requires_grad=True)
    options: dict[str, Any] = {
        "solver": "rk45",
        "rtol": 1e-4,
        "atol": 1e-4,
        "max_steps": 60,
    }
    end = solve(ODE(lambda x, t: -100 * x), x0, (0.0, 1.0), gradient="adjoint", **options)
    with pytest.raises(SolveError, match=r"adjoint equation of 2 of 2 samples.*'rk45'.*max_steps=60"):
        end.x.sum().backward()


@pytest.mark.parametrize("solver", ["tsit5", "rk4", "milstein"])
def test_events_without_axes(solver: str) -> None:
    """States (B,), one number a sample, as states (B, 1)."""
    fields = (lambda x, t: torch.sin(x), lambda x, t: 0.3 * x)
    system = SDE(*fields) if solver == "milstein" else ODE(fields[0])
    x = torch.tensor([0.5, 1.0, 2.0], dtype=F64)
    options = {"solver": solver, **({} if solver == "tsit5" else {"steps": 8})}
    flat, wide = (loss_gradient(system, y, [], "adjoint", **options) for y in (x, x[:, None]))
    torch.testing.assert_close(flat, wide, rtol=1e-12, atol=0)
