"""Certified orders: textbook steps come out at the orders of the literature, broken ones do not.

No random numbers: every figure is exact up to quadrature and rounding. Slopes are those from 64 to 128 steps.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sdekit as sk
from sdekit.certify.order import certify_order, linear
from sdekit.certify.order.problems import flow_problems, linear_problems
from sdekit.certify.order.slopes import OrderRow
from sdekit.certify.order.step import Stepper, noise_rule
from sdekit.errors import CapabilityError, NonFiniteError, NotAffineError, ShapeError, UnknownNameError
from sdekit.solvers.base import _REGISTRY, NOISE_TYPES, get

PROBLEMS = {f"{p.name}, {p.sde_type}": p for p in linear_problems()}


# -- textbook steps --------------------------------------------------------------------------------


def euler_maruyama(s, x, t, h, W):
    return x + s.drift(x, t) * h + s.apply_noise(s.diffusion(x, t), W)


def milstein(s, x, t, h, W, sign=1.0):
    """Kloeden and Platen 1992, 10.3.1, for elementwise noise; g g' exactly, since g is affine."""
    g = s.diffusion(x, t)
    slope = s.diffusion(x + g, t) - g
    return x + s.drift(x, t) * h + g * W + sign * 0.5 * slope * (W * W - h)


def heun(s, x, t, h, W):
    """Stratonovich trapezium rule with an Euler predictor."""
    y = euler_maruyama(s, x, t, h, W)
    drift = 0.5 * (s.drift(x, t) + s.drift(y, t + h)) * h
    return x + drift + 0.5 * (s.apply_noise(s.diffusion(x, t), W) + s.apply_noise(s.diffusion(y, t + h), W))


def theta_step(s, x, t, h, W, theta=0.5):
    """x' = x + h ((1 - theta) f(x, t) + theta f(x', t + h)) + g W, one Newton step: f is affine."""
    explicit = x + (1 - theta) * h * s.drift(x, t) + s.apply_noise(s.diffusion(x, t), W)
    d = x.shape[1]
    zero = s.drift(torch.zeros(1, d, dtype=x.dtype), t + h)
    jacobian = (s.drift(torch.eye(d, dtype=x.dtype), t + h) - zero).T
    system = torch.eye(d, dtype=x.dtype) - theta * h * jacobian
    return torch.linalg.solve(system, (explicit + theta * h * zero).T).T


def sra1(s, x, t, h, W, H, sign=1.0):
    """Roessler 2010, table 6.1 (SRA1): additive noise."""
    levy = 0.5 * W + H
    early, late = s.diffusion(x, t), s.diffusion(x, t + h)
    first = s.drift(x, t)
    second = s.drift(x + 0.75 * h * first + 1.5 * s.apply_noise(late, levy), t + 0.75 * h)
    noise = s.apply_noise(late, W) + sign * (s.apply_noise(early, levy) - s.apply_noise(late, levy))
    return x + h * (first + 2 * second) / 3 + noise


def sra3(s, x, t, h, W, H):
    """Roessler 2010 (SRA3): additive noise."""
    levy = 0.5 * W + H
    early, late = s.diffusion(x, t), s.diffusion(x, t + h)
    first = s.drift(x, t)
    second = s.drift(x + h * first, t + h)
    inside = s.apply_noise(late, levy) + 0.5 * s.apply_noise(early, levy)
    third = s.drift(x + 0.25 * h * (first + second) + inside, t + 0.5 * h)
    noise = s.apply_noise(late, W) + s.apply_noise(early, levy) - s.apply_noise(late, levy)
    return x + h * (first + second + 4 * third) / 6 + noise


def platen(s, x, t, h, W, third=0.25):
    """Kloeden and Platen 1992, 15.1.1, weak order 2, elementwise noise on d = 1."""
    a, b, root = s.drift(x, t), s.diffusion(x, t), math.sqrt(h)
    ahead = x + a * h
    up, down = s.diffusion(ahead + b * root, t + h), s.diffusion(ahead - b * root, t + h)
    drift = 0.5 * (a + s.drift(ahead + b * W, t + h)) * h
    return x + drift + 0.25 * (up + down + 2 * b) * W + third * (up - down) * (W * W - h) / root


