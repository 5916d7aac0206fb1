"""Objects of torchsde's kind: solved unchanged, and path by path as torchsde solves them."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import sdekit as sk
from sdekit.adapters.torchsde import BrownianForTorchsde, TorchSDE, from_torchsde, sdeint, to_torchsde
from sdekit.errors import ArgumentOrderError, CapabilityError, ShapeError, UnknownNameError

F64 = torch.float64
STATE = torch.linspace(0.1, 1.0, 10, dtype=F64).reshape(5, 2)
TIMES = [0.0, 0.25, 1.0]
WIDTH = {"diagonal": 2, "scalar": 1, "additive": 3, "general": 3}


class Diagonal(torch.nn.Module):
    """f = a sin t - y/2, g = 0.3 cos y + t/10; h = -y for logqp."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, sde_type="ito"):
        super().__init__()
        self.sde_type = sde_type
        self.a = torch.nn.Parameter(torch.tensor(1.0, dtype=F64))

    def f(self, t, y):
        return self.a * torch.sin(t) - 0.5 * y

    def h(self, t, y):
        return -y

    def g(self, t, y):
        return 0.3 * torch.cos(y) + 0.1 * t


class Scalar(Diagonal):
    noise_type = "scalar"

    def g(self, t, y):
        return (0.3 * torch.cos(y) + 0.1 * t)[..., None]


class Additive(Diagonal):
    noise_type = "additive"

    def g(self, t, y):
        g = torch.tensor([[0.3, 0.1, 0.2], [0.0, 0.4, -0.1]], dtype=y.dtype)
        return (g * torch.cos(t)).expand(len(y), 2, 3)


class General(Diagonal):
    noise_type = "general"

    def g(self, t, y):
        return torch.stack([0.3 * y.flip(1), 0.2 + 0 * y, 0.1 * y * y], -1)


KINDS = {"diagonal": Diagonal, "scalar": Scalar, "additive": Additive, "general": General}
CASES = [
    (kind, sde_type, method)
    for kind in KINDS
    for sde_type, methods in {
        "ito": ("euler", "milstein", "milstein grad_free", "srk"),
        "stratonovich": ("heun", "midpoint", "euler_heun", "reversible_heun", "milstein"),
    }.items()
    for method in methods
    if kind != "general" or method not in ("milstein", "milstein grad_free", "srk")
]


def options(method):
    return method.split()[0], {"grad_free": True} if "grad_free" in method else None


@pytest.mark.parametrize(("kind", "sde_type", "method"), CASES)
def test_paths_are_those_of_torchsde(kind, sde_type, method):
    """On one path, ours read by both and theirs read by both, to 1e-13; both at dt = 1/32."""
    torchsde = pytest.importorskip("torchsde")
    sde, (name, given) = KINDS[kind](sde_type), options(method)
    shape, ts = (5, WIDTH[kind]), torch.tensor(TIMES, dtype=F64)
    tree = sk.BrownianTree(3)
    ours = BrownianForTorchsde(tree, shape, dtype=F64)
    theirs = torchsde.BrownianInterval(0.0, 1.0, shape, F64, entropy=4, levy_area_approximation="space-time")
    with torch.no_grad():
        for path, mine in ((ours, tree), (ours, ours), (theirs, theirs)):
            run = {"method": name, "dt": 1 / 32, "options": given}
            exact = torchsde.sdeint(sde, STATE, ts, bm=path, **run)
            torch.testing.assert_close(sdeint(sde, STATE, TIMES, bm=mine, **run), exact, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_log_ratios_are_those_of_torchsde(kind):
    torchsde = pytest.importorskip("torchsde")
    sde, ts = KINDS[kind](), torch.tensor(TIMES, dtype=F64)
    tree = sk.BrownianTree(3)
    bm = BrownianForTorchsde(tree, (5, WIDTH[kind] + (kind == "diagonal")), dtype=F64)
    with torch.no_grad():
        found = sdeint(sde, STATE, ts, bm=tree, method="euler", dt=1 / 32, logqp=True)
        exact = torchsde.sdeint(sde, STATE, ts, bm=bm, method="euler", dt=1 / 32, logqp=True)
    for value, other in zip(found, exact, strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["diagonal", "additive", "general"])
def test_exported_equations_run_in_torchsde(kind):
    torchsde = pytest.importorskip("torchsde")
    sde = to_torchsde(from_torchsde(KINDS[kind](), STATE))
    bm = BrownianForTorchsde(sk.BrownianTree(1), (5, WIDTH[kind]), dtype=F64)
    ts = torch.tensor(TIMES, dtype=F64)
    with torch.no_grad():
        exact = torchsde.sdeint(KINDS[kind](), STATE, ts, bm=bm, method="euler", dt=1 / 32)
        found = torchsde.sdeint(sde, STATE, ts, bm=bm, method="euler", dt=1 / 32)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-14)


