"""Euler-Maruyama: orders, exact moments, general noise, reversal.

Monte Carlo checks are 5 standard errors wide (false alarm 6e-7 each) at fixed seeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import expm
from torch import Tensor

from sdekit.noise import Philox, Recorded
from sdekit.sde import ODE, SDE, LinearSDE, probability_flow, reverse
from sdekit.solvers import EulerMaruyama, Interval, solve
from tests.solvers.problems import GaussianFlow, close_moments, euler_moments, geometric, slope

THETA, MU, SIGMA = 1.3, 0.4, 0.7


def ou_moments(n: int, solver: Any, device: torch.device) -> tuple[float, float]:
    """Mean and variance at t = 1 of the scheme on dX = theta (mu - X) dt + sigma dW, X0 = 2, exactly.

    The scheme is affine in its draws: one run with no noise, and one with a one at each draw, give its law.
    """
    draws = torch.zeros(n, n + 1, 1, dtype=torch.float64, device=device)
    draws[torch.arange(n), torch.arange(1, n + 1)] = 1.0
    sde = SDE(lambda x, t: THETA * (MU - x), lambda x, t: torch.full_like(x, SIGMA), noise_type="additive")
    x0 = torch.full((n + 1, 1), 2.0, dtype=torch.float64, device=device)
    x = solve(sde, x0, (0.0, 1.0), steps=n, noise=Recorded(draws), solver=solver).x[:, 0]
    return float(x[0]), float(((x[1:] - x[0]) ** 2).sum())


@dataclass(frozen=True)
class LoudMaruyama(EulerMaruyama):
    """A mutation: the noise of a step twice as long, half the time."""

    name = "loud"

    def step(self, system: Any, x: Tensor, interval: Interval, carry: Any) -> Any:
        assert interval.W is not None
        return super().step(system, x, interval._replace(W=1.01 * interval.W), carry)


def test_weak_order_of_exact_moments(device: torch.device) -> None:
    """Mean and variance converge at order 1; 1 % too much noise does not converge at all."""
    mean = MU + (2 - MU) * math.exp(-THETA)
    variance = SIGMA**2 * (1 - math.exp(-2 * THETA)) / (2 * THETA)
    for exact, part in ((mean, 0), (variance, 1)):
        errors = [abs(ou_moments(n, "euler-maruyama", device)[part] - exact) for n in (80, 160, 320)]
        assert 0.97 < slope(errors) < 1.05
    errors = [abs(ou_moments(n, LoudMaruyama(), device)[1] - variance) for n in (160, 320)]
    assert slope(errors) < 0.3


def test_strong_order_on_the_same_path(device: torch.device) -> None:
    """RMS error to x0 exp((mu - sigma^2/2) t + sigma W), W the path of the run: order 1/2 for diagonal noise.

    E e^2 at 32 and 128 steps from 20,000 paths each; the slope of half its logarithm over two doublings.
    """
    mu, sigma, paths = 0.3, 0.5, 20_000
    fine = 128
    xi = torch.stack(
        [
            Philox(5).normal(k, torch.empty(paths, 1, dtype=torch.float64), torch.arange(paths))
            for k in range(fine)
        ]
    )
    exact = torch.exp(torch.tensor(mu - sigma**2 / 2) + sigma * xi.sum(0) / math.sqrt(fine))
    logs, noise = [], []
    for n in (32, 128):
        draws = xi.reshape(n, fine // n, paths, 1).sum(1) / math.sqrt(fine // n)
        x0 = torch.ones(paths, 1, dtype=torch.float64, device=device)
        x = solve(geometric(mu, sigma), x0, (0.0, 1.0), steps=n, noise=Recorded(draws)).x
        square = (x.cpu() - exact) ** 2
        logs.append(0.5 * math.log2(float(square.mean())))
        noise.append(float(0.5 * square.std() / square.mean()) / math.log(2) / math.sqrt(paths))
    observed = (logs[0] - logs[1]) / 2
    assert abs(observed - 0.5) < 5 * math.hypot(*noise) / 2 + 0.02


def linear(device: torch.device) -> tuple[SDE, np.ndarray, np.ndarray]:
    """dX = A X dt + sum_k B_k X dW_k with B_0 B_1 != B_1 B_0, d = 3, m = 2."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(3, 3)) / 2 - np.eye(3)
    b = rng.normal(size=(2, 3, 3)) * 0.35
    assert np.abs(b[0] @ b[1] - b[1] @ b[0]).max() > 0.05
    at, bt = (torch.from_numpy(v).to(device) for v in (a, b))

    def diffusion(x: Tensor, t: Tensor) -> Tensor:
        return torch.einsum("kij,nj->nik", bt.to(x.dtype), x)

    return SDE(lambda x, t: x @ at.T.to(x.dtype), diffusion, noise_type="general", noise_dim=2), a, b


