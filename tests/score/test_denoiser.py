"""Denoiser: every prediction from every network, time conventions, exact laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdekit as sk
from sdekit.errors import ArgumentOrderError, EndpointError, ShapeError
from sdekit.score.model import PREDICTS, ExactDenoiser
from tests.samplers.problems import PROCESSES, ddpm_table, gaussian, mixture, network, prediction

WANTED = ["x0", "eps", "score", "v", "velocity"]
TARGETS = {"gaussian": gaussian(3), "mixture": mixture()}


def exact(kind, target, law, x, t):
    """The prediction from the target's own score, by Tweedie."""
    t = torch.as_tensor(t, dtype=torch.float64)
    shape = (-1, *[1] * (x.ndim - 1))
    alpha, sigma, dalpha, dsigma = (
        f(t).reshape(shape) for f in (law.alpha, law.sigma, law.dalpha, law.dsigma)
    )
    score = target.score(law)(x, t)
    x0 = (x + sigma**2 * score) / alpha
    return prediction(kind, x0, x, alpha, sigma, dalpha, dsigma, 0.8)


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("process", PROCESSES)
def test_every_prediction_from_every_network(process, target, predicts, device):
    law, data = PROCESSES[process], TARGETS[target]
    model = network(data, law, predicts)
    x = law.prior((4, *data.event_shape), 1, dtype=torch.float64, device=device)
    span = law.finite_t_max - law.t_min
    for u in (0.05, 0.4, 0.9):
        t = law.t_min + u * span
        for wanted in WANTED:
            found = getattr(model, wanted)(x, t)
            expected = exact(wanted, data, law, x, t)
            torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7 * float(expected.abs().max()))


@given(
    process=st.sampled_from(list(PROCESSES)),
    predicts=st.sampled_from(list(PREDICTS)),
    wanted=st.sampled_from(WANTED),
    b=st.integers(1, 5),
)
def test_a_time_for_each_row(process, predicts, wanted, b):
    law, data = PROCESSES[process], TARGETS["mixture"]
    model = network(data, law, predicts)
    x = law.prior((b, 2), 1, dtype=torch.float64)
    t = torch.linspace(float(law.t_min), float(law.finite_t_max), b + 2, dtype=torch.float64)[1:-1]
    rows = model.predict(wanted, x, t)
    for i in range(b):
        alone = model.predict(wanted, x[i : i + 1], float(t[i]))
        torch.testing.assert_close(rows[i : i + 1], alone, rtol=1e-9, atol=1e-9 * float(alone.abs().max()))
    flat = model.predict(wanted, x, t[0])
    torch.testing.assert_close(flat, model.predict(wanted, x, float(t[0])))


