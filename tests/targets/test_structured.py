"""Covariances that are never written out: low rank plus diagonal, and stationary on a torus."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdekit as sk
from sdekit.errors import NotPositiveDefiniteError, ShapeError
from sdekit.targets import Gaussian
from sdekit.targets._basis import EIGH, LARGEST, Hartley, Reflected, dense
from sdekit.targets._texture import periodic_part
from tests.targets.laws import law, stationary

TIGHT = {"rtol": 1e-10, "atol": 1e-11}
sizes = st.integers(1, 6)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The bases.


@given(d=st.integers(1, 12), k=st.integers(1, 12), seed=st.integers(0, 99))
def test_a_reflection_completes_a_basis(d: int, k: int, seed: int) -> None:
    """V is orthogonal, its first columns are Q, and both directions of the operator are V's."""
    k = min(k, d)
    q, _ = torch.linalg.qr(normal(d, k, seed=seed))
    basis = Reflected(q)
    v = dense(basis, d)
    torch.testing.assert_close(v.T @ v, torch.eye(d, dtype=torch.float64), **TIGHT)
    torch.testing.assert_close(v[:, :k], q, **TIGHT)
    x = normal(4, d, seed=seed + 1)
    torch.testing.assert_close(basis.times(x), x @ v, **TIGHT)
    torch.testing.assert_close(basis.transposed(x), x @ v.T, **TIGHT)
    torch.testing.assert_close(basis.times(x[0]), x[0] @ v, **TIGHT)


@given(c=st.integers(1, 3), h=sizes, w=sizes, couple=st.booleans(), seed=st.integers(0, 99))
def test_hartley_vectors_diagonalise_stationary_covariances(
    c: int, h: int, w: int, couple: bool, seed: int
) -> None:
    """Against C summed over shifts: V^T C V = diag(values), V orthogonal and real, for any parity."""
    fields = normal(2, c, h, w, seed=seed)
    cov, spectrum = stationary(fields, 0.2)
    if not couple and c > 1:
        spectrum = torch.diagonal(spectrum).permute(2, 0, 1).real
        block = torch.block_diag(*torch.ones(c, h * w, h * w, dtype=torch.float64))
        cov = cov * block
    target = Gaussian(0.0, spectrum=spectrum)
    assert target.event_shape == (c, h, w)
    v = target.basis
    assert v is not None
    torch.testing.assert_close(v.T @ v, torch.eye(len(v), dtype=torch.float64), **TIGHT)
    torch.testing.assert_close(v.T @ cov @ v, torch.diag(target.eigenvalues), **TIGHT)
    torch.testing.assert_close(target.cov, cov, **TIGHT)
    torch.testing.assert_close(target.to_basis(fields), fields.flatten(1) @ v, **TIGHT)


def test_one_dimensional_spectra_are_those_of_numpy() -> None:
    """A series (L,): the covariance of an autoregression on a ring, from numpy's own transform."""
    r = 0.8 ** np.minimum(np.arange(9), 9 - np.arange(9))
    target = Gaussian(0.0, spectrum=torch.from_numpy(np.fft.fft(r).real))
    assert target.event_shape == (9,)
    torch.testing.assert_close(target.cov[0], torch.from_numpy(r), **TIGHT)
    torch.testing.assert_close(target.cov[4], torch.from_numpy(np.roll(r, 4)), **TIGHT)


@given(k=st.integers(1, 12), rest=st.floats(1e-3, 10.0), seed=st.integers(0, 99))
def test_low_rank_covariances(k: int, rest: float, seed: int) -> None:
    """More columns than rows, too; a number or equal numbers on the diagonal, and a diagonal that varies."""
    u = normal(7, k, seed=seed)
    eye = torch.eye(7, dtype=torch.float64)
    for d in (rest, torch.full((7,), rest, dtype=torch.float64)):
        target = Gaussian(0.0, low_rank=(u, d))
        torch.testing.assert_close(target.cov, u @ u.T + rest * eye, **TIGHT)
    varies = rest * (1 + torch.arange(7.0, dtype=torch.float64))
    torch.testing.assert_close(
        Gaussian(0.0, low_rank=(u, varies)).cov, u @ u.T + torch.diag(varies), rtol=1e-8, atol=1e-8
    )
    other = Gaussian(torch.zeros(7), low_rank=(u, rest))
    assert other.with_eigenvalues(2.0).cov.allclose(2 * eye)