# What holds without torchsde.


def test_exported_equations_come_back():
    """to_torchsde, then from_torchsde: the fields of the equation, whatever its noise."""
    x, t = STATE, torch.tensor(0.3, dtype=F64)
    systems = [
        sk.OrnsteinUhlenbeck(0.3, 0.2, 0.5),
        sk.GeometricBrownian(0.1, 0.4),
        sk.LinearSDE([[-1.0, 0.7], [-0.2, 0.1]], L=[[1.0, 0.2, 0.1], [0.0, 0.5, 0.3]]),
        sk.SDE(lambda x, t: -x, lambda x, t: torch.sin(x), noise_type="scalar"),
    ]
    for p in systems:
        back = from_torchsde(to_torchsde(p), x)
        assert torch.equal(back.drift(x, t), p.drift(x, t))
        assert torch.equal(back.noise_field(x, t), p.noise_field(x, t))
        assert back.noise_shape(x) == p.noise_shape(x)
    with pytest.raises(CapabilityError, match="increasing time, and this equation with decreasing"):
        to_torchsde(sk.reverse(sk.VP(), lambda x, t: -x))


def test_states_are_those_of_solve():
    """(T, B, d), the first the start, the runs those of solve; gradients reach parameters."""
    sde = Diagonal()
    found = sdeint(sde, STATE, TIMES, method="milstein", dt=1 / 8, seed=5)
    direct = sk.solve(
        from_torchsde(sde), STATE, (0.0, 1.0), solver="milstein", dt=1 / 8, save_at=TIMES, seed=5
    )
    assert found.shape == (3, 5, 2)
    assert torch.equal(found[0], STATE)
    assert torch.equal(found, direct.xs)
    (slope,) = torch.autograd.grad(found[-1].sum(), sde.a)
    h = 1e-5
    values = []
    for a in (1 + h, 1 - h):
        with torch.no_grad():
            sde.a.fill_(a)
            values.append(float(sdeint(sde, STATE, TIMES, method="milstein", dt=1 / 8, seed=5)[-1].sum()))
    assert float(slope) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-8)


def test_the_adjoint_gives_the_gradient():
    """reversible_heun is undone step by step: the adjoint is backprop to rounding."""
    sde = Diagonal("stratonovich")
    slopes = []
    for gradient in ("backprop", "adjoint"):
        found = sdeint(sde, STATE, TIMES, method="reversible_heun", dt=1 / 16, seed=5, gradient=gradient)
        slopes.append(torch.autograd.grad(found.square().sum(), sde.a)[0])
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sde_type", ["ito", "stratonovich"])
def test_default_methods(kind, sde_type):
    found = sdeint(KINDS[kind](sde_type), STATE, TIMES, dt=1 / 8)
    wanted = "midpoint" if sde_type == "stratonovich" else "euler" if kind == "general" else "srk"
    assert torch.equal(found, sdeint(KINDS[kind](sde_type), STATE, TIMES, dt=1 / 8, method=wanted))