def test_general_noise_has_the_exact_law(device: torch.device) -> None:
    """Mean expm(A t) x0 and vec E[XX^T] = expm(t (A (+) A + sum B (x) B)) vec x0 x0^T.

    The scheme's own moments, by recursion, are 1st-order close to those; the run has the scheme's moments.
    """
    sde, a, b = linear(device)
    x0, paths, eye = np.array([1.0, -0.5, 0.8]), 15_000, np.eye(3)
    second = np.kron(a, eye) + np.kron(eye, a) + sum(np.kron(m, m) for m in b)
    exact = expm(a) @ x0, (expm(second) @ np.kron(x0, x0)).reshape(3, 3)

    def scheme(n: int) -> tuple[np.ndarray, np.ndarray]:
        h, mean, moment = 1 / n, x0, np.outer(x0, x0)
        for _ in range(n):
            grow = eye + h * a
            mean, moment = grow @ mean, grow @ moment @ grow.T + h * sum(m @ moment @ m.T for m in b)
        return mean, moment

    gaps = [np.abs(scheme(n)[1] - exact[1]).max() for n in (40, 80)]
    assert 0.9 < slope(gaps) < 1.1
    start = torch.from_numpy(x0).to(device).expand(paths, 3)
    x = solve(sde, start, (0.0, 1.0), steps=40, seed=3).x.cpu().numpy()
    for values, expected in ((x, scheme(40)[0]), (x[:, :, None] * x[:, None, :], scheme(40)[1])):
        error = values.std(0) / math.sqrt(paths)
        assert (np.abs(values.mean(0) - expected) < 5 * error).all()
    assert np.abs(scheme(40)[1] - np.outer(*[scheme(40)[0]] * 2)).max() > 20 * error.max()  # noise matters


def test_scalar_noise_moves_all_elements_together(device: torch.device) -> None:
    """One Brownian motion: the elements stay proportional. A diffusion of shape () broadcasts by rows."""
    x0 = torch.tensor([[1.0, 2.0], [3.0, 5.0]], dtype=torch.float64, device=device)
    sde = SDE(lambda x, t: 0.1 * x, lambda x, t: 0.4 * x, noise_type="scalar")
    x = solve(sde, x0, (0.0, 1.0), steps=20).x
    torch.testing.assert_close(x / x0, (x / x0)[:, :1].expand(2, 2))
    assert float((x / x0)[0, 0]) != float((x / x0)[1, 0])
    shift = SDE(lambda x, t: 0 * x, lambda x, t: x.new_tensor(0.4), noise_type="scalar")
    moved = solve(shift, x0, (0.0, 1.0), steps=20).x - x0
    torch.testing.assert_close(moved, moved[:, :1].expand(2, 2))
    assert float(moved[0, 0]) != float(moved[1, 0])


def reversed_log_mean(divergence: bool, device: torch.device) -> tuple[float, float]:
    """Mean of log X_0, and its standard error, of reversed dX = sigma^2/2 X dt + sigma X dW, E log X = 0.

    log X_t ~ N(0, v + sigma^2 t), so that the score of X is (-(log x)/v_t - 1)/x. Without the divergence of
    G G^T, d(log X) has a further drift of 2 sigma^2 and the mean becomes 2 v ln(v/(v + sigma^2)) = -0.160.
    """
    sigma, paths = 0.4, 10_000
    v = 0.06372
    assert abs(2 * v * math.log(v / (v + sigma**2)) + 0.160) < 1e-4

    def score(x: Tensor, t: Tensor) -> Tensor:
        return (-torch.log(x) / (v + sigma**2 * t) - 1) / x

    process = geometric(sigma**2 / 2, sigma)
    if not divergence:
        process.divergence_ggt = lambda x, t: torch.zeros_like(x)
    xi = Philox(9).initial(
        torch.empty(paths, 1, dtype=torch.float64, device=device), torch.arange(paths, device=device)
    )
    x = solve(
        reverse(process, score), torch.exp(math.sqrt(v + sigma**2) * xi), (1.0, 0.0), steps=150, seed=4
    ).x
    logs = torch.log(x)
    return float(logs.mean()), float(logs.std()) / math.sqrt(paths)