# Large laws.


@pytest.mark.parametrize("kind", ["low rank", "stationary"])
def test_a_hundred_thousand_dimensions(kind: str) -> None:
    """Everything but matrices: sample, density, score, denoiser, marginal; against what is known exactly."""
    d = 3 * 183 * 183
    u = normal(d, 4)
    if kind == "low rank":
        target = Gaussian(torch.full((3, 183, 183), 0.5), low_rank=(u, 0.25))
    else:
        power = 0.25 + normal(3, 183, 183, seed=1) ** 2
        target = Gaussian(0.5, spectrum=(power + power.flip(1, 2).roll((1, 1), (1, 2))) / 2)
    x = target.sample(3, dtype=torch.float64)
    assert torch.equal(target.sample(1, first_id=2, dtype=torch.float64)[0], x[2])
    c = target.to_basis(x - 0.5)
    torch.testing.assert_close(target.from_basis(c), x - 0.5, rtol=1e-9, atol=1e-9)
    whitened = (c.square() / target.eigenvalues).mean(1)
    assert float((whitened - 1).abs().max()) < 5 * math.sqrt(2 / d)
    log_det = target.eigenvalues.log().sum()
    expected = -0.5 * (whitened * d + log_det + d * math.log(2 * math.pi))
    torch.testing.assert_close(target.log_prob(x), expected)
    process, t = sk.VP(), 0.3
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    score, mean = target.score(process)(x, t), target.denoiser(process).x0(x, t)
    torch.testing.assert_close(alpha * mean, x + sigma**2 * score, rtol=1e-8, atol=1e-8)
    marginal = target.marginal(process, t)
    torch.testing.assert_close(marginal.score(sk.RectifiedFlow())(x, 0.0), score, rtol=1e-8, atol=1e-8)
    if kind == "low rank":  # C^-1 z by the identity of Woodbury
        z = (x - 0.5).flatten(1)
        small = 0.25 * torch.eye(4, dtype=torch.float64) + u.T @ u
        inverse = (z - (z @ u) @ torch.linalg.inv(small) @ u.T) / 0.25
        torch.testing.assert_close(-target.score(sk.RectifiedFlow())(x, 0.0).flatten(1), inverse)
    for call in (
        lambda: target.cov,
        lambda: target.basis,
        lambda: target.posterior(u.T, torch.zeros(4), 1.0),
    ):
        with pytest.raises(ShapeError, match=r"matrix of 100467 x 100467 numbers.*Next"):
            call()


def test_few_data_in_many_dimensions() -> None:
    """Above the largest dense decomposition the law lives on the span of the data, the rest at the floor."""
    d, n = EIGH + 4, 5
    y = normal(n, d)
    target = Gaussian.from_data(y, floor=1e-2)
    centred = y - y.mean(0)
    low = 1e-2 * float(centred.square().sum()) / (n * d)
    gram = torch.linalg.eigvalsh(centred @ centred.T / n)[1:]
    values = target.eigenvalues.sort().values
    torch.testing.assert_close(values[-4:], gram, **TIGHT)
    assert values[:-4].tolist() == pytest.approx([low] * (d - 4))
    along = target.to_basis(centred).square().sum(0) / n
    torch.testing.assert_close(along, torch.where(target.eigenvalues > 2 * low, target.eigenvalues, 0.0))
    with pytest.raises(NotPositiveDefiniteError, match="data are constant"):
        Gaussian.from_data(torch.ones(3, d))


# Photographs.


def photograph(size: int = 16) -> torch.Tensor:
    from sklearn.datasets import load_sample_image

    image = torch.tensor(load_sample_image("china.jpg"), dtype=torch.float64).permute(2, 0, 1) / 127.5 - 1
    return image[:, 100 : 100 + size, 200 : 200 + size].clone()