def rk4(s, x, t, h, last=1 / 6):
    k1 = s.drift(x, t)
    k2 = s.drift(x + 0.5 * h * k1, t + 0.5 * h)
    k3 = s.drift(x + 0.5 * h * k2, t + 0.5 * h)
    k4 = s.drift(x + h * k3, t + h)
    return x + h * ((k1 + 2 * k2 + 2 * k3) / 6 + last * k4)


HALF, ONE, NORMALS = 0.5, 1.0, ("normal", "normal")
ADDITIVE, ELEMENTWISE, COMMUTING = ("additive",), ("additive", "diagonal"), ("additive", "diagonal", "scalar")
KNOWN = {
    "euler-maruyama": (euler_maruyama, {}, 1.0, HALF),
    "euler-maruyama, additive": (euler_maruyama, {"noise_types": ADDITIVE}, 1.0, 1.0),
    "milstein": (milstein, {"noise_types": ELEMENTWISE}, 1.0, 1.0),
    "theta": (theta_step, {"noise_types": NOISE_TYPES}, 1.0, HALF),
    "heun": (heun, {"noise_types": NOISE_TYPES, "sde_types": ("stratonovich",)}, 1.0, HALF),
    "heun, commuting": (heun, {"noise_types": COMMUTING, "sde_types": ("stratonovich",)}, 1.0, 1.0),
    # Strong order 1.5 in general; the term that caps it is of f'' g^2, absent where the drift is linear.
    "sra1": (sra1, {"noise_types": ADDITIVE, "laws": NORMALS}, 2.0, 2.0),
    # Its drift's quadrature is of order 3, and so is the mean of a linear SDE; its variance is not.
    "sra3": (sra3, {"noise_types": ADDITIVE, "laws": NORMALS}, 2.0, 2.0),
}


@pytest.mark.parametrize("name", KNOWN)
def test_textbook_orders(name):
    step, options, weak, strong = KNOWN[name]
    found = certify_order(step, **options)
    assert found.weak == pytest.approx(weak, abs=0.1)
    assert found.strong == pytest.approx(strong, abs=0.1)
    assert found.deterministic is None


@pytest.mark.parametrize("law", ["normal", "three-point"])
def test_platen_weak_two(law):
    """With normals, and with the three-point variables that its weak order needs no more than."""
    found = certify_order(platen, noise_types=("diagonal",), laws=(law,))
    line = [row for row in found.rows if row.measure == "weak" and row.problem != "diagonal"]
    assert [row.order for row in line] == pytest.approx([2.0, 2.0], abs=0.1)
    assert (found.strong is None) == (law != "normal")


def test_two_point_noise_is_enough_for_weak_order_one():
    for laws in (("two-point",), (((-1.0, 1.0), (0.5, 0.5)),)):
        found = certify_order(euler_maruyama, laws=laws)
        assert found.weak == pytest.approx(1.0, abs=0.1)
        assert found.strong is None


# -- negative controls -----------------------------------------------------------------------------


def test_broken_steps_lose_their_order():
    broken = {
        "milstein": (lambda *a: milstein(*a, sign=-1.0), {"noise_types": ("diagonal",)}, "strong", 0.6),
        "sra1": (lambda *a: sra1(*a, sign=-1.0), KNOWN["sra1"][1], "strong", 1.1),
        "platen": (lambda *a: platen(*a, third=0.2), {"noise_types": ("diagonal",)}, "weak", 1.1),
        "heun on Ito": (heun, {"noise_types": ("diagonal",)}, "weak", 0.1),
        "no Levy area": (
            lambda s, x, t, h, W, H: sra1(s, x, t, h, W, 0 * H),
            KNOWN["sra1"][1],
            "strong",
            1.1,
        ),
    }
    for name, (step, options, measure, most) in broken.items():
        assert getattr(certify_order(step, **options), measure) < most, name
    assert certify_order(lambda *a: rk4(*a, last=0.16), kind="ode").deterministic < 0.1