def test_products_alone_are_enough():
    """g_prod, f_and_g, f_and_g_prod, and methods of other names give the fields of f and g."""
    t = torch.tensor(0.3, dtype=F64)

    def bare(sde, **methods):
        return type("Bare", (), {"noise_type": sde.noise_type, "sde_type": "ito", **methods})()

    for make in KINDS.values():
        sde = make()
        exact = from_torchsde(sde, STATE)
        both = staticmethod(lambda t, y, sde=sde: (sde.f(t, y), sde.g(t, y)))

        def g_prod(t, y, v, sde=sde):
            g = sde.g(t, y)
            return g * v if sde.noise_type == "diagonal" else (g @ v[..., None])[..., 0]

        prod = staticmethod(g_prod)
        pair = staticmethod(lambda t, y, v, sde=sde, g_prod=g_prod: (sde.f(t, y), g_prod(t, y, v)))
        f = staticmethod(sde.f)
        for other, names in (
            (bare(sde, f_and_g=both), None),
            (bare(sde, f=f, g_prod=prod), None),
            (bare(sde, f_and_g_prod=pair), None),
            (bare(sde, mu=f, sigma=staticmethod(sde.g)), {"drift": "mu", "diffusion": "sigma"}),
        ):
            found = from_torchsde(other, STATE, noise_dim=WIDTH[sde.noise_type], names=names)
            torch.testing.assert_close(found.drift(STATE, t), exact.drift(STATE, t))
            torch.testing.assert_close(found.noise_field(STATE, t), exact.noise_field(STATE, t))


def test_additive_noise_is_held_to_it():
    class Wrong(Additive):
        def g(self, t, y):
            return super().g(t, y) * (1 + y[..., None])

    with pytest.raises(ValueError, match="'additive' promises a diffusion independent of the state"):
        sdeint(Wrong(), STATE, TIMES, dt=1 / 8)
    p = from_torchsde(Additive(), STATE)
    assert p.noise_type == "commutative"
    assert not p.divergence_ggt(STATE, 0.3).any()
    assert not p.correction(STATE, 0.3).any()
    q = from_torchsde(Diagonal(), STATE)
    torch.testing.assert_close(q.correction(STATE, 0.0), -0.045 * torch.sin(2 * STATE) / 2)


def test_adaptive_steps_give_each_sample_its_own_time():
    """OU by adaptive srk: mean and variance of 2,000 paths within 5 standard errors (alarm 6e-7 each)."""

    class OU:
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t, y):
            return -1.5 * y + 0 * t

        def g(self, t, y):
            return torch.full_like(y, 0.7)

    n = 2000
    y0 = torch.ones(n, 1, dtype=F64)
    with torch.no_grad():
        found = sdeint(OU(), y0, [0.0, 1.0], adaptive=True, rtol=1e-2, atol=1e-2, seed=2)[-1]
    law = sk.OrnsteinUhlenbeck(1.5, 0.0, 0.7).transition(y0[:1], 0.0, 1.0)
    assert abs(float(found.mean() - law.mean)) < 5 * float(law.std) / math.sqrt(n)
    assert abs(float(found.var() / law.variance) - 1) < 5 * math.sqrt(2 / n)


def test_log_ratio_of_constant_drifts():
    """f - h = 0.6, g = 0.3: 1/2 (0.6/0.3)^2 an element and unit of time, whatever the path."""

    class Shifted:
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t, y):
            return torch.full_like(y, 0.1)

        def h(self, t, y):
            return torch.full_like(y, -0.5)

        def g(self, t, y):
            return torch.full_like(y, 0.3)

    states, ratio = sdeint(Shifted(), STATE, TIMES, dt=1 / 8, logqp=True)
    assert states.shape == (3, 5, 2)
    exact = torch.tensor([0.25, 0.75], dtype=F64)[:, None] * 2 * 0.5 * 4
    torch.testing.assert_close(ratio, exact.expand(2, 5))


def test_the_path_of_a_tree_as_torchsde_reads_it():
    """W from 0 when one time is given, U = h (H + W/2), rows by their ids."""
    tree = sk.BrownianTree(2)
    bm = BrownianForTorchsde(tree, (3, 2), first_id=4, dtype=F64)
    like, ids = torch.empty(3, 2, dtype=F64), torch.arange(4, 7)
    exact = tree.increments(0.25, 0.75, like, ids)
    w, u = bm(torch.tensor(0.25), torch.tensor(0.75), return_U=True)
    assert torch.equal(w, exact.W)
    torch.testing.assert_close(u, 0.5 * (exact.H + exact.W / 2))
    assert torch.equal(bm(0.75), tree.increments(0.0, 0.75, like, ids).W)
    assert (bm.size(), bm.dtype) == ((3, 2), F64)
    with pytest.raises(CapabilityError, match=r"Next: BrownianTree.levy_area"):
        bm(0.0, 1.0, return_A=True)