def test_a_texture_has_the_covariance_of_its_photograph() -> None:
    """Without floor and border: the mean over all shifts of (image - mean)(image - mean)^T."""
    image = photograph(6)
    colour = image.mean((1, 2), keepdim=True)
    cov, _ = stationary((image - colour)[None], 0.0)
    for images in (image, torch.stack((image, image))):
        target = Gaussian.texture(images, periodic=False, floor=1e-9)
        torch.testing.assert_close(target.cov, cov, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(target.mean, colour.expand(3, 6, 6))
    apart = Gaussian.texture(image, periodic=False, floor=1e-9, couple=False)
    block = torch.block_diag(*torch.ones(3, 36, 36, dtype=torch.float64))
    torch.testing.assert_close(apart.cov, cov * block, rtol=1e-6, atol=1e-8)
    grey = Gaussian.texture(image[0], periodic=False, floor=1e-9)
    assert grey.event_shape == (6, 6)
    torch.testing.assert_close(grey.cov, cov[:36, :36], rtol=1e-6, atol=1e-8)


def test_a_texture_is_floored_where_one_photograph_says_nothing() -> None:
    target = Gaussian.texture(photograph(8), floor=1e-3)
    values = target.eigenvalues
    low = float(values.min())
    above = int((values > low).sum())
    assert above == 63  # rank one at each frequency, none at the origin
    plain = Gaussian.texture(photograph(8), floor=1e-12).eigenvalues
    assert low == pytest.approx(1e-3 * float(plain.mean()), rel=1e-6)
    several = torch.stack([photograph(24)[:, a : a + 8, b : b + 8] for a in (0, 8, 16) for b in (0, 8, 16)])
    assert int((Gaussian.texture(several, floor=1e-9).eigenvalues > 1e-6).sum()) == 3 * 63


def test_samples_of_a_texture_show_its_spectrum() -> None:
    """400 samples: periodogram over S at each frequency, a mean of 400 chi-squares (two of each, real ones).

    At 5.5 deviations over 300 numbers a fresh seed fails with probability 1e-5.
    """
    target = Gaussian.texture(photograph(10), couple=False, floor=1e-2)
    x = target.sample(400, dtype=torch.float64) - target.mean
    power = torch.fft.fft2(x, norm="ortho").abs().square().mean(0)
    ratio = power.flatten() / target.eigenvalues
    assert float((ratio - 1).abs().max()) < 5.5 * math.sqrt(2 / 400)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_coupled_channels_keep_their_bits(dtype: torch.dtype, device: torch.device) -> None:
    """Sample 17 alone is sample 17 of 64, for one time and a time for each row."""
    target = Gaussian.texture(photograph(12))
    x = (1.5 * normal(64, 3, 12, 12)).to(dtype=dtype, device=device)
    t = torch.linspace(0.01, 1.0, 64, dtype=torch.float64, device=device)
    model, score = target.denoiser(sk.VP()), target.score(sk.VP())
    for fn in (model.x0, score, lambda x, t: model.x0(x, 0.3), lambda x, t: target.log_prob(x)):
        whole = fn(x, t)
        assert torch.equal(fn(x[17:18], t[17:18])[0], whole[17])
        assert torch.equal(fn(x.flip(0), t.flip(0)).flip(0), whole)


def test_coupled_channels_are_differentiable_twice_and_by_torch_func() -> None:
    target, process = Gaussian.texture(normal(4, 2, 2, 3)), sk.VP()
    score = target.score(process)
    x = normal(2, 2, 2, 3)
    assert torch.autograd.gradcheck(lambda x: score(x, 0.4), x.clone().requires_grad_())
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: score(row[None], 0.4)[0]))(x)
    expected = -torch.linalg.inv(target.marginal(process, 0.4).cov)
    torch.testing.assert_close(jacobian.reshape(2, 12, 12), expected.expand(2, 12, 12), rtol=1e-8, atol=1e-8)