def test_noise_of_the_wrong_variance_does_not_converge():
    law = ((-1.1, 1.1), (0.5, 0.5))
    assert certify_order(euler_maruyama, laws=(law,), noise_types=("scalar",)).weak < 0.1


# -- registered solvers ----------------------------------------------------------------------------


UNSEEN = {("mala", "sde"), ("tamed-euler", "sde"), ("exponential-euler", "sde")}
"""Not affine, or in need of an option: see their own tests."""

COSTLY = {"theta", "implicit-euler", "implicit-milstein", "reversible-heun"}
"""Newton in every step, or much kept between steps; their own tests measure a part of it."""


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(*key, marks=pytest.mark.slow if key[0] in COSTLY else ())
        for key in sorted(set(_REGISTRY) - UNSEEN)
    ],
)
def test_declared_orders_of_solvers(name, kind):
    """What the class declares is what is measured; nonlinear terms, unseen here, may cap strong orders.

    A weak order of 1.5 belongs to steps in sqrt h (SRI): between 1.5 and 2 where the term of h^2 is larger.
    """
    solver = get(name, kind)
    found = certify_order(solver)
    for declared, measured, bonus in (
        (solver.order, found.deterministic, 0.0),
        (solver.weak_order, found.weak, 0.5 if solver.weak_order == 1.5 else 0.0),
        (solver.strong_order, found.strong, 0.5),
    ):
        if declared is None:
            assert measured is None
        else:
            slack = 0.1 if declared <= 2 else 0.25
            assert declared - slack <= measured <= declared + bonus + slack


def test_mala_is_no_affine_map():
    with pytest.raises(NotAffineError, match="accept-reject"):
        certify_order("mala")


def test_the_classical_runge_kutta_method():
    found = certify_order(rk4, kind="ode")
    assert found.deterministic == pytest.approx(4.0, abs=0.15)
    assert len(found.rows) == len(flow_problems())


# -- samplers --------------------------------------------------------------------------------------


def test_samplers():
    """By name or object; a name of both tables is the solver, unless a process is given."""
    assert certify_order("ddim").deterministic == pytest.approx(1.0, abs=0.1)
    assert certify_order("dpmpp-2m", process=sk.VE()).deterministic == pytest.approx(2.0, abs=0.1)
    stochastic = certify_order(sk.samplers.DDIM(eta=1.0))
    assert stochastic.weak == pytest.approx(1.0, abs=0.1)
    assert stochastic.deterministic is None
    assert [row.problem for row in certify_order("heun").rows] == [p.name for p in flow_problems()]
    as_sampler = certify_order("heun", process=sk.EDM(), steps=(80, 160))
    assert [row.problem for row in as_sampler.rows] == ["Gaussian", "mixture"]
    with pytest.raises(NotAffineError, match="certify_monte_carlo"):
        certify_order("pc")


