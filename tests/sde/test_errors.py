"""Bad input: every message says what was expected, what came, and what to do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sdekit.errors import ArgumentOrderError, DirectionError, ShapeError, UnknownNameError
from sdekit.sde import EDM, ODE, SDE, VE, VP, Cosine, DiscreteVP, GaussianDiffusion, RectifiedFlow, SubVP

from .processes import ALL, F64, IDS


def still(x, t):
    return 0.0 * x


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: SDE(f, still), r"drift must take \(x, t\), state first, but its first parameter is named"),
        (lambda f: SDE(still, f), r"diffusion must take \(x, t\).*lambda x, t: fn\(t, x\)"),
        (ODE, r"velocity must take \(x, t\)"),
        (lambda f: type("Mine", (ODE,), {"drift": lambda self, t, x: x}), r"Mine.drift must take \(x, t\)"),
        (lambda f: type("Mine", (SDE,), {"diffusion": lambda self, time, x: x}), r"Mine.diffusion must take"),
    ],
)
def test_swapped_arguments(make, message):
    with pytest.raises(ArgumentOrderError, match=message):
        make(lambda t, x: x)


def test_systems():
    cases = [
        (lambda: SDE(still, still, noise_type="aditive"), UnknownNameError, "'aditive'. Nearest: 'additive'"),
        (lambda: SDE(still, still, sde_type="itô"), UnknownNameError, "unknown sde_type 'itô'.*Known: ito"),
        (lambda: SDE(still, still, noise_type="general"), ValueError, "needs noise_dim, the number m of"),
        (lambda: SDE(still, still, noise_dim=0), ValueError, "noise_dim must be a whole number >= 1, got 0"),
        (lambda: SDE(still, still, noise_dim=1.5), ValueError, "noise_dim must be a whole number"),
        (lambda: SDE(still), TypeError, "diffusion is missing. Next"),
        (lambda: SDE(diffusion=still), TypeError, "drift is missing"),
        (lambda: SDE(still, 0.3), TypeError, r"diffusion must be a callable \(x, t\), got float.*full_like"),
        (lambda: SDE(still, still, t_min=1.0, t_max=0.5), ValueError, "t_min < t_max.*t_min=1.0, t_max=0.5"),
        (lambda: ODE(), TypeError, "an ODE needs its velocity"),
        (lambda: ODE(3), TypeError, "velocity must be a callable"),
        (lambda: ODE(still, t_min=math.nan), ValueError, "t_min finite"),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()


def test_outputs_of_the_wrong_shape():
    x = torch.ones(4, 3)
    wide = SDE(lambda x, t: x.sum(1), still)
    with pytest.raises(ShapeError, match=r"drift must return shape \(4, 3\), the shape of x, got \(4,\)"):
        wide.validate(x, 0.0)
    for kind, out, message in (
        (
            "diagonal",
            torch.ones(4, 3, 2),
            r"shape \(4, 3\) or what broadcasts to it.*got \(4, 3, 2\).*general",
        ),
        ("additive", torch.ones(2), r"got \(2,\)"),
        ("general", torch.ones(4, 3), r"shape \(4, 3, 5\), the rule for noise_type 'general', got \(4, 3\)"),
    ):
        sde = SDE(still, lambda x, t, out=out: out, noise_type=kind, noise_dim=5)
        with pytest.raises(ShapeError, match=message):
            sde.noise_field(x, 0.0)
    with pytest.raises(ShapeError, match=r"must return a tensor of shape.*got NoneType"):
        ODE(lambda x, t: None).validate(x, 0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VE(50.0, 0.01), r"sigma_min must be smaller than sigma_max.*swapped.*VE\(0.01, 50.0\)"),
        (lambda: VE(1.0, 1.0), "sigma_min must be smaller than sigma_max"),
        (lambda: EDM(80.0, 0.002), r"got sigma_min=80, sigma_max=0.002.*EDM\(0.002, 80.0\)"),
        (lambda: EDM(0.0, 80.0), "sigma_min must be finite and > 0, got 0"),
        (lambda: VE(-1.0, 3.0), "sigma_min must be finite and > 0, got -1"),
        (lambda: VE(0.1, math.inf), "sigma_max must be finite and > 0"),
        (lambda: VP(20.0, 0.1), r"beta_min must be smaller than beta_max.*VP\(0.1, 20.0\)"),
        (lambda: SubVP(20.0, 0.1), r"beta_min must be smaller.*SubVP\("),
        (lambda: VP(math.nan, 1.0), "beta_min must be finite and > 0, got nan"),
        (lambda: VP(t_min=1.0), r"t_min must lie in \[0, t_max = 1\), got 1"),
        (lambda: Cosine(t_min=-0.1), r"t_min must lie in \[0, t_max = 1\), got -0.1"),
        (
            lambda: DiscreteVP([0.9, 0.95]),
            r"must decrease strictly, but entry 1 is 0.95 after 0.9.*from_betas",
        ),
        (lambda: DiscreteVP([1.0, 0.5]), "strictly between 0 and 1, got 1 at index 0.*starts with alpha = 1"),
        (lambda: DiscreteVP([0.5, 0.0]), "got 0 at index 1.*zero terminal SNR; Cosine and RectifiedFlow"),
        (lambda: DiscreteVP([]), r"must have shape \(N,\), N >= 1, got \(0,\)"),
        (lambda: DiscreteVP(torch.ones(2, 2)), r"got \(2, 2\)"),
        (lambda: DiscreteVP("cosine"), "alphas_cumprod must be N numbers, got str"),
        (lambda: DiscreteVP([0.5, math.nan]), "got nan at index 1"),
        (lambda: DiscreteVP.from_betas([0.1, 1.0]), "strictly between 0 and 1, got 0 at index 1"),
    ],
)
def test_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("process", ALL, ids=IDS)
def test_times(process):
    x = torch.ones(2, 3, dtype=F64)
    for t in (-0.1 * process.t_max, math.nan, torch.tensor([0.5, -1.0], dtype=F64), np.float64(-0.5)):
        for call in (process.alpha, process.sigma, process.half_log_snr, lambda t: process.marginal(x, t)):
            with pytest.raises(ValueError, match=r"t must lie in \[0, .*Time runs from data \(t_min"):
                call(t)
    with pytest.raises(ShapeError, match=r"t must be floating, got dtype torch.int64.*step indices.*double"):
        process.alpha(torch.arange(1, 3))
    with pytest.raises(TypeError, match=r"t must be a number or a floating tensor, got str"):
        process.sigma("0.5")
    with pytest.raises(DirectionError, match=r"goes forward in time, from s to t >= s.*reverse"):
        process.transition(x, process.t_max, process.t_min)
    with pytest.raises(ShapeError, match=r"t must have shape \(\) or \(B,\) with B = 2 samples, got \(3,\)"):
        process.drift(x, torch.full((3,), 0.5 * process.t_max, dtype=F64))
    with pytest.raises(ShapeError, match=r"shape must be \(B, \*event\), got 16"):
        process.prior(16)
    with pytest.raises(ValueError, match=r"shape\[1\] must be a whole number >= 1, got 0"):
        process.prior((16, 0))


def test_a_step_index_is_recognised():
    with pytest.raises(ValueError, match=r"Likely cause: a step index where a time is meant"):
        VP().alpha(500.0)
    with pytest.raises(ValueError, match=r"Likely cause: a grid that overshoots"):
        VP().alpha(1.01)


@pytest.mark.parametrize("process", ALL, ids=IDS)
def test_inverses_refuse_what_no_time_has(process):
    low = float(process.half_log_snr(process.t_max))
    bad = [math.nan] if isinstance(process, EDM) else [math.nan, low - 5.0]
    for lam in bad:
        if math.isfinite(low) or math.isnan(lam):
            with pytest.raises(ValueError, match=r"half_log_snr must lie in .*No time of the process"):
                process.t_of_half_log_snr(lam)
    with pytest.raises(ValueError, match=r"rho must lie in"):
        process.t_of_rho(-1.0)


def test_alpha_zero():
    """Infinite drift and noise at alpha = 0 are an error that tells where to start, never a NaN."""
    x = torch.ones(2, 3)
    for process in (RectifiedFlow(), Cosine()):
        for call in (process.drift, process.diffusion):
            with pytest.raises(
                ValueError, match=r"infinite at t = 1, where alpha = 0. Next: start at t = 0.99"
            ):
                call(x, 1.0)
        assert torch.isfinite(process.drift(x, process.finite_t_max)).all()


def test_unfinished_process():
    class Half(GaussianDiffusion):
        def alpha(self, t):
            return 1.0 - t

    with pytest.raises(NotImplementedError, match=r"Half must define alpha\(t\) and sigma\(t\)"):
        Half().sigma(0.5)