@given(h=st.integers(2, 9), w=st.integers(2, 9), seed=st.integers(0, 99))
def test_the_periodic_part_keeps_differences_and_loses_jumps(h: int, w: int, seed: int) -> None:
    """Its Laplacian on the torus is that of the image without differences across the border; same mean."""
    x = normal(h, w, seed=seed)
    p = periodic_part(x)

    def laplacian(v: torch.Tensor, torus: bool) -> torch.Tensor:
        total = torch.zeros_like(v)
        for dim in (0, 1):
            for shift in (1, -1):
                gap = v.roll(shift, dim) - v
                if not torus:
                    gap.select(dim, 0 if shift == 1 else -1).zero_()
                total += gap
        return total

    torch.testing.assert_close(laplacian(p, True), laplacian(x, False), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(p.mean(), x.mean())


# Other laws in the same basis.


def test_variances_of_laws_that_share_their_eigenvectors() -> None:
    case = law("gaussian dense", (5,))
    target = case.target
    assert isinstance(target, Gaussian)
    values = torch.linspace(0.5, 2.0, 5, dtype=torch.float64)
    same = target.with_eigenvalues(values, torch.ones(5))
    assert torch.equal(same.mean, torch.ones(5, dtype=torch.float64))
    assert torch.equal(target.variances_of(same), values)
    rebuilt = Gaussian(0.0, same.cov)  # other order, other signs
    torch.testing.assert_close(target.variances_of(rebuilt), values, **TIGHT)
    assert target.variances_of(Gaussian(torch.zeros(5), 0.3)).tolist() == [0.3] * 5
    with pytest.raises(ValueError, match=r"must have the same eigenvectors.*with_eigenvalues"):
        target.variances_of(law("gaussian dense", (5,), seed=1).target)  # type: ignore[arg-type]
    a, b = (Gaussian(0.0, spectrum=s * torch.ones(4, 4)) for s in (1.0, 2.0))
    assert torch.equal(a.variances_of(b), b.eigenvalues)
    photo = Gaussian.texture(photograph(8))
    assert isinstance(photo._basis, Hartley)
    again = Gaussian.texture(photograph(8))
    assert torch.equal(photo.variances_of(again), again.eigenvalues)
    assert not photo._basis.same(Gaussian.texture(photograph(8), couple=False)._basis)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: Gaussian(0.0, low_rank=(torch.ones(3), 1.0)), ShapeError, r"factor \(D, k\).*reshape"),
        (lambda: Gaussian(0.0, low_rank=(torch.ones(3, 1), torch.ones(2))), ShapeError, r"shapes \(3, 1\)"),
        (lambda: Gaussian(0.0, low_rank=(torch.ones(3, 1), 0.0)), NotPositiveDefiniteError, "must be > 0"),
        (
            lambda: Gaussian(0.0, low_rank=(torch.ones(EIGH + 1, 1), 1 + torch.arange(EIGH + 1.0))),
            ShapeError,
            r"diagonal that varies.*one number",
        ),
        (lambda: Gaussian(0.0, spectrum=torch.ones(2, 3, 4, 4)), ShapeError, r"\(C, C, H, W\), got"),
        (lambda: Gaussian(0.0, spectrum=torch.ones(1, 1, 1, 2, 2)), ShapeError, r"\(L,\), \(H, W\)"),
        (lambda: Gaussian(0.0, spectrum=torch.arange(1.0, 6.0)), ValueError, r"S\(-f\) = S\(f\).*ifftshift"),
        (
            lambda: Gaussian(
                0.0,
                spectrum=torch.eye(2)
                .add(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))[..., None, None]
                .expand(2, 2, 3, 3),
            ),
            ValueError,
            r"S\(f\)\^H = S\(f\)",
        ),
        (
            lambda: Gaussian(0.0, spectrum=torch.full((1, 1, 2, 2), math.nan)),
            ValueError,
            "NaN or infinity",
        ),
        (lambda: Gaussian(torch.zeros(3), spectrum=torch.ones(4)), ShapeError, r"events \(4,\), got \(3,\)"),
        (lambda: Gaussian(0.0, spectrum=-torch.ones(4)), NotPositiveDefiniteError, "eigenvalues of spectrum"),
        (lambda: Gaussian.texture(torch.ones(3)), ShapeError, "must be one photograph.*permute"),
        (lambda: Gaussian.texture(torch.ones(4, 4)), NotPositiveDefiniteError, "image is constant"),
        (lambda: Gaussian(0.0, 1.0).with_eigenvalues(torch.ones(2)), ShapeError, r"a number or \(1,\)"),
        (lambda: Gaussian(torch.zeros(LARGEST + 1), 1.0).cov, ShapeError, "matrix of .* Next"),
    ],
)
def test_refusals(call, kind, words) -> None:
    with pytest.raises(kind, match=f"(?s){words}"):
        call()
