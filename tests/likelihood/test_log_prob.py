"""log_prob against closed forms: every process and prediction, exact and estimated traces, all parts."""

from __future__ import annotations

import math

import pytest
import torch

import sdekit as sk
from sdekit.likelihood.trace import Exact, Probed, probes_for
from sdekit.score.predictions import conversion

PROCESSES = [sk.VP(), sk.SubVP(), sk.VE(), sk.Cosine(), sk.EDM(), sk.RectifiedFlow()]


def mixture(d: int, event: tuple[int, ...] | None = None) -> sk.GaussianMixture:
    g = torch.Generator().manual_seed(d)
    means = torch.randn(3, d, generator=g, dtype=torch.float64)
    covs = torch.rand(3, d, generator=g, dtype=torch.float64) * 0.2 + 0.02
    shape = (3, *(event or (d,)))
    return sk.GaussianMixture([0.2, 0.3, 0.5], means.reshape(shape), covs.reshape(shape))


def at_start(target, process, n, seed=1):
    t_min = process.t_min if isinstance(process, sk.EDM) else 1e-5
    law = target.marginal(process, t_min)
    return law, law.sample(n, seed=seed, dtype=torch.float64)


@pytest.mark.parametrize("d", [2, 8, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("process", PROCESSES[::5], ids=lambda p: type(p).__name__)
def test_exact_trace_is_within_1e5_of_the_closed_form(process, d):
    target = mixture(d)
    law, x = at_start(target, process, 12)
    prior = target.marginal(process, process.t_max)
    found = sk.log_prob(target.denoiser(process), x, prior=prior, rtol=1e-7, atol=1e-7)
    assert float((found.value - law.log_prob(x)).abs().max()) < 1e-5
    assert not found.stderr.any()
    assert torch.equal(torch.stack(found.interval()), torch.stack([found.value, found.value]))


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_every_process_and_its_own_prior(process):
    """Without prior= the value lacks the mismatch that prior= reports, and nothing else."""
    target = mixture(2)
    law, x = at_start(target, process, 6)
    model, prior = target.denoiser(process), target.marginal(process, process.t_max)
    found = sk.log_prob(model, x, prior=prior)
    own = sk.log_prob(model, x)
    torch.testing.assert_close(found.value, law.log_prob(x), atol=3e-4, rtol=0)
    torch.testing.assert_close(own.value + found.mismatch, found.value, atol=1e-12, rtol=0)
    torch.testing.assert_close(own.against(prior), found.mismatch, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.log_prior + found.log_det, found.value, atol=1e-12, rtol=0)
    assert own.mismatch is None
    if float(process.alpha(process.t_max)) > 0:
        assert float(found.mismatch.abs().max()) > 1e-4


@pytest.mark.parametrize("predicts", ["x0", "eps", "v", "score", "flow", "edm"])
@pytest.mark.parametrize("process", [sk.VP(), sk.RectifiedFlow()], ids=lambda p: type(p).__name__)
def test_every_prediction_gives_the_same_density(process, predicts):
    target = mixture(2)
    exact = target.denoiser(process)
    kind = {"flow": "velocity", "edm": "F"}.get(predicts, predicts)
    s = target.data_std

    def net(x, t):
        if predicts != "edm":
            return exact.predict(kind, x, t)
        rho = torch.exp(4 * t)
        node = exact.node(process.t_of_rho(rho))
        norm = torch.sqrt((node.alpha * s) ** 2 + node.sigma**2)[:, None]
        x = x * norm
        p, q = conversion("x0", "F", node, s)
        return p[:, None] * x + q[:, None] * exact.native(x, node)

    model = sk.Denoiser(net, process, predicts=predicts, data_std=s)
    law, x = at_start(target, process, 4)
    end = float(process.t_max if model.defined_at_pure_noise else process.finite_t_max)
    found = sk.log_prob(model, x, prior=target.marginal(process, end), rtol=1e-6, atol=1e-6)
    assert found.t_max == end
    torch.testing.assert_close(found.value, law.log_prob(x), atol=1e-4, rtol=0)


def test_the_end_correction_reaches_the_density_of_the_data():
    """log p_t - log p_0 is of size rho^2; what is left after the correction, of size rho^4."""
    target, process = mixture(3), sk.VP()
    x = target.sample(20, seed=4, dtype=torch.float64)
    prior = target.marginal(process, 1.0)
    left = []
    for t_min in (1e-2, 1e-3):
        found = sk.log_prob(
            target.denoiser(process), x, prior=prior, t_min=t_min, end="clean", rtol=1e-8, atol=1e-8
        )
        alpha = float(process.alpha(t_min))
        raw = target.marginal(process, t_min).log_prob(alpha * x) + 3 * math.log(alpha)
        gap = (raw - target.log_prob(x)).abs().max()
        error = (found.value - target.log_prob(x)).abs().max()
        assert float(error) < 0.4 * float(gap)
        torch.testing.assert_close(found.value, raw - found.truncation, atol=2e-6, rtol=0)
        rho = float(process.sigma(t_min)) / alpha
        left.append(float(error) / rho**4)
    assert left[1] < 2 * left[0]


@pytest.mark.parametrize(
    ("d", "law", "probes"),
    [
        (6, "rademacher", 8),
        (6, "gaussian", 8),
        (6, "gaussian", 3),
        (20, "rademacher", 8),
        (6, "rademacher", 4),
        pytest.param(80, "rademacher", 8, marks=pytest.mark.slow),
    ],
)
def test_error_bars_cover(d, law, probes):
    """2,000 intervals at 95 %: between 90 and 98 % hold the truth (an exact 95 % would fail once in 1e9)."""
    target, process = mixture(d), sk.VP()
    start, x = at_start(target, process, 2000)
    found = sk.log_prob(
        target.denoiser(process),
        x,
        prior=target.marginal(process, 1.0),
        trace="hutchinson",
        law=law,
        probes=probes,
        seed=3,
        rtol=1e-3,
        atol=1e-4,
    )
    low, high = found.interval(0.95)
    truth = start.log_prob(x)
    assert 0.90 < float(((low <= truth) & (truth <= high)).double().mean()) < 0.98
    error = found.value - truth
    assert abs(float(error.mean())) < 5 * float(error.std()) / math.sqrt(2000)


def test_one_probe_has_no_error_bar():
    target = mixture(2)
    found = sk.log_prob(
        target.denoiser(sk.VP()), torch.zeros(2, 2), trace="hutchinson", probes=1, rtol=1e-2, atol=1e-2
    )
    assert torch.isinf(found.stderr).all()
    assert torch.isinf(found.interval()[1]).all()


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_rows_keep_their_bits(trace):
    """Alone, in a batch, in pieces, with and without compaction; probes go with the sample's id."""
    target, process = mixture(3), sk.VP()
    _, x = at_start(target, process, 5)
    model = target.denoiser(process)
    options = {"trace": trace, "rtol": 1e-4, "atol": 1e-4, "seed": 7}
    whole = sk.log_prob(model, x, **options)
    for other in (
        sk.log_prob(model, x, batch_size=2, **options),
        sk.log_prob(model, x, compact=False, **options),
    ):
        assert torch.equal(whole.value, other.value)
        assert torch.equal(whole.stderr, other.stderr)
    alone = sk.log_prob(model, x[3:4], first_id=3, **options)
    assert torch.equal(whole.value[3:4], alone.value)
    if trace == "hutchinson":
        assert not torch.equal(sk.log_prob(model, x[3:4], first_id=4, **options).value, alone.value)


def test_any_event_shape():
    """Traces take every element of an image, and of an event without axes of its own."""
    flat, square = mixture(8), mixture(8, (2, 2, 2))
    process = sk.VP()
    _, x = at_start(flat, process, 3)
    options = {"rtol": 1e-6, "atol": 1e-6}
    a = sk.log_prob(flat.denoiser(process), x, **options)
    b = sk.log_prob(square.denoiser(process), x.reshape(3, 2, 2, 2), **options)
    torch.testing.assert_close(a.value, b.value, atol=1e-6, rtol=0)
    assert b.latent.shape == (3, 2, 2, 2)
    assert b.dimension == 8
    scalar = sk.Denoiser(lambda x, t: x * 0.5, process, predicts="x0", data_std=1.0)
    found = sk.log_prob(scalar, torch.tensor([0.2, 0.4]))
    assert found.value.shape == (2,)


def test_traces_of_a_known_matrix():
    """J = A row by row: tr A exactly; Rademacher probes v.Av, whose mean over all signs is tr A."""
    a = torch.tensor([[1.0, 2.0, 0.0], [-1.0, 0.5, 3.0], [0.3, 0.0, -4.0]], dtype=torch.float64)
    y, rows = torch.randn(4, 3, dtype=torch.float64), torch.tensor([2, 0, 3, 1])
    out, trace = Exact()(lambda y: y @ a.T, y, rows)
    torch.testing.assert_close(out, y @ a.T)
    torch.testing.assert_close(trace, torch.full((4, 1), -2.5, dtype=torch.float64))
    v = probes_for(torch.arange(4), 3, 5, "rademacher", 0)
    assert set(v.flatten().tolist()) == {-1.0, 1.0}
    _, found = Probed(v)(lambda y: y @ a.T, y, rows)
    torch.testing.assert_close(found, torch.einsum("bki,ij,bkj->bk", v, a, v)[rows])
    many = probes_for(torch.arange(2000), 3, 20, "gaussian", 0)
    assert abs(float(many.mean())) < 5 / math.sqrt(many.numel())
    assert abs(float(many.square().mean()) - 1) < 5 * math.sqrt(2 / many.numel())


def test_operations_without_a_batching_rule():
    """A backward that torch cannot take for all vectors at once is taken one by one."""

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return torch.from_numpy(grad.numpy() * (3 * x**2).numpy())

    y = torch.randn(2, 3, dtype=torch.float64)
    with torch.no_grad():
        _, trace = Exact()(Cube.apply, y, torch.arange(2))
    torch.testing.assert_close(trace[:, 0], (3 * y**2).sum(1))


def test_gradients_in_x_and_in_parameters():
    """d log p/dx is the score at t_min; parameters by finite differences."""
    target, process = mixture(2), sk.VP()
    law, x = at_start(target, process, 3)
    x = x.requires_grad_()
    found = sk.log_prob(
        target.denoiser(process), x, prior=target.marginal(process, 1.0), rtol=1e-6, atol=1e-6
    )
    (grad,) = torch.autograd.grad(found.value.sum(), x)
    torch.testing.assert_close(grad, law.score(sk.VP())(x.detach(), 0.0), atol=1e-3, rtol=1e-3)

    gain = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)

    def value(gain, gradient=None):
        model = sk.Denoiser(lambda x, t: torch.tanh(x * gain), process, predicts="x0", data_std=0.7)
        data = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
        return sk.log_prob(model, data, rtol=1e-8, atol=1e-8, t_min=0.1, gradient=gradient).value.sum()

    (slope,) = torch.autograd.grad(value(gain, "backprop"), gain)
    h = 1e-4
    with torch.no_grad():
        assert not value(gain).requires_grad
        expected = (value(gain + h) - value(gain - h)) / (2 * h)
    assert float(slope) == pytest.approx(float(expected), rel=1e-4)


def test_float32_networks_are_called_in_float32():
    target, process = mixture(2), sk.VP()
    exact, seen = target.denoiser(process), set()

    def net(x, t):
        seen.update((x.dtype, t.dtype))
        return exact.eps(x, t)

    _, x = at_start(target, process, 4)
    model = sk.Denoiser(net, process, data_std=target.data_std)
    found = sk.log_prob(model, x.float(), prior=target.marginal(process, 1.0), t_min=1e-3)
    assert seen == {torch.float32}
    assert found.value.dtype == torch.float64
    expected = target.marginal(process, 1e-3).log_prob(x)
    torch.testing.assert_close(found.value, expected, atol=2e-3, rtol=0)
    with torch.inference_mode():
        again = sk.log_prob(model, x.float(), prior=target.marginal(process, 1.0), t_min=1e-3)
    torch.testing.assert_close(again.value, found.value)


def test_laws_that_know_their_density():
    target = mixture(2)
    x = target.sample(3, seed=0)
    found = sk.log_prob(target, x)
    torch.testing.assert_close(found.value, target.log_prob(x.double()))
    assert found.nfe == 0


def test_errors():
    target, process = mixture(2), sk.VP()
    model, x = target.denoiser(process), torch.zeros(2, 2)

    def quiet(x, t):
        return x.detach()

    with pytest.raises(sk.SdekitError, match=r"no derivative in x.*no_grad"):
        sk.log_prob(sk.Denoiser(quiet, process, data_std=1.0), x)
    with pytest.raises(sk.SdekitError, match="Nearest: 'hutchinson'"):
        sk.log_prob(model, x, trace="hutchison")
    with pytest.raises(sk.SdekitError, match="law of probes"):
        sk.log_prob(model, x, law="cauchy")
    with pytest.raises(sk.SdekitError, match="unknown end"):
        sk.log_prob(model, x, end="t_max")
    with pytest.raises(TypeError, match="prior must have log_prob"):
        sk.log_prob(model, x, prior=lambda x: x)
    with pytest.raises(TypeError, match="takes a Denoiser"):
        sk.log_prob(torch.nn.Linear(2, 2), x)
    with pytest.raises(ValueError, match="t_min must be below t_max"):
        sk.log_prob(model, x, t_min=1.5)
    with pytest.raises(sk.SdekitError, match="NaN"):
        sk.log_prob(model, x * math.nan)
    with pytest.raises(sk.SdekitError, match="one log-density for each sample"):
        sk.log_prob(model, x, prior=torch.distributions.Normal(0.0, 1.0), rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match="confidence"):
        sk.log_prob(target, x).interval(1.5)