def test_reversed_geometric_brownian_motion(device: torch.device) -> None:
    """0 with the divergence term and -0.160 without it; 2e-3 is left for the step."""
    mean, error = reversed_log_mean(True, device)
    assert abs(mean) < 5 * error + 2e-3
    mean, error = reversed_log_mean(False, device)
    assert abs(mean + 0.160) < 5 * error + 2e-3


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_reverse_restores_the_marginal(eta: float, device: torch.device) -> None:
    """Forward marginal at 1 -> reverse SDE -> marginal at 0.05: exact law of the scheme, and Monte Carlo.

    The scheme is affine per coordinate; its mean and variance follow a recursion, 1st order in h.
    """
    law = GaussianFlow(device)
    sde = reverse(law.process, law.score, eta=eta)
    (m, v), goal = law.marginal(1.0), law.marginal(0.05)
    schemes = [euler_moments(sde, np.linspace(1.0, 0.05, n + 1), m, v) for n in (100, 200, 400)]
    for part in (0, 1):
        gaps = [float((scheme[part] - goal[part]).abs().max()) for scheme in schemes[1:]]
        assert 0.9 < slope(gaps) < 1.25
    paths = 20_000
    ids = torch.arange(paths, device=device)
    x1 = m + v.sqrt() * Philox(1).initial(torch.empty(paths, 3, dtype=torch.float64, device=device), ids)
    x = solve(sde, x1, (1.0, 0.05), steps=100, seed=2).x
    close_moments(x, *schemes[0])


def test_forward_then_reverse(device: torch.device) -> None:
    """Data -> noise -> data by Euler-Maruyama on the same samples: the two schemes' law, and the data's.

    Without the score the reverse run does not come back (control).
    """
    law, paths, n = GaussianFlow(device), 20_000, 100
    there, ts = law.process, np.linspace(1e-3, 1.0, n + 1)
    xi = Philox(6).initial(
        torch.empty(paths, 3, dtype=torch.float64, device=device), torch.arange(paths, device=device)
    )
    data = law.marginal(1e-3)
    noisy = solve(there, data[0] + data[1].sqrt() * xi, (1e-3, 1.0), steps=n, seed=7).x
    middle = euler_moments(there, ts, *data)
    close_moments(noisy, *middle)
    for score, back_again in ((law.score, True), (lambda x, t: 0 * x, False)):
        back = reverse(there, score)
        out = solve(back, noisy, (1.0, 1e-3), steps=n, seed=8).x
        close_moments(out, *euler_moments(back, ts[::-1], *middle))
        assert torch.allclose(out.var(0), law.variance, rtol=0.12) == back_again


def test_matrix_noise_against_van_loan(device: torch.device) -> None:
    """A non-normal A, correlated noise: the scheme's moments to 5 errors, 1st order to the exact law."""
    system = LinearSDE([[-1.0, 0.7], [-0.2, -0.4]], [0.3, -0.5], [[1.0, 0.2, 0.0], [0.4, 0.5, 0.3]])
    a, b, q = system.A, system.b, system.L @ system.L.T
    x0, paths = torch.tensor([[1.0, -2.0]], dtype=torch.float64), 20_000
    exact = system.transition(x0, 0.0, 1.0)

    def scheme(n: int) -> tuple[Tensor, Tensor]:
        grow, mean, cov = torch.eye(2, dtype=torch.float64) + a / n, x0[0], torch.zeros_like(a)
        for _ in range(n):
            mean, cov = grow @ mean + b / n, grow @ cov @ grow.T + q / n
        return mean, cov

    for part, goal in ((0, exact.mean[0]), (1, exact.cov)):
        gaps = [float((scheme(n)[part] - goal).abs().max()) for n in (100, 200)]
        assert 0.9 < slope(gaps) < 1.1
    x = solve(system, x0.to(device).expand(paths, 2), (0.0, 1.0), steps=40, seed=9).x.cpu()
    mean, cov = scheme(40)
    assert bool(((x.mean(0) - mean).abs() < 5 * (cov.diagonal() / paths).sqrt()).all())
    error = ((cov**2 + torch.outer(cov.diagonal(), cov.diagonal())) / paths).sqrt()
    assert bool(((torch.cov(x.T) - cov).abs() < 5 * error).all())


def test_scalar_noise_has_the_exact_law(device: torch.device) -> None:
    """dX_i = c_i X_i dW, one W: E[X_i X_j] = x_i x_j (1 + c_i c_j h)^n, not x_i x_j as with a W each."""
    c = torch.tensor([0.6, 0.3, -0.4], dtype=torch.float64, device=device)
    paths, n = 40_000, 20
    sde = SDE(lambda x, t: 0 * x, lambda x, t: c * x, noise_type="scalar")
    x = solve(sde, torch.ones(paths, 3, dtype=torch.float64, device=device), (0.0, 1.0), steps=n, seed=2).x
    products = x[:, :, None] * x[:, None, :]
    error = products.std(0) / math.sqrt(paths)
    gap = products.mean(0) - (1 + torch.outer(c, c) / n) ** n
    assert bool((gap.abs() < 5 * error).all())
    assert bool((((1 + torch.outer(c, c) / n) ** n - 1).abs() > 10 * error).all())


