"""Bad input to `sample` and `plan`: what was expected, what came, the likely cause, the next action."""

from __future__ import annotations

import math

import pytest
import torch

import sdekit as sk
from sdekit import errors
from tests.samplers.problems import NAMES, gaussian, smooth_network

VP = sk.VP()
MODEL = gaussian(3).denoiser(VP)


def net(output):
    return sk.Denoiser(output, VP, predicts="eps", data_std=1.0)


def run(model=MODEL, shape=(2, 3), **options):
    return sk.sample(model, shape, **{"steps": 3, **options})


CASES = {
    # name: (call, type, words)
    "unknown sampler": (
        lambda: run(sampler="dmim"),
        KeyError,
        ["unknown sampler 'dmim'", "Nearest: 'ddim'", "Known: ", *NAMES, "rk45"],
    ),
    "unknown sampler in plan": (lambda: sk.plan("eulr", VP), KeyError, ["unknown sampler", "'euler'"]),
    "sampler class": (
        lambda: run(sampler=sk.samplers.DDIM),
        TypeError,
        ["must be a name or a sampler object", "DDIM", "Next"],
    ),
    "steps = 0": (lambda: run(steps=0), ValueError, ["steps must be a whole number >= 1", "got 0"]),
    "steps < 0": (lambda: run(steps=-2), ValueError, ["steps must be", "got -2"]),
    "steps = 2.5": (lambda: run(steps=2.5), ValueError, ["steps must be a whole number", "2.5"]),
    "steps = True": (lambda: run(steps=True), ValueError, ["steps must be a whole number", "True"]),
    "nfe = 0": (lambda: run(steps=None, nfe=0), ValueError, ["nfe must be", "got 0"]),
    "nfe too small": (
        lambda: run(steps=None, nfe=1, sampler="heun"),
        ValueError,
        ["'heun' needs 2 evaluations for one interval", "nfe = 1", "Next: nfe >= 2"],
    ),
    "steps and nfe": (lambda: run(nfe=3), ValueError, ["steps or nfe, not both"]),
    "steps against a grid": (
        lambda: run(grid=[1.0, 0.5, 0.1]),
        ValueError,
        ["steps = 3", "2 intervals", "Next: leave steps out"],
    ),
    "steps against a grid, clean": (
        lambda: run(grid=[1.0, 0.5, 0.1], end="clean", steps=2),
        ValueError,
        ["3 intervals (the clean node included)"],
    ),
    "reversed grid": (
        lambda: run(grid=[0.001, 0.5, 1.0], steps=None),
        ValueError,
        [
            "decrease strictly, from noise to data",
            "t[0] = 0.001",
            "Likely cause: a grid in forward order",
            "Next",
        ],
    ),
    "unknown grid": (lambda: run(grid="karas"), KeyError, ["unknown grid 'karas'", "'karras'"]),
    "negative time": (lambda: run(grid=[1.0, -0.5], steps=None), ValueError, ["finite and >= 0", "-0.5"]),
    "time beyond the process": (
        lambda: run(grid=[50.0, 0.5], steps=None),
        ValueError,
        ["50", "t_max = 1", "VP(beta_min=0.1, beta_max=20.0)"],
    ),
    "unknown end": (lambda: run(end="tmin"), ValueError, ["'t_min' or 'clean'", "'tmin'"]),
    "no eta": (
        lambda: run(eta=1.0),
        ValueError,
        ["'kernel-quadrature' has no eta", "eta = 0", "Next: 'gaussian-split', 'ddim' or"],
    ),
    "eta = 0 for what only has 1": (
        lambda: run(sampler="ddpm", eta=0.0),
        ValueError,
        ["'ddpm' has no eta", "runs at eta = 1"],
    ),
    "negative eta": (
        lambda: run(sampler="ddim", eta=-1.0),
        ValueError,
        ["eta must be finite and >= 0", "-1"],
    ),
    "nan eta": (lambda: run(sampler="ddim", eta=math.nan), ValueError, ["eta must be finite", "nan"]),
    "too much eta": (
        lambda: run(sampler="ddim", eta=3.0),
        ValueError,
        ["eta = 3", "more noise than step", "Next: eta <= "],
    ),
    "plan with other steps": (
        lambda: run(sampler=sk.plan("ddim", VP)),
        ValueError,
        ["a Plan holds its own steps", "pass it alone"],
    ),
    "plan of another process": (
        lambda: run(sampler=sk.plan("ddim", sk.VE()), steps=None),
        ValueError,
        ["made for VE(sigma_min=0.01, sigma_max=50.0)", "VP(beta_min=0.1", "Next: sdekit.plan("],
    ),
    "plan of a nearby process": (
        lambda: run(sampler=sk.plan("ddim", sk.VP(0.1, 20.1)), steps=None),
        ValueError,
        ["made for VP(beta_min=0.1, beta_max=20.1)", "Next"],
    ),
    "plan for rk45": (lambda: sk.plan("rk45", VP), KeyError, ["'rk45' is adaptive", "no plan", "Next"]),
    "rk45 with steps": (
        lambda: run(sampler="rk45"),
        ValueError,
        ["'rk45' chooses its own steps", "Next: sdekit.solve(sdekit.probability_flow"],
    ),
    "rk45 with tiles": (
        lambda: run(sampler="rk45", steps=None, batch_size=4),
        ValueError,
        ["batch_size", "do not apply", "Next"],
    ),
    "rk45 with eta": (lambda: run(sampler="rk45", steps=None, eta=1.0), ValueError, ["eta = 1.0", "Next"]),
    "rk45 to an unknown end": (
        lambda: run(sampler="rk45", steps=None, end="x"),
        ValueError,
        ["'t_min' or 'clean'"],
    ),
    "process that is no diffusion": (
        lambda: sk.plan("ddim", sk.BrownianMotion()),
        TypeError,
        ["must be a GaussianDiffusion", "got BrownianMotion", "Next", "reverse"],
    ),
    "data_std = 0": (
        lambda: sk.plan("ddim", VP, data_std=0.0),
        ValueError,
        ["data_std must be", "> 0", "0.0"],
    ),
    "data_std of a model": (
        lambda: sk.Denoiser(lambda x, t: x, VP, data_std=math.nan),
        ValueError,
        ["data_std must be finite and > 0", "nan"],
    ),
    "integer x_init": (
        lambda: run(x_init=torch.zeros(2, 3, dtype=torch.int64)),
        errors.ShapeError,
        ["x_init must be floating", "torch.int64", "Likely cause", "Next: x_init.float()"],
    ),
    "x_init of another shape": (
        lambda: run(x_init=torch.zeros(3, 3)),
        errors.ShapeError,
        ["x_init must have shape (2, 3)", "got (3, 3)"],
    ),
    "nan in x_init": (
        lambda: run(x_init=torch.tensor([[0.0, 0.0, 0.0], [1.0, math.nan, 0.0]])),
        errors.NonFiniteError,
        ["x_init holds NaN or infinity in 1 of 2", "sample 1", "Likely cause", "Next"],
    ),
    "swapped (t, x)": (
        lambda: net(lambda t, x: x),
        errors.ArgumentOrderError,
        ["(x, t), state first", "'t'", "Likely cause", "Next: swap the parameters", "lambda x, t"],
    ),
    "swapped (t, x) in a module": (
        lambda: net(type("Net", (torch.nn.Module,), {"forward": lambda self, t, x: x})()),
        errors.ArgumentOrderError,
        ["(x, t), state first"],
    ),
    "network of another shape": (
        lambda: run(net(lambda x, t: x.sum(dim=1))),
        errors.ShapeError,
        ["net must return shape (2, 3)", "got (2,)", "Likely cause", "Next"],
    ),
    "network that broadcasts": (
        lambda: run(net(lambda x, t: x[:1])),
        errors.ShapeError,
        ["shape (2, 3)", "got (1, 3)"],
    ),
    "network that predicts variances": (
        lambda: run(net(lambda x, t: torch.cat([x, x], dim=1))),
        errors.ShapeError,
        ["got (2, 6)", "twice the channels", "keep the first half"],
    ),
    "network that returns a tuple": (
        lambda: run(net(lambda x, t: (x, t))),
        errors.ShapeError,
        ["must return a tensor of shape (2, 3)", "got tuple", "Likely cause", "Next: wrap it"],
    ),
    "network that returns integers": (
        lambda: run(net(lambda x, t: x.long())),
        errors.ShapeError,
        ["floating", "torch.int64", "Likely cause", "Next"],
    ),
    "model that is a network": (
        lambda: run(lambda x, t: x),
        TypeError,
        ["must be a Denoiser", "got function", "Next: sdekit.Denoiser(net, process"],
    ),
    "model that is a target": (
        lambda: run(gaussian(3)),
        TypeError,
        ["got Gaussian", "target.denoiser(process)"],
    ),
    "shape of another event": (
        lambda: run(shape=(2, 4)),
        errors.ShapeError,
        ["shape must be (n, 3)", "got (2, 4)", "Next"],
    ),
    "negative shape": (lambda: run(shape=(-1, 3)), errors.ShapeError, ["whole numbers >= 0", "(-1, 3)"]),
    "fractional shape": (lambda: run(shape=(2.0, 3)), errors.ShapeError, ["whole numbers >= 0", "(2.0, 3)"]),
    "no shape": (lambda: run(shape=()), errors.ShapeError, ["(n, *event)", "()"]),
    "integer dtype": (lambda: run(dtype=torch.int32), errors.ShapeError, ["floating", "torch.int32"]),
    "dtype as text": (lambda: run(dtype="float32"), errors.ShapeError, ["torch.float32", "'float32'"]),
    "callback that is no function": (lambda: run(callback=5), TypeError, ["callback must be a", "got 5"]),
    "tolerance as text": (
        lambda: run(parallel=4, tolerance="a"),
        ValueError,
        ["tolerance must be finite and >= 0", "'a'"],
    ),
    "eta as text": (lambda: run(sampler="ddim", eta="a"), ValueError, ["eta must be finite", "'a'"]),
    "batch_size = 0": (lambda: run(batch_size=0), ValueError, ["batch_size must be", "got 0"]),
    "negative first_id": (lambda: run(first_id=-1), ValueError, ["first_id must be", ">= 0", "got -1"]),
    "unknown save": (lambda: run(save="last"), ValueError, ["save must be None or 'all'", "'last'"]),
    "unknown backend": (
        lambda: run(backend="cuda"),
        errors.UnknownNameError,
        ["unknown backend 'cuda'", "auto, eager, numba, triton"],
    ),
    "unknown gradient": (lambda: run(gradient="adjoint"), ValueError, ["'backprop'", "'adjoint'"]),
    "seed that is no integer": (lambda: run(seed=1.5), TypeError, ["seed must be an integer", "1.5", "Next"]),
    "noise that is no Noise": (
        lambda: run(noise=torch.Generator()),
        TypeError,
        ["noise must be a Noise", "got Generator", "Next", "TorchNoise"],
    ),
    "unknown prediction": (
        lambda: sk.Denoiser(lambda x, t: x, VP, predicts="epsilon"),
        KeyError,
        ["unknown prediction 'epsilon'", "Nearest: 'eps'"],
    ),
    "unknown time": (
        lambda: sk.Denoiser(lambda x, t: x, VP, time="sigm"),
        KeyError,
        ["unknown time convention 'sigm'", "Nearest: 'sigma'"],
    ),
    "edm without data_std": (
        lambda: sk.Denoiser(lambda x, t: x, VP, predicts="edm"),
        ValueError,
        ["'edm' needs data_std", "c_skip"],
    ),
    "spread without std": (
        lambda: sk.Denoiser(lambda x, t: x, VP, data_spread=1.0),
        ValueError,
        ["data_spread was given without data_std", "Next"],
    ),
    "net that is no callable": (lambda: sk.Denoiser(3, VP), TypeError, ["callable as net(x, t)", "got int"]),
    "process of a model": (
        lambda: sk.Denoiser(lambda x, t: x, sk.BrownianMotion()),
        TypeError,
        ["must be a GaussianDiffusion", "Next"],
    ),
    "unknown variance": (
        lambda: sk.samplers.Ancestral(variance="posteriour"),
        KeyError,
        ["unknown variance", "Nearest: 'posterior'"],
    ),
    "snr = 0": (
        lambda: sk.samplers.PredictorCorrector(snr=0.0),
        ValueError,
        ["snr must be finite and > 0", "0.0"],
    ),
    "no corrections": (
        lambda: sk.samplers.PredictorCorrector(corrections=0),
        ValueError,
        ["corrections must be a whole number >= 1", "got 0"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_in_words(case):
    call, kind, words = CASES[case]
    with pytest.raises(kind) as error:
        call()
    for word in words:
        assert word in str(error.value), str(error.value)


def test_every_error_is_an_sdekit_error_or_a_plain_value_error():
    for call, *_ in CASES.values():
        with pytest.raises((errors.SdekitError, ValueError, TypeError)):
            call()


def test_unknown_names_of_every_sampler_find_it():
    """One letter off: the nearest names hold the right one."""
    for name in NAMES:
        with pytest.raises(KeyError) as error:
            sk.plan(name[:-1] + "x", VP)
        assert repr(name) in str(error.value).partition("Known")[0]


def test_bad_arguments_are_refused_before_the_network_is_called():
    calls = []

    def net(x, t):
        calls.append(1)
        return x

    model = sk.Denoiser(net, VP, data_std=1.0)
    for options in (
        {"steps": 0},
        {"sampler": "nope"},
        {"end": "nope"},
        {"grid": [0.1, 0.5]},
        {"batch_size": 0},
    ):
        with pytest.raises((ValueError, KeyError)):
            sk.sample(model, (2, 3), **options)
    assert calls == []


def test_a_network_that_fails_passes_its_own_error_on():
    def net(x, t):
        raise ZeroDivisionError("inside")

    with pytest.raises(ZeroDivisionError, match="inside"):
        sk.sample(sk.Denoiser(net, VP, data_std=1.0), (2, 3))


def test_a_good_call_stays_good():
    assert run(smooth_network(VP)).ok


def test_a_class_in_place_of_an_object_and_a_name_in_capitals():
    with pytest.raises(TypeError, match=r"class DDIM\. Next: DDIM\(\)"):
        sk.plan(sk.samplers.DDIM, sk.VP())
    with pytest.raises(sk.SdekitError, match="Nearest: 'ddim'"):
        sk.plan("DDIM", sk.VP())
