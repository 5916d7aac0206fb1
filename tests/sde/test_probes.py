"""Structure probes: random fields with and without the structure they claim."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdekit as sk
from sdekit.sde import SDE
from sdekit.sde.probes import commutator, dependence, mixing

from .processes import F64

PROMISE = {
    "additive": "promises a diffusion independent of the state",
    "diagonal": "promises that G_i depends on x_i alone",
    "commutative": "promises that the columns of G commute",
}


def still(x, t):
    return 0.0 * x


def claimed(field, noise_type, m=None):
    return SDE(still, lambda x, t: field(x), noise_type=noise_type, noise_dim=m)


def random(seed, rows, d, dtype):
    """A generator, and states of very different sizes, signs and rows; some at zero."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, d, generator=g, dtype=F64) * 10.0 ** torch.randint(-3, 4, (d,), generator=g)
    return g, torch.where(torch.rand(rows, d, generator=g) < 0.1, 0.0, x).to(dtype)


CASES = {
    "seed": st.integers(0, 10**6),
    "rows": st.integers(1, 3),
    "d": st.integers(1, 5),
    "dtype": st.sampled_from([torch.float32, F64]),
}


def elementwise(g, d, dtype):
    """G_i = a_i tanh(b_i x_i) + c_i x_i^2 + e_i, with coefficients of very different sizes."""
    a, b, c, e = (10.0 ** (2 * torch.randn(4, d, generator=g, dtype=F64))).to(dtype)
    return lambda x: a * torch.tanh(b * x) + c * x * x + e


def commuting(g, d, m, dtype):
    """dx_i/dy_i C_ik: what constant noise C dW in y becomes in the chart x_i = sinh(s_i y_i)."""
    c = torch.randn(d, m, generator=g, dtype=F64).to(dtype)
    s = (10.0 ** torch.randn(d, generator=g, dtype=F64)).to(dtype)
    return lambda x: s[:, None] * c * torch.sqrt(1 + x * x)[..., None]


@settings(max_examples=200)
@given(**CASES)
def test_no_right_claim_is_refused(seed, rows, d, dtype):
    g, x = random(seed, rows, d, dtype)
    constant = torch.randn(d, generator=g, dtype=F64).to(dtype)
    claimed(lambda x: constant.expand_as(x), "additive").validate(x, 0.0)
    one = lambda x: torch.softmax(x, -1).sum(-1, keepdim=True)  # noqa: E731  (slopes of rounding size)
    claimed(lambda x: constant * one(x), "additive").validate(x, 0.0)
    claimed(lambda x: constant * one(x), "diagonal").validate(x, 0.0)
    claimed(elementwise(g, d, dtype), "diagonal").validate(x, 0.0)
    m = 1 + seed % 4
    spread = torch.randn(d, m, generator=g, dtype=F64).to(dtype)
    claimed(lambda x: spread * one(x)[..., None], "commutative", m).validate(x, 0.0)
    claimed(commuting(g, d, m, dtype), "commutative", m).validate(x, 0.0)
    root = torch.randn(d, d, generator=g, dtype=F64)
    matrices = torch.stack([torch.matrix_power(root, k) for k in range(m)]).to(dtype)
    claimed(lambda x: torch.einsum("kij,nj->nik", matrices, x), "commutative", m).validate(x, 0.0)


@settings(max_examples=200)
@given(**CASES)
def test_every_wrong_claim_is_found(seed, rows, d, dtype):
    """Dependences of at least 1 %, on one element, in one entry of the field; random matrices."""
    g, x = random(seed, rows, d + 1, dtype)
    i, j = torch.randperm(d + 1, generator=g)[:2].tolist()
    size = 0.01 + torch.rand((), generator=g)

    def touched(base, k):
        """The field with exp(size arsinh x_k) on its element i: x_k dG_i/dx_k is about size G_i."""
        at = torch.zeros(d + 1, dtype=dtype)
        at[i] = 1.0
        return lambda x: base(x) * torch.exp(size * at * torch.asinh(x)[:, k, None])

    constant = 10.0 ** torch.randn(d + 1, generator=g, dtype=F64).to(dtype)
    own, other = touched(lambda x: constant.expand_as(x), i), touched(elementwise(g, d + 1, dtype), j)
    with pytest.raises(ValueError, match=PROMISE["additive"]) as error:
        claimed(own, "additive").validate(x, 0.0)
    assert f"dG[{i}]/dx[{i}] = " in str(error.value)
    with pytest.raises(ValueError, match=PROMISE["diagonal"]) as error:
        claimed(other, "diagonal").validate(x, 0.0)
    assert f"dG[{i}]/dx[{j}] = " in str(error.value)
    m = 2 + seed % 3
    pairs = torch.randn(m, d + 1, d + 1, generator=g, dtype=F64).to(dtype)
    with pytest.raises(ValueError, match=PROMISE["commutative"]):
        claimed(lambda x: torch.einsum("kij,nj->nik", pairs, x), "commutative", m).validate(
            1.0 + x.abs(), 0.0
        )