class Without:
    """A path without its area."""

    shape, levy_area_approximation = (5, 2), "none"

    def __call__(self, ta, tb):
        return torch.zeros(5, 2, dtype=F64)


def test_messages():
    sde = Diagonal()

    def refused(error, match, *args, **options):
        with pytest.raises(error, match=match):
            sdeint(*args, **{"dt": 1 / 8, **options})

    refused(CapabilityError, "extra=True is not offered", sde, STATE, TIMES, extra=True)
    refused(
        CapabilityError, "'log_ode' is not offered. Next: one of euler", sde, STATE, TIMES, method="log_ode"
    )
    refused(UnknownNameError, "unknown solver 'eulr'", sde, STATE, TIMES, method="eulr")
    refused(
        CapabilityError, "no error estimate.*method='srk'", sde, STATE, TIMES, method="euler", adaptive=True
    )
    refused(CapabilityError, "at times of its own", sde, STATE, TIMES, bm=Without(), adaptive=True)
    refused(CapabilityError, "this bm has none.*'space-time'", sde, STATE, TIMES, bm=Without())
    refused(ShapeError, r"y0 must be a tensor \(B, d\)", sde, STATE[0], TIMES)
    refused(CapabilityError, "is for stratonovich equations", sde, STATE, TIMES, method="heun")
    refused(
        TypeError,
        r"Plain has no drift",
        type("Plain", (), {"noise_type": "diagonal", "sde_type": "ito"})(),
        STATE,
        TIMES,
    )
    refused(TypeError, "needs a prior drift", to_torchsde(sk.GeometricBrownian()), STATE, TIMES, logqp=True)
    with pytest.raises(UnknownNameError, match="unknown Odd.noise_type 'commutative'"):
        from_torchsde(type("Odd", (), {"noise_type": "commutative", "sde_type": "ito"})())
    with pytest.raises(UnknownNameError, match="unknown role in names 'drif'"):
        from_torchsde(sde, names={"drif": "f"})
    with pytest.raises(TypeError, match="no diffusion"):
        from_torchsde(type("Half", (), {"noise_type": "diagonal", "sde_type": "ito", "f": sde.f})())
    with pytest.raises(ValueError, match=r"number of Brownian motions of General is not known.*noise_dim=m"):
        from_torchsde(General())
    wrong = Diagonal()
    wrong.noise_type = "general"
    with pytest.raises(ShapeError, match="Likely cause: noise_type='diagonal' is meant"):
        from_torchsde(wrong, STATE)
    two = Additive()
    two.noise_type = "scalar"
    refused(ShapeError, "scalar noise has one Brownian motion", two, STATE, TIMES)
    with pytest.warns(UserWarning, match=r"options \['speed'\] are not used"):
        sdeint(sde, STATE, TIMES, dt=1 / 8, options={"speed": 9})
    with pytest.raises(ArgumentOrderError):
        sk.SDE(sde.f, sde.g)
    assert repr(from_torchsde(sde)) == "TorchSDE(Diagonal, 'diagonal' noise, 'ito')"
    assert isinstance(from_torchsde(sde), TorchSDE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sdeint(sde, STATE, TIMES, dt=1 / 8, method="milstein", options={"grad_free": True})


def test_times_may_be_negative():
    """torchsde knows no first time, so an object of its kind is solved from any."""

    class Drift:
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t, y):
            return t.expand_as(y)

        def g(self, t, y):
            return 0.0 * y

    ys = sdeint(Drift(), torch.zeros(2, 1, dtype=torch.float64), [-2.0, -1.0, 0.0], dt=2**-6, method="euler")
    assert ys[-1].flatten().tolist() == pytest.approx([-2.0, -2.0], abs=0.02)


def test_a_path_of_no_kind_is_refused():
    class Drift:
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t, y):
            return y

        g = f

    with pytest.raises(TypeError, match=r"bm must be a path.*got int. Next: seed="):
        sdeint(Drift(), torch.zeros(2, 1), [0.0, 1.0], dt=0.25, bm=3)