# -- the pieces ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_exact_flow(name):
    """E[Phi] over a step is c_0; c and the second moment agree with Parseval's identity up to h^2; moments of
    degree 2 at t = 1 are the product of the steps'."""
    problem, n = PROBLEMS[name], 8
    v = np.outer(problem.start, problem.start)
    mean = problem.start
    for k in range(n):
        v = (linear.second_moment(problem, k / n, 1 / n) @ v.reshape(-1)).reshape(v.shape)
        mean = linear.projected(problem, k / n, 1 / n, 1)[0] @ mean
    exact = linear.moments(problem, 2)
    np.testing.assert_allclose(v, exact, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(mean, exact[-1], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("normals", [1, 2, 3])
def test_projections_of_geometric_brownian_motion(normals):
    """Phi = exp((a - b^2/2) h + b W): E[Phi He_n(xi_0)] = e^(a h) (b sqrt h)^n, the other xi do not enter."""
    problem, h = PROBLEMS["geometric, ito"], 0.3
    a, b = problem.drift[0, 0, 0], problem.noise[0, 0, 0, 0]
    found = linear.projected(problem, 0.0, h, normals)[:, 0, 0]
    for alpha, value in zip(linear.indices(normals), found, strict=True):
        first, rest = alpha[0], sum(alpha[1:])
        expected = math.exp(a * h) * (b * math.sqrt(h)) ** first / math.factorial(first) if rest == 0 else 0.0
        assert value == pytest.approx(expected, abs=1e-12)


def test_the_levy_area_enters_with_its_sign():
    """OU: Cov(X(h), H) = g int e^(a (h - s)) (1/2 - s/h) ds, by scipy."""
    from scipy.integrate import quad

    problem, h = PROBLEMS["Ornstein-Uhlenbeck, ito"], 0.4
    a, g = problem.drift[0, 0, 0], problem.noise[0, 0, 0, 1]
    found = linear.projected(problem, 0.0, h, 2)[list(linear.indices(2)).index((0, 1)), 0, 1]
    expected = quad(lambda s: g * math.exp(a * (h - s)) * (0.5 - s / h), 0, h, epsabs=1e-13)[0]
    assert found * math.sqrt(h / 12) == pytest.approx(expected, abs=1e-12)


def test_mean_square_error_of_an_exact_step():
    """The exact step of geometric Brownian motion has no error at all; drawn with W alone it is exact."""

    def exact(s, x, t, h, W):
        a, b = -0.8, 0.6
        return x * torch.exp((a - 0.5 * b * b) * h + b * W)

    problem = PROBLEMS["geometric, ito"]
    from sdekit.certify.order.measure import _errors

    weak, strong = _errors(Stepper(exact, problem, ("normal",)), 16)
    assert weak < 1e-11
    assert strong < 2e-7


def test_mean_square_error_against_paths():
    """Euler-Maruyama, 8 steps on non-commuting noise, against 2,048 on 4,000 paths: false alarm 1e-6."""
    from sdekit.certify.order.measure import _errors

    problem = PROBLEMS["non-commuting, ito"]
    _, strong = _errors(Stepper(get("euler-maruyama"), problem, ("normal",)), 8)
    paths, fine = 4000, 2048
    g = torch.Generator().manual_seed(0)
    dw = torch.randn(fine, paths, 2, generator=g, dtype=torch.float64) / math.sqrt(fine)
    x = torch.tensor([problem.x0], dtype=torch.float64).expand(paths, 2)
    y = x
    coarse = dw.reshape(8, fine // 8, paths, 2).sum(1)
    for k in range(8):
        y = euler_maruyama(problem.system, y, torch.tensor(k / 8), 1 / 8, coarse[k])
    for k in range(fine):
        x = euler_maruyama(problem.system, x, torch.tensor(k / fine), 1 / fine, dw[k])
    square = (x - y).square().sum(1)
    error = float(square.std()) / math.sqrt(paths)
    # The finer run's own error, 1/16 of the coarse one's, enters squared and doubled: 2 percent are allowed.
    assert abs(float(square.mean()) - strong**2) < 4.9 * error + 0.02 * strong**2


def test_flows_in_closed_form():
    from scipy.integrate import solve_ivp

    for problem in flow_problems():

        def slope(t, x, problem=problem):
            return problem.velocity(torch.from_numpy(x[None]), torch.tensor(t))[0].numpy()

        run = solve_ivp(slope, (0, 1), problem.x0, method="DOP853", rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(run.y[:, -1], problem.end, rtol=0, atol=1e-11)


def test_quadrature_nodes():
    nodes, weights = noise_rule(("normal", "three-point"), 1)
    assert weights.sum() == pytest.approx(1.0)
    for power, moment in ((2, 1.0), (4, 3.0)):
        assert weights @ nodes[:, 1] ** power == pytest.approx(moment)
        assert weights @ nodes[:, 0] ** power == pytest.approx(moment)
    assert weights @ (nodes[:, 0] ** 12) == pytest.approx(10395.0)


def test_orders_of_rows():
    row = OrderRow("weak", "p", "", "", (8, 16, 32), (1e-2, 2.5e-3, 1e-13), floor=1e-12)
    assert row.order == pytest.approx(2.0)
    assert row.finest == ((8, 1e-2), (16, 2.5e-3))
    assert OrderRow("weak", "p", "", "", (8, 16), (1e-14, 1e-15), floor=1e-12).order == math.inf
    assert math.isnan(OrderRow("weak", "p", "", "", (8, 16), (1.0, math.nan)).order)
    assert math.isnan(OrderRow("weak", "p", "", "", (8, 16), (1e-3, 1e-14), floor=1e-12).order)


def test_what_it_prints():
    text = str(certify_order("ula"))
    assert text.startswith("OrderCertificate('ula', weak=1.0")
    assert "Langevin" in text


def test_refusals():
    with pytest.raises(UnknownNameError, match="Nearest: 'euler-maruyama'"):
        certify_order("euler-maruiama")
    with pytest.raises(TypeError, match=r"takes a solver, a sampler or step"):
        certify_order(3.0)
    with pytest.raises(TypeError, match=r"\(system, x, t, h, W\) here, and this one takes \(x, t\)"):
        certify_order(lambda x, t: x)
    with pytest.raises(CapabilityError, match="chooses its own steps"):
        certify_order("scipy:RK45")
    with pytest.raises(CapabilityError, match="no problem has noise_type"):
        certify_order(euler_maruyama, noise_types=("jumps",))
    with pytest.raises(ValueError, match="two or more increasing"):
        certify_order("euler", steps=(16,))
    with pytest.raises(ValueError, match="'sde' or 'ode'"):
        certify_order(euler_maruyama, kind="pde")
    with pytest.raises(ValueError, match="'two-point'"):
        certify_order(euler_maruyama, laws=("coin",))
    with pytest.raises(ValueError, match="probabilities"):
        certify_order(euler_maruyama, laws=(((0.0, 1.0), (0.5, 0.6)),))
    with pytest.raises(ShapeError, match="x's shape"):
        certify_order(lambda s, x, t, h, W: x[:, 0])
    with pytest.raises(NotAffineError, match="misses the affine map"):
        certify_order(lambda s, x, t, h, W: x + h * torch.sin(x) + W, noise_types=ADDITIVE)


def test_words_and_laws_in_any_form():
    one = certify_order(euler_maruyama, noise_types="additive", laws="two-point", steps=(8, 16))
    same = certify_order(
        euler_maruyama, noise_types=["additive"], laws=[([-1, 1], [0.5, 0.5])], sde_types="ito", steps=[8, 16]
    )
    assert one.rows == same.rows


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (lambda s, x, t, h, W: euler_maruyama(s, x, t, h, W).float(), ShapeError, "dtype"),
        (lambda s, x, t, h, W: x / 0 * W, NonFiniteError, "division by noise or time"),
        (lambda s, x, t, h, W: x + torch.randn_like(W), NotAffineError, "random numbers of its own"),
        (lambda s, x, t, h: x, TypeError, r"\(s, x, t, h\)"),
    ],
)
def test_faults_of_a_step(step, error, message):
    with pytest.raises(error, match=message):
        certify_order(step, noise_types=["additive"], steps=(8, 16))


@pytest.mark.parametrize("laws", [[], ["normal"] * 4])
def test_one_to_three_laws(laws):
    with pytest.raises(ValueError, match="1 to 3"):
        certify_order(lambda s, x, t, h, *noise: x, laws=laws)


def test_settings_of_steps_are_not_for_samplers():
    with pytest.raises(ValueError, match="is a sampler"):
        certify_order("ddim", process=sk.VP(), noise_types=["additive"])
    with pytest.raises(TypeError, match="process must be"):
        certify_order("ddim", process="vp")
    with pytest.raises(ValueError, match="two or more"):
        certify_order("euler", steps=8)
