"""The law of x0 given y = A x0 + n, against the textbook formula and quadrature."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, distributions

from sdekit.targets import Empirical, GaussianMixture
from tests.targets.laws import KINDS, Law, law, spd, states

SMOOTH = [kind for kind in KINDS if kind != "empirical weighted"]


def problem(d: int, k: int, form: str, seed: int) -> tuple[Tensor, Tensor, Tensor | float, Tensor]:
    """A (k, D), y (k,), noise_cov as given, and as a matrix (k, k)."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(k, d, generator=g, dtype=torch.float64)
    y = torch.randn(k, generator=g, dtype=torch.float64)
    eye = torch.eye(k, dtype=torch.float64)
    if form == "number":
        return a, y, 0.3, 0.3 * eye
    if form == "variances":
        r = 0.1 + torch.rand(k, generator=g, dtype=torch.float64)
        return a, y, r, torch.diag(r)
    r = spd(1, k, g)[0]
    return a, y, r, r


def textbook(case: Law, a: Tensor, y: Tensor, r: Tensor) -> distributions.MixtureSameFamily:
    """w_k N(y; A m_k, S_k), N(m_k + C_k A^T S_k^-1 (y - A m_k), C_k - C_k A^T S_k^-1 A C_k)."""
    s = a @ case.c @ a.T + r
    gain = case.c @ a.T @ torch.linalg.inv(s)
    residual = y - case.m @ a.T
    evidence = distributions.MultivariateNormal(case.m @ a.T, s).log_prob(y)
    mean = case.m + (gain @ residual[..., None])[..., 0]
    cov = case.c - gain @ a @ case.c
    return distributions.MixtureSameFamily(
        distributions.Categorical(logits=case.w.log() + evidence),
        distributions.MultivariateNormal(mean, (cov + cov.mT) / 2),
    )


@given(
    kind=st.sampled_from(KINDS),
    event=st.sampled_from([(1,), (3,), (2, 2)]),
    k=st.integers(1, 5),
    form=st.sampled_from(["number", "variances", "matrix"]),
    seed=st.integers(0, 99),
)
def test_posterior_is_the_textbook_one(
    kind: str, event: tuple[int, ...], k: int, form: str, seed: int
) -> None:
    """Fewer and more observations than dimensions; A flat or in the shape of events."""
    case = law(kind, event, seed=seed)
    a, y, given_r, r = problem(case.m.shape[1], k, form, seed)
    expected = textbook(case, a, y, r)
    x = states(case.target, 5, seed)
    for operator in (a, a.reshape(k, *event)):
        posterior = case.target.posterior(operator, y, given_r)
        assert posterior.event_shape == case.target.event_shape
        torch.testing.assert_close(
            posterior.log_prob(x), expected.log_prob(x.flatten(1)), rtol=1e-8, atol=1e-8
        )
    if kind.startswith("empirical"):
        assert isinstance(posterior, GaussianMixture)
    else:
        assert type(posterior) is type(case.target)


@pytest.mark.parametrize("kind", SMOOTH)
def test_posterior_by_quadrature(kind: str) -> None:
    """p(x | y) = p(x) N(y; a x, r) / Z on a fine grid of the line."""
    target = law(kind, (1,)).target
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)[:, None]
    likelihood = distributions.Normal(1.7 * grid[:, 0], 0.5**0.5).log_prob(
        torch.tensor(0.8, dtype=torch.float64)
    )
    joint = target.log_prob(grid) + likelihood
    z = torch.trapezoid(joint.exp(), grid[:, 0])
    posterior = target.posterior([[1.7]], [0.8], 0.5)
    torch.testing.assert_close(posterior.log_prob(grid).exp(), joint.exp() / z, rtol=1e-7, atol=1e-10)


def test_posterior_of_the_data_alone_reweights_them() -> None:
    case = law("empirical weighted", (2, 2), bandwidth=0.0)
    a, y, _, r = problem(4, 2, "matrix", 1)
    posterior = case.target.posterior(a, y, r)
    assert isinstance(posterior, Empirical)
    assert posterior.bandwidth == 0
    assert posterior.weights is not None
    logits = case.w.log() + distributions.MultivariateNormal(case.m @ a.T, r).log_prob(y)
    torch.testing.assert_close(posterior.weights, torch.softmax(logits, 0), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("noise", [1e-12, 1e-6, 1e12])
def test_posterior_of_sharp_and_useless_observations(noise: float) -> None:
    """Eigenvalues stay positive; a sharp observation fixes A x, a useless one changes nothing."""
    case = law("gaussian dense", (4,))
    a, y, _, _ = problem(4, 2, "number", 3)
    posterior = case.target.posterior(a, y, noise)
    assert float(posterior.eigenvalues.min()) > 0  # type: ignore[attr-defined]
    x = posterior.sample(200, dtype=torch.float64)
    if noise < 1:
        assert float((x @ a.T - y).abs().max()) < 10 * noise**0.5
    else:
        torch.testing.assert_close(posterior.log_prob(x), case.target.log_prob(x), rtol=1e-6, atol=1e-6)
