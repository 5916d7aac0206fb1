"""Samples as a function of seed and id; constructors; every refusal and its message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import sdekit as sk
from sdekit.errors import EndpointError, NonFiniteError, NotPositiveDefiniteError, ShapeError
from sdekit.noise import Philox, Purpose, Recorded
from sdekit.targets import Empirical, Gaussian, GaussianMixture
from tests.targets.laws import KINDS, law, spd, states

NAN, EYE = float("nan"), torch.eye(2)
VP = sk.VP()


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_a_function_of_seed_and_id(kind: str, device: torch.device) -> None:
    target = law(kind, (2, 3)).target
    whole = target.sample(30, seed=5, device=device)
    assert (whole.shape, whole.dtype, whole.device.type) == ((30, 2, 3), torch.float32, device.type)
    assert torch.equal(target.sample(10, seed=5, first_id=20, device=device), whole[20:])
    assert not torch.equal(target.sample(30, seed=6, device=device), whole)
    assert torch.equal(target.sample(30, seed=5, dtype=torch.float64, device=device).float(), whole)
    assert target.sample(0).shape == (0, 2, 3)
    none = target.sample(0, dtype=torch.float64, device=device)
    assert target.log_prob(none).shape == (0,)
    assert target.score(VP)(none, 0.5).shape == target.denoiser(VP).x0(none, 0.5).shape == (0, 2, 3)
    width = (7,) if target._choices else (2, 3)
    like, ids = torch.empty(30, *width, dtype=torch.float64, device=device), torch.arange(30, device=device)
    recorded = Recorded([Philox(5).normal(0, like, ids, Purpose.DATA)])
    assert torch.equal(target.sample(30, noise=recorded, device=device), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_law(kind: str) -> None:
    """Mean, covariance and the mean of log p, at 5.5 standard errors: 13 tests, rate below 1e-6."""
    case, n = law(kind, (3,)), 50_000
    x = case.target.sample(n, seed=11, dtype=torch.float64)
    other = case.at(1.0, 0.0).sample((n,))
    mean, cov = case.moments()
    centred = x - mean
    columns = torch.cat([centred, (centred[:, :, None] * centred[:, None] - cov).flatten(1)], 1)
    assert float((columns.mean(0) / (columns.std(0) / n**0.5)).abs().max()) < 5.5
    mine, theirs = case.target.log_prob(x), case.target.log_prob(other)
    error = float(mine.mean() - theirs.mean()) / float(((mine.var() + theirs.var()) / n).sqrt())
    assert abs(error) < 5.5


def test_components_and_data_are_chosen_by_weight() -> None:
    """Counts of 4 components, one with weight 0: 5.5 standard errors, rate 2e-7."""
    n, w = 100_000, torch.tensor([0.1, 0.0, 0.6, 0.3], dtype=torch.float64)
    y = torch.arange(4.0)[:, None]
    for target in (Empirical(y, weights=w), GaussianMixture(w, y, 1e-6)):
        counts = torch.bincount(target.sample(n)[:, 0].round().long(), minlength=4)
        assert counts[1] == 0
        assert bool(((counts - n * w).abs() <= 5.5 * (n * w * (1 - w)).sqrt()).all())


def test_gaussians_of_every_form_agree() -> None:
    c = spd(1, 6, torch.Generator().manual_seed(0))[0]
    values, basis = torch.linalg.eigh(c)
    mean = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    dense, own = Gaussian(mean, c), Gaussian(mean, eigen=(values, basis))
    x = states(dense, 5)
    torch.testing.assert_close(dense.log_prob(x), own.log_prob(x))
    torch.testing.assert_close(dense.cov, c)
    torch.testing.assert_close(dense.to_basis(x) @ dense.basis.T, x.flatten(1))  # type: ignore[union-attr]
    torch.testing.assert_close(dense.from_basis(dense.to_basis(x)), x)
    diagonal = Gaussian(mean, variance=torch.full((2, 3), 0.5))
    assert diagonal.basis is None
    torch.testing.assert_close(diagonal.log_prob(x), Gaussian(mean, 0.5).log_prob(x))
    torch.testing.assert_close(diagonal.log_prob(x), Gaussian(mean, 0.5 * torch.eye(6)).log_prob(x))
    assert torch.equal(diagonal.to_basis(x), x.flatten(1))
    assert Gaussian(0.0, 1.0).event_shape == (1,)
    assert Gaussian(0.0, torch.eye(4)).event_shape == (4,)


def test_numbers_keep_their_53_bits() -> None:
    """Python numbers and lists must not pass through float32."""
    assert float(Gaussian(0.1, variance=0.3).mean) == 0.1
    assert float(Gaussian(0.1, variance=0.3).eigenvalues) == 0.3
    assert Gaussian([0.1, 0.2], 0.7).mean.tolist() == [0.1, 0.2]
    mixture = GaussianMixture([1, 2], [0.1, 0.7], [0.2, 0.3])
    assert mixture.means.flatten().tolist() == [0.1, 0.7]
    assert mixture.eigenvalues.flatten().tolist() == [0.2, 0.3]
    Gaussian(0.0, [[1.0, 0.0], [0.0, 1e-9]])  # regular in float64, singular in float32


def test_gaussian_from_data() -> None:
    y = torch.randn(500, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y[:, 0, 0] = 1.0  # a border pixel
    target = Gaussian.from_data(y)
    flat = y.flatten(1)
    torch.testing.assert_close(target.mean, y.mean(0))
    cov = torch.cov(flat.T, correction=0)
    assert float(target.eigenvalues.min()) == pytest.approx(1e-4 * float(cov.trace()) / 6)
    torch.testing.assert_close(target.cov[1:, 1:], cov[1:, 1:])
    exact = Gaussian.from_data(y[:, 1], floor=0)
    torch.testing.assert_close(exact.cov, torch.cov(y[:, 1].T, correction=0))


def test_mixture_components_are_its_gaussians() -> None:
    for kind in ("mixture dense", "mixture shared", "mixture diagonal"):
        case = law(kind, (2, 2))
        assert isinstance(case.target, GaussianMixture)
        x = states(case.target, 4)
        parts = torch.stack([part.log_prob(x) for part in case.target.components])
        torch.testing.assert_close(torch.logsumexp(parts + case.w.log()[:, None], 0), case.target.log_prob(x))
        assert len(case.target) == 3
    assert repr(case.target) == "GaussianMixture(3 components, event_shape=(2, 2))"
    assert repr(Gaussian(torch.zeros(2), 1.0)) == "Gaussian(event_shape=(2,))"
    assert repr(Empirical(torch.zeros(5, 2), 0.5)) == "Empirical(5 data, event_shape=(2,), bandwidth=0.5)"


def gaussian() -> Gaussian:
    return Gaussian(torch.zeros(2), 1.0)


REFUSALS: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    (
        "none of three",
        lambda: Gaussian(0.0),
        TypeError,
        r"exactly one of cov, variance, eigen, low_rank and spectrum",
    ),
    ("two of three", lambda: Gaussian(0.0, 1.0, variance=1.0), TypeError, r"got \['cov', 'variance'\]"),
    ("mean NaN", lambda: Gaussian([NAN], 1.0), ValueError, r"mean holds NaN or infinity"),
    ("mean text", lambda: Gaussian("a", 1.0), ShapeError, r"mean must be a number, an array"),
    ("variance 0", lambda: Gaussian(0.0, 0.0), NotPositiveDefiniteError, r"variance must be > 0.*from_data"),
    (
        "variance matrix",
        lambda: Gaussian(torch.zeros(2), variance=EYE),
        ShapeError,
        r"variance must .*event shape \(2,\).*pass it as cov",
    ),
    (
        "cov vector",
        lambda: Gaussian(0.0, torch.ones(3)),
        ShapeError,
        r"cov must have shape \(D, D\).*variance=",
    ),
    (
        "cov size",
        lambda: Gaussian(torch.zeros(3), EYE),
        ShapeError,
        r"must be \(D, D\) with D = 3.*got D = 2",
    ),
    (
        "cov asymmetric",
        lambda: Gaussian(0.0, torch.tensor([[1.0, 0.5], [0.0, 1.0]])),
        NotPositiveDefiniteError,
        r"must be symmetric.*L @ L.mT",
    ),
    (
        "cov singular",
        lambda: Gaussian(0.0, torch.ones(2, 2)),
        NotPositiveDefiniteError,
        r"positive definite, but its smallest eigenvalue.*from_data",
    ),
    (
        "eigen shapes",
        lambda: Gaussian(0.0, eigen=(torch.ones(3), EYE)),
        ShapeError,
        r"eigen must be \(values \(D,\), basis \(D, D\)\)",
    ),
    (
        "basis",
        lambda: Gaussian(0.0, eigen=(torch.ones(2), 2 * EYE)),
        ValueError,
        r"basis must be orthogonal.*torch.linalg.eigh",
    ),
    ("data one", lambda: Gaussian.from_data(torch.ones(1, 2)), ShapeError, r"\(N, \*event\) with N >= 2"),
    (
        "data constant",
        lambda: Gaussian.from_data(torch.ones(5, 2)),
        NotPositiveDefiniteError,
        r"data are constant.*one sample repeated",
    ),
    ("means", lambda: GaussianMixture([1.0], 0.0, 1.0), ShapeError, r"means must have shape \(K, \*event\)"),
    (
        "covs",
        lambda: GaussianMixture([1.0, 1.0], EYE, torch.ones(5)),
        ShapeError,
        r"covs must be a number, or",
    ),
    (
        "covs sign",
        lambda: GaussianMixture([1.0, 1.0], EYE, [1.0, -1.0]),
        NotPositiveDefiniteError,
        r"covs must be > 0 everywhere, got -1",
    ),
    (
        "covs singular",
        lambda: GaussianMixture([1.0, 1.0], EYE, torch.stack([EYE, torch.ones(2, 2)])),
        NotPositiveDefiniteError,
        r"covs must be positive definite",
    ),
    ("weights", lambda: GaussianMixture([1.0], EYE, 1.0), ShapeError, r"weights must have shape \(2,\)"),
    ("weights sign", lambda: GaussianMixture([1.0, -1.0], EYE, 1.0), ValueError, r"weights must be >= 0"),
    ("weights 0", lambda: Empirical(EYE, weights=[0.0, 0.0]), ValueError, r"with a positive sum"),
    ("data flat", lambda: Empirical(torch.ones(3)), ShapeError, r"data must have shape.*data\[:, None\]"),
    ("data empty", lambda: Empirical(torch.ones(0, 3)), ShapeError, r"with N >= 1"),
    ("data bytes", lambda: Empirical(EYE.byte()), ShapeError, r"got dtype torch.uint8.*127\.5"),
    (
        "data NaN",
        lambda: Empirical(torch.tensor([[0.0], [NAN]])),
        NonFiniteError,
        r"first: row 1.*drop or repair",
    ),
    ("bandwidth", lambda: Empirical(EYE, -1.0), ValueError, r"bandwidth must be finite and >= 0"),
    (
        "no density",
        lambda: Empirical(EYE).log_prob(EYE),
        EndpointError,
        r"no density \(bandwidth 0\).*marginal",
    ),
    (
        "no score",
        lambda: Empirical(EYE).score(sk.RectifiedFlow())(EYE, 0.0),
        EndpointError,
        r"infinite where sigma = 0.*a time t > 0",
    ),
    (
        "zero law",
        lambda: Empirical(torch.zeros(3, 2)).data_std,
        ValueError,
        r"data_std is 0: the law is a point",
    ),
    ("x shape", lambda: gaussian().log_prob(torch.ones(4, 3)), ShapeError, r"x must have shape \(B, 2\)"),
    ("x alone", lambda: gaussian().log_prob(torch.ones(2)), ShapeError, r"x\[None\] for a single sample"),
    ("x integer", lambda: gaussian().log_prob(torch.ones(4, 2).long()), ShapeError, r"x must be floating"),
    ("t rows", lambda: gaussian().score(VP)(torch.ones(4, 2), torch.ones(3)), ShapeError, r"3 values for 4"),
    ("t of marginal", lambda: gaussian().marginal(VP, torch.ones(2)), ShapeError, r"t must be one time"),  # type: ignore[arg-type]
    ("n", lambda: gaussian().sample(-1), ValueError, r"n must be"),
    ("first_id", lambda: gaussian().sample(1, first_id=-1), ValueError, r"first_id must be"),
    ("A", lambda: gaussian().posterior(torch.ones(1, 3), [0.0], 1.0), ShapeError, r"\(k, D\) with D = 2"),
    ("y", lambda: gaussian().posterior(EYE, [0.0], 1.0), ShapeError, r"y must have shape \(2,\)"),
    (
        "noise_cov shape",
        lambda: gaussian().posterior(EYE, [0.0, 0.0], torch.ones(3)),
        ShapeError,
        r"noise_cov must be a number, \(2,\) or \(2, 2\)",
    ),
    (
        "noise_cov matrix",
        lambda: gaussian().posterior(EYE, [0.0, 0.0], -EYE),
        NotPositiveDefiniteError,
        r"noise_cov must be symmetric positive definite",
    ),
    (
        "noise_cov 0",
        lambda: gaussian().posterior(EYE, [0.0, 0.0], 0.0),
        NotPositiveDefiniteError,
        r"noise_cov must be > 0",
    ),
]


@pytest.mark.parametrize(
    ("call", "error", "message"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS]
)
def test_refusals(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        call()