def any_sde(kind: str) -> SDE:
    """One of each noise type, with elementwise arithmetic."""
    if kind == "general":
        return SDE(
            lambda x, t: -x * t,
            lambda x, t: torch.stack([0.3 * x, torch.cos(x), 0 * x + t], dim=-1),
            noise_type="general",
            noise_dim=3,
        )
    fields = {
        "additive": lambda x, t: 0.2 + 0 * x,
        "scalar": lambda x, t: 0.3 * x,
        "diagonal": lambda x, t: 0.3 * x,
    }
    return SDE(lambda x, t: -x * t + 0.1, fields[kind], noise_type=kind)


@given(
    kind=st.sampled_from(["additive", "scalar", "diagonal", "general"]),
    event=st.lists(st.integers(1, 5), max_size=3),
    batch=st.integers(2, 40),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_batch_split_changes_no_bit(
    kind: str, event: list[int], batch: int, dtype: torch.dtype, seed: int
) -> None:
    """A sample is the same alone, in any part of the batch, and in any order of its rows."""
    x0 = torch.randn(batch, *event, generator=torch.Generator().manual_seed(seed)).to(dtype)
    sde, options = any_sde(kind), {"steps": 5, "seed": seed}
    full = solve(sde, x0, (0.0, 1.0), **options).x
    assert full.dtype == dtype
    cut = seed % (batch - 1) + 1
    parts = [
        solve(sde, x0[:cut], (0.0, 1.0), **options).x,
        solve(sde, x0[cut:], (0.0, 1.0), first_id=cut, **options).x,
    ]
    assert torch.equal(torch.cat(parts), full)


@given(steps=st.integers(1, 40), backwards=st.booleans(), dim=st.integers(1, 4))
def test_no_noise_is_euler(steps: int, backwards: bool, dim: int) -> None:
    """g = 0, bit for bit."""
    law = GaussianFlow(torch.device("cpu"))
    x0 = torch.linspace(-1, 1, 3 * dim, dtype=torch.float64).reshape(dim, 3)
    flow = probability_flow(law.process, law.score)
    span = (0.9, 0.1) if backwards else (0.1, 0.9)
    sde = SDE(flow.drift, lambda x, t: 0 * x)
    sde.runs_backward = backwards
    euler = solve(flow, x0, span, solver="euler", steps=steps).x
    assert torch.equal(solve(sde, x0, span, steps=steps).x, euler)
    assert torch.equal(solve(flow, x0, span, steps=steps).x, euler)


def test_time_flip_changes_nothing(device: torch.device) -> None:
    """dX = f(X, t) dt over (0, 1) and its mirror over (1, 0), with the same draws: the same bits."""
    there = SDE(lambda x, t: torch.sin(x) * t, lambda x, t: 0.3 * x * (1 + t))
    back = SDE(lambda x, t: -there.drift(x, 1 - t), lambda x, t: there.diffusion(x, 1 - t))
    back.runs_backward = True
    x0 = torch.linspace(0.5, 2, 8, dtype=torch.float64, device=device).reshape(4, 2)
    for steps in (16, 64):  # dyadic, so that 1 - t is exact
        a, b = solve(there, x0, (0.0, 1.0), steps=steps).x, solve(back, x0, (1.0, 0.0), steps=steps).x
        assert torch.equal(a, b)


def test_affine_change_of_variable(device: torch.device) -> None:
    """y = 4 x - 2: the run in y is the image of the run in x."""
    sde = any_sde("diagonal")
    other = SDE(
        lambda y, t: 4 * sde.drift((y + 2) / 4, t),
        lambda y, t: 4 * sde.diffusion((y + 2) / 4, t),
        noise_type="diagonal",
    )
    x0 = torch.linspace(0.5, 2, 8, dtype=torch.float64, device=device).reshape(4, 2)
    x, y = solve(sde, x0, (0.0, 1.0), steps=50).x, solve(other, 4 * x0 - 2, (0.0, 1.0), steps=50).x
    torch.testing.assert_close(y, 4 * x - 2, rtol=1e-13, atol=1e-13)


def test_ode_takes_no_noise(device: torch.device) -> None:
    x0 = torch.ones(2, 3, device=device)
    ode = ODE(lambda x, t: -x)
    assert torch.equal(solve(ode, x0, (0, 1), steps=9, seed=1).x, solve(ode, x0, (0, 1), steps=9, seed=2).x)