@pytest.mark.parametrize("state", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("wanted", WANTED)
def test_predictions_keep_dtype_and_shape(wanted, state, device):
    for event in ((3,), (2, 4), (3, 4, 4)):
        data = sk.Gaussian(torch.zeros(event, dtype=torch.float64), variance=0.5)
        x = torch.ones((2, *event), dtype=state, device=device)
        for model in (data.denoiser(sk.VP()), network(data, sk.VP(), "eps")):
            for t in (0.5, torch.tensor(0.5), torch.tensor([0.5, 0.6])):
                out = getattr(model, wanted)(x, t)
                assert (out.dtype, out.shape, out.device.type) == (state, x.shape, device.type)


def seen_times(process, **options):
    seen = []

    def net(x, t):
        seen.append(t)
        return 0.3 * x

    model = sk.Denoiser(net, process, data_std=1.0, **options)
    return model, seen


def test_time_conventions():
    x = torch.zeros(3, 2, dtype=torch.float64)
    for time, value in (("t", 0.25), ("index", 0.25 * 999), ("sigma", float(sk.VP().sigma(0.25)))):
        model, seen = seen_times(sk.VP(), time=time)
        model.eps(x, 0.25)
        torch.testing.assert_close(seen[0], torch.full((3,), value, dtype=torch.float64))
    model, seen = seen_times(sk.VP(), time=lambda t: 1000 * t + 1)
    model.eps(x, torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
    torch.testing.assert_close(seen[0], torch.tensor([101.0, 201.0, 301.0], dtype=torch.float64))


def test_the_index_of_a_discrete_table_is_its_position():
    """t = k + 1 is alphas_cumprod[k]; a network trained on k gets k."""
    table = ddpm_table(100)
    model, seen = seen_times(table, time="index")
    model.eps(torch.zeros(2, 2), 37.0)
    assert seen[0].tolist() == [36.0, 36.0]
    assert float(table.alpha(37.0)) ** 2 == pytest.approx(table.alphas_cumprod[36], rel=1e-12)


def test_edm_preconditioning_is_table_1():
    """c_in, c_noise, c_skip, c_out of Karras et al. 2022, in z = x / alpha and rho = sigma / alpha."""
    s, inputs = 0.5, []

    def net(x, t):
        inputs.append((x, t))
        return torch.sin(x)

    for law in (sk.EDM(), sk.VP()):
        inputs.clear()
        t = 0.3
        model = sk.Denoiser(net, law, predicts="edm", data_std=s)
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        alpha, sigma = float(law.alpha(t)), float(law.sigma(t))
        z, rho = x / alpha, sigma / alpha
        size = math.hypot(rho, s)
        d = s**2 / size**2 * z + rho * s / size * torch.sin(z / size)
        torch.testing.assert_close(model.x0(x, t), d, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(inputs[0][0], z / size, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(inputs[0][1], torch.full((4,), math.log(rho) / 4, dtype=torch.float64))


def test_the_network_is_called_once_for_each_prediction():
    model, seen = seen_times(sk.VP())
    for wanted in WANTED:
        getattr(model, wanted)(torch.zeros(2, 2), 0.5)
    assert len(seen) == len(WANTED)


@pytest.mark.parametrize("process", PROCESSES)
def test_exact_denoisers_at_both_ends(process, device):
    """At sigma = 0 the denoiser is the identity, at alpha = 0 the mean of the data."""
    law = PROCESSES[process]
    for data in TARGETS.values():
        model = data.denoiser(law)
        assert isinstance(model, ExactDenoiser)
        x = torch.randn(4, *data.event_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        x = x.to(device)
        if float(law.sigma(0.0)) == 0:
            torch.testing.assert_close(model.x0(x, 0.0), x)
            with pytest.raises(EndpointError, match="Next"):
                model.eps(x, 0.0)
        if float(law.alpha(law.t_max)) == 0:
            mean = data.mean if isinstance(data, sk.Gaussian) else data.weights @ data.means
            torch.testing.assert_close(model.x0(x, law.t_max), mean.to(device).expand(x.shape))
            torch.testing.assert_close(model.eps(x, law.t_max), x / float(law.sigma(law.t_max)))


def test_a_denoiser_is_a_score_for_solve():
    data, law = TARGETS["gaussian"], sk.VP()
    model = data.denoiser(law)
    x = torch.randn(3, 3, dtype=torch.float64)
    t = torch.tensor(0.4, dtype=torch.float64)
    torch.testing.assert_close(model.score(x, t), data.score(law)(x, t), rtol=1e-9, atol=1e-9)
    reverse = sk.reverse(law, model)
    expected = law.drift(x, t) - law.diffusion(x, t) ** 2 * data.score(law)(x, t)
    torch.testing.assert_close(reverse.drift(x, t), expected, rtol=1e-9, atol=1e-9)


def test_predictions_are_differentiable():
    data = TARGETS["mixture"]
    for model in (data.denoiser(sk.VP()), network(data, sk.VP(), "v")):
        x = torch.randn(
            3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        ).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, m=model: m.score(x, 0.3), x)


def test_numpy_times_and_wrong_times():
    model, seen = seen_times(sk.VP())
    model.eps(torch.zeros(2, 2), np.float64(0.5))
    assert seen[0].tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\].*Likely cause"):
        model.eps(torch.zeros(2, 2), 7.0)
    with pytest.raises(ValueError, match=r"t must lie in"):
        model.eps(torch.zeros(2, 2), -0.5)


def test_unknown_kinds_and_shapes_are_refused():
    model = TARGETS["gaussian"].denoiser(sk.VP())
    with pytest.raises(KeyError, match=r"unknown prediction 'xo'.*'x0'"):
        model.predict("xo", torch.zeros(2, 3), 0.5)
    with pytest.raises(ShapeError, match=r"x must have shape \(B, 3\).*got \(2, 4\).*Next"):
        model.x0(torch.zeros(2, 4), 0.5)
    with pytest.raises(ArgumentOrderError, match="Next: swap"):
        sk.Denoiser(lambda time, x: x, sk.VP())


def test_a_denoiser_prints_what_it_is():
    class Net(torch.nn.Module):
        def forward(self, x, t):
            return x

    assert repr(sk.Denoiser(Net(), sk.VP(), predicts="v", data_std=0.5)) == (
        "Denoiser(Net, VP(beta_min=0.1, beta_max=20.0), predicts='v', data_std=0.5)"
    )
    assert "Gaussian" in repr(TARGETS["gaussian"].denoiser(sk.VP()))


def test_known_statistics_of_the_data():
    model = sk.Denoiser(lambda x, t: x, sk.VP(), data_std=0.5)
    assert (model.data_std, model.data_spread) == (0.5, 0.5)
    model = sk.Denoiser(lambda x, t: x, sk.VP(), data_std=0.5, data_spread=2.0)
    assert (model.data_std, model.data_spread) == (0.5, 2.0)
    exact_model = gaussian(3).denoiser(sk.VP())
    assert exact_model.data_std == gaussian(3).data_std
    assert exact_model.data_spread == gaussian(3).data_spread


def test_a_network_that_changes_its_input_is_refused() -> None:
    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x.mul_(0.5)

    x_init = torch.ones(4, 2)
    with pytest.raises(ValueError, match=r"changed its input x in place.*Likely cause.*Next: .*clone"):
        sk.sample(sk.Denoiser(net, sk.VP(), data_std=1.0), (4, 2), steps=3, x_init=x_init)