def test_a_dependence_that_vanishes_at_the_start_is_found():
    """x^2 has no slope at 0, x_1 x_2 mixes nothing there; a second point shows both."""
    x = torch.zeros(2, 3, dtype=F64)
    with pytest.raises(ValueError, match=PROMISE["additive"]):
        claimed(lambda x: 1 + x * x, "additive").validate(x, 0.0)
    with pytest.raises(ValueError, match=PROMISE["diagonal"]):
        claimed(lambda x: 1 + x * x.flip(1), "diagonal").validate(x, 0.0)
    turned = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64)
    with pytest.raises(ValueError, match=PROMISE["commutative"]):
        claimed(lambda x: torch.stack([x, (x @ turned) * x[:, :1]], -1), "commutative", 2).validate(
            x[:, :2], 0.0
        )


def test_what_is_found_is_the_derivative():
    """The largest entry, its place and its size; events with axes; the commutator in closed form."""
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]], dtype=F64)
    found = mixing(
        lambda x: x + torch.stack([torch.stack([0 * x[:, 0, 0], x[:, 1, 0] ** 2], -1), 0 * x[:, 0]], 1), x
    )
    assert found is not None
    assert found.size == pytest.approx(6.0)
    assert found.where == "dG[0, 1]/dx[1, 0] = 6 at x[1, 0] = 3 (row 0)"
    found = dependence(lambda x: 1 + 0.1 * x[:, :, :1], x)
    assert found is not None
    assert found.size == pytest.approx(0.1)
    a, b = (
        torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=F64),
        torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=F64),
    )
    y = torch.tensor([[2.0, 3.0], [5.0, 7.0]], dtype=F64)
    found = commutator(lambda y: torch.stack([y @ a.T, y @ b.T], -1), y)
    assert found is not None
    k = torch.arange(2, dtype=F64)
    u = 1 + 0.5 * torch.cos(1.618 * k)
    v = (1 + 0.5 * torch.cos(2.399 * k)) * torch.tensor([1.0, -1.0], dtype=F64)
    exact = (u[0] * v[1] - u[1] * v[0]) * (y @ (a @ b - b @ a).T)  # [A, B] for Gu = (u_1 A + u_2 B) y
    row, i = divmod(int((exact.abs() - found.size).abs().argmin()), 2)
    assert found.size == pytest.approx(float(exact[row, i].abs()), rel=1e-12)
    assert f"element [{i}] of" in found.where
    assert f"(row {row})" in found.where


def test_noise_of_one_motion_commutes():
    x = torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    SDE(still, lambda x, t: torch.sin(x)[..., None], noise_type="commutative", noise_dim=1).validate(x, 0.0)
    calls = []
    assert commutator(lambda y: calls.append(1) or torch.sin(y)[..., None], x) is None
    assert len(calls) == 1  # no product is needed


def test_the_domain_is_respected():
    """A field that fails, or is not finite, near x0 is judged at x0 alone."""
    x = torch.full((1, 2), 0.99, dtype=F64)

    def inside(x):
        if bool((x > 1).any()):
            raise ValueError("outside")
        return torch.sqrt(1 - x * x)

    claimed(inside, "diagonal").validate(x, 0.0)
    claimed(lambda x: torch.acos(x), "diagonal").validate(x, 0.0)
    with pytest.raises(ValueError, match=PROMISE["additive"]):
        claimed(inside, "additive").validate(x, 0.0)


def test_solve_probes_and_can_be_told_not_to():
    x = torch.ones(2, 2, dtype=F64)
    turn = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=F64)
    wrong = {
        "additive": claimed(lambda x: 1 + x, "additive"),
        "diagonal": claimed(lambda x: x.flip(1), "diagonal"),
        "commutative": claimed(lambda x: torch.stack([x @ turn, x @ turn.T], -1), "commutative", 2),
    }
    for name, sde in wrong.items():
        with pytest.raises(ValueError, match=PROMISE[name]):
            sk.solve(sde, x, (0.0, 1.0), steps=2)
        assert sk.solve(sde, x, (0.0, 1.0), steps=2, probe=False).ok
        back = sk.reverse(sde, lambda x, t: -x)
        with pytest.raises(ValueError, match=PROMISE[name]):
            sk.solve(back, x, (1.0, 0.5), steps=2)
        assert sk.solve(back, x, (1.0, 0.5), steps=2, probe=False).ok
        with pytest.raises(ValueError, match=PROMISE[name]):  # the claim was not taken as checked meanwhile
            sk.solve(sde, x, (0.0, 1.0), steps=2)


def test_a_probe_costs_a_few_products_once():
    """Two points, at most three evaluations each, for the first run alone."""
    calls = []

    def field(x, t):
        calls.append(1)
        return torch.stack([x, 2 * x], -1)

    sde = SDE(still, field, noise_type="commutative", noise_dim=2)
    x = torch.ones(2, 3, dtype=F64)
    sde.validate(x, 0.0)
    assert len(calls) <= 1 + 2 * 3
    before = len(calls)
    sde.validate(x, 0.0)
    assert len(calls) == before + 1


class OnlyDiagonal(sk.solvers.Solver):
    name, kind, reference = "only-diagonal", "sde", "none"
    noise_types, sde_types = ("diagonal", "commutative"), ("ito",)


class OnlyAdditive(OnlyDiagonal):
    noise_types = ("additive",)


@pytest.mark.parametrize(
    ("sde", "solver", "hint"),
    [
        (claimed(lambda x: torch.diag_embed(1 + x * x), "general", 2), OnlyDiagonal(), "in fact diagonal"),
        (
            claimed(lambda x: torch.stack([x, 2 * x, 3 * x], -1), "general", 3),
            OnlyDiagonal(),
            "in fact commutative",
        ),
        (claimed(lambda x: torch.stack([x, 2 * x], -1), "general", 2), OnlyDiagonal(), "in fact commutative"),
        (
            claimed(lambda x: torch.diag_embed((1 + x * x).flip(1) * torch.tensor([1.0, 0.0])), "general", 2),
            OnlyDiagonal(),
            "in fact commutative",
        ),
        (claimed(lambda x: 1 + 0 * x, "diagonal"), OnlyAdditive(), "in fact additive"),
        (claimed(lambda x: torch.stack([x, x.flip(1) * x], -1), "general", 2), OnlyDiagonal(), None),
        (claimed(lambda x: 1 + x, "diagonal"), OnlyAdditive(), None),
        (claimed(lambda x: torch.from_numpy(x.numpy()), "diagonal"), OnlyAdditive(), None),
    ],
)
def test_a_refusal_names_what_the_noise_is_in_fact(sde, solver, hint):
    with pytest.raises(sk.errors.CapabilityError, match="would lose its order") as error:
        sk.solve(sde, torch.zeros(3, 2, dtype=F64), (0.0, 1.0), solver=solver)
    assert ("in fact" in str(error.value)) == (hint is not None)
    assert (hint or "") in str(error.value)


def test_library_problems_keep_their_promises():
    """Every equation of the library that is not checked at its door would pass the probe too."""
    from sdekit.sde import classic

    x = torch.rand(3, 2, dtype=F64, generator=torch.Generator().manual_seed(4)) + 0.2
    systems = [
        sk.GeometricBrownian(0.1, 0.4),
        sk.CIR(),
        sk.OrnsteinUhlenbeck(),
        sk.LinearSDE(torch.eye(2), L=torch.eye(2)),
    ]
    systems += [classic.TanhDiffusion(), classic.SinhDiffusion(), classic.ArctanDiffusion(), sk.VP()]
    for sde in systems:
        object.__setattr__(sde, "_claims_checked", False)
        sde.validate(0.5 * x, 0.3)
        assert sde._claims_checked
