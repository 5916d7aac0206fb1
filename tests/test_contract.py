"""The public names, their signatures, packages that are functions, and what `import sdekit` leaves alone."""

from __future__ import annotations

import inspect
import json
import operator
import subprocess
import sys
import textwrap

import pytest
import torch

import sdekit as sk
from sdekit.samplers.registry import SAMPLERS


def words(text: str) -> list[str]:
    return text.split()


NAMES = words("""
SDE ODE Noise Philox TorchNoise Recorded Solution Status SdekitError Plan Grid
VP SubVP VE Cosine EDM RectifiedFlow DiscreteVP GaussianDiffusion
LinearSDE OrnsteinUhlenbeck BrownianMotion GeometricBrownian Langevin
reverse probability_flow Denoiser pilot numpy_score Gaussian GaussianMixture Empirical
sample solve plan samplers solvers certify Certificate certify_monte_carlo
encode decode roundtrip RoundTrip interpolate log_prob LogProb likelihood losses ncsn fit nets
certify_response certify_order certify_density optimize_grid calibrate metrics check Verdict estimate
Adjoint BrownianTree Event CIR CriticallyDampedLangevin DoubleWell Heston Lorenz63 UnderdampedLangevin
fit_energy parzen sgld psgld sghmc scales_of Energy curl compiled ensemble Ensemble
""")

SAMPLER_NAMES = words("""
kernel-quadrature trig-adams gaussian-split euler-maruyama reverse-diffusion ancestral ddpm ddim euler heun
edm-stochastic kdpm2 kdpm2-ancestral lms ipndm pndm deis dpm-2 dpm-3 dpmpp-2s dpmpp-2m dpmpp-3m sde-dpmpp-2m
sde-dpmpp-3m unipc-2 unipc-3 exponential-adams sa-solver er-sde seeds restart annealed-langevin pc
""")

#: name -> parameters in order; those after "*" are keywords.
SIGNATURES = {
    "sample": "model shape * sampler steps nfe grid end eta seed noise first_id x_init batch_size dtype"
    " device save progress callback backend throw gradient parallel tolerance compile",
    "solve": "system x0 span * solver steps dt rtol atol save_at seed noise first_id progress callback"
    " gradient backend throw",
    "compiled": "drift diffusion * dim noise_type sde_type noise_dim t_min t_max",
    "ensemble": "system x0 span * paths solver steps dt save_at quantiles passage seed noise first_id"
    " progress throw",
    "estimate": "functional system x0 span * solver method steps samples tolerance save_at seed confidence"
    " batch_size",
    "plan": "sampler process * steps nfe grid end data_std data_spread eta predicts finite",
    "encode": "model x * sampler steps nfe grid batch_size dtype device save progress callback backend throw"
    " gradient parallel tolerance",
    "decode": "model z * sampler steps nfe grid end batch_size dtype device save progress callback backend"
    " throw gradient parallel tolerance",
    "roundtrip": "model x * sampler steps nfe grid batch_size dtype device",
    "interpolate": "z0 z1 weights method",
    "log_prob": "model x * prior t_min trace probes rtol atol seed",
    "certify": "sampler target process * steps nfe grid end eta predicts against model perturbation",
    "optimize_grid": "sampler target process * steps",
    "calibrate": "model * shape steps nfe end trajectories seed",
    "check": "samples target * alpha",
    "certify_monte_carlo": "sampler target process * steps nfe grid end eta samples blocks confidence seed",
    "Langevin": "score * log_prob",
    "numpy_score": "fn",
    "pilot": "model shape",
    "reverse": "process score eta",
    "probability_flow": "process score",
    "Denoiser": "net process predicts time data_std data_spread network_dtype",
    "Energy": "net",
    "curl": "score x t * probes seed",
    "scales_of": "data * rows seed",
    "sgld": "log_likelihood data x0 * log_prior schedule steps batch_size preconditioner centre biased"
    " burn_in save_every seed first_id",
    "psgld": "log_likelihood data x0 * log_prior schedule steps alpha damping correction adapt batch_size"
    " centre biased burn_in save_every seed first_id",
    "sghmc": "log_likelihood data x0 * log_prior schedule steps friction gradient_noise batch_size"
    " preconditioner centre biased burn_in save_every seed first_id",
    "fit": "net data process * predicts time loss labels drop_labels steps batch_size lr optimiser schedule"
    " warmup clip ema held_out check_every seed autocast compile progress callback checkpoint resume options",
    "fit_energy": "net data * steps batch_size lr warmup clip ema chain_steps step_size capacity reinit"
    " regularisation seed progress",
    "parzen.bandwidth": "data",
    "parzen.leave_one_out": "data h",
    "losses.explicit": "score x exact * t",
    "losses.implicit": "score x * t probes law seed draw",
    "losses.sliced": "score x * t probes law variance_reduced seed draw",
    "losses.finite_difference": "score x * t eps probes law seed draw",
    "losses.one_noise": "score x sigma * seed draw noise",
    "losses.multi_noise": "score x sigmas * weighting stratified seed draw noise",
    "losses.denoising": "model x0 * t weighting times stratified reweight seed draw noise",
    "losses.likelihood_weighted": "model x0 * times stratified seed draw noise",
    "losses.flow_matching": "net x0 x1 * t stratified seed draw",
    "losses.interpolant": "net x0 x1 path * predicts t stratified seed draw noise",
    "losses.sliced_sde": "score sde x0 span * times steps solver probes law variance_reduced seed draw",
    "losses.contrastive_divergence": "energy x negative * regularisation",
    "losses.training_times": "process batch * law stratified seed draw device",
    "losses.time_density": "process t law",
    "losses.log_normal_times": "process mean std",
    "losses.min_snr": "process gamma",
}
DEFAULTS = {
    "sample": {
        "sampler": "kernel-quadrature",
        "steps": None,
        "nfe": None,
        "grid": None,
        "end": "t_min",
        "eta": None,
        "seed": 0,
        "noise": None,
        "first_id": 0,
        "x_init": None,
        "batch_size": None,
        "dtype": None,
        "device": None,
        "save": None,
        "progress": False,
        "callback": None,
        "backend": "auto",
        "throw": True,
        "gradient": None,
        "parallel": None,
        "tolerance": None,
    },
    "solve": {
        "solver": "euler-maruyama",
        "steps": None,
        "dt": None,
        "rtol": None,
        "atol": None,
        "save_at": None,
        "seed": 0,
        "noise": None,
        "first_id": 0,
        "progress": False,
        "callback": None,
        "gradient": None,
        "backend": "auto",
        "throw": True,
    },
    "plan": {"steps": None, "nfe": None, "grid": None, "end": "t_min", "data_std": 1.0, "data_spread": None},
    "encode": {"sampler": "trig-adams", "save": None, "throw": True, "parallel": None, "tolerance": None},
    "decode": {"end": "t_min", "save": None, "throw": True, "parallel": None, "tolerance": None},
    "interpolate": {"method": "spherical"},
    "reverse": {"eta": 1.0},
    "Denoiser": {"predicts": "eps", "time": "t", "data_std": None, "data_spread": None},
}


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_there_and_documented(name):
    assert name in sk.__all__
    assert getattr(sk, name).__doc__


def test_nothing_is_exported_that_is_not_there():
    assert all(hasattr(sk, name) for name in sk.__all__)
    assert sk.__all__ == sorted(sk.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n))


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_the_declared_ones(name):
    parameters = inspect.signature(operator.attrgetter(name)(sk)).parameters
    positional, _, keywords = (part.split() for part in SIGNATURES[name].partition("*"))
    if not keywords:
        assert list(parameters)[: len(positional)] == positional
    else:
        free = [p for p, v in parameters.items() if v.kind not in (v.KEYWORD_ONLY, v.VAR_KEYWORD)]
        assert free == positional
        assert [p for p in parameters if p in keywords] == keywords
    for key, value in DEFAULTS.get(name, {}).items():
        assert parameters[key].default == value, key


def test_certify_has_the_declared_signature():
    from sdekit.certify.exact import certify

    parameters = inspect.signature(certify).parameters
    assert list(parameters)[:3] == ["sampler", "target", "process"]
    assert {"steps", "grid", "end", "against"} <= set(parameters)
    assert parameters["end"].default == "t_min"
    assert parameters["against"].default == "data"


def test_ncsn_has_its_calculators():
    assert all(getattr(sk.ncsn, name).__doc__ for name in words("levels steps NCSN SHIPPED max_distance"))
    assert list(inspect.signature(sk.ncsn.levels).parameters)[:2] == ["sigma_max", "sigma_min"]
    assert list(inspect.signature(sk.ncsn.steps).parameters)[:2] == ["sigmas", "steps_per_level"]


def test_processes_have_the_declared_methods_and_defaults():
    methods = words("alpha sigma half_log_snr t_of_half_log_snr drift diffusion marginal transition prior")
    spans = {
        "VP": (1e-3, 1),
        "SubVP": (1e-3, 1),
        "Cosine": (1e-3, 1),
        "RectifiedFlow": (1e-3, 1),
        "VE": (1e-5, 1),
    }
    spans["EDM"] = (0.002, 80.0)
    for name, span in spans.items():
        process = getattr(sk, name)()
        assert (process.t_min, process.t_max) == span
        assert all(callable(getattr(process, method)) for method in methods)
    assert (sk.VE().sigma_min, sk.VE().sigma_max) == (0.01, 50.0)
    assert (sk.VP().beta_min, sk.VP().beta_max) == (0.1, 20.0)


def test_targets_have_the_declared_methods():
    methods = words("sample log_prob score denoiser marginal posterior data_std data_spread")
    for cls in (sk.Gaussian, sk.GaussianMixture, sk.Empirical):
        assert all(hasattr(cls, method) for method in methods)


# -- tables ---------------------------------------------------------------------------------------------


def test_the_table_of_samplers():
    table = sk.samplers()
    names = [row.name for row in table]
    assert set(SAMPLER_NAMES) == set(SAMPLERS)
    assert set(names) == {*SAMPLERS, "rk45"}
    assert len(names) == len(set(names))
    for row in table:
        assert row.reference
        if row.name in SAMPLERS:
            cls = SAMPLERS[row.name]
            assert (row.cls, row.order, row.stochastic) == (cls.__name__, cls.order, cls.stochastic)
            assert getattr(sk.samplers, row.cls) is cls
    text = str(table)
    assert text.splitlines()[0].split()[:3] == ["name", "class", "order"]
    assert all(name in text for name in names)


def test_the_table_of_solvers():
    names = [row.name for row in sk.solvers()]
    assert {"euler-maruyama", "rk45", "torchdiffeq:dopri5", "scipy:RK45"} <= set(names)
    assert "euler-maruyama" in str(sk.solvers())


@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_every_sampler_has_a_name_a_class_and_a_page(name):
    cls = SAMPLERS[name]
    assert cls.name == name
    assert cls.__doc__
    assert cls.order >= 0.5
    assert cls() == cls()  # frozen options compare


def test_packages_are_functions_and_packages():
    """sk.samplers() lists, and sk.samplers.DDIM is a class; the same for certify and solvers."""
    target = sk.Gaussian([0.0, 0.0], variance=1.0)
    assert sk.certify("ddim", target, sk.VP(), steps=3).nfe == 3
    assert isinstance(sk.certify("ddim", target, sk.VP(), steps=3), sk.certify.Certificate)
    assert sk.samplers.DDIM().name == "ddim"
    import sdekit.certify
    import sdekit.samplers.registry
    import sdekit.solvers

    assert sdekit.certify is sk.certify
    assert sdekit.samplers is sk.samplers
    assert inspect.ismodule(sk.certify)
    assert sdekit.samplers.registry.SAMPLERS is SAMPLERS
    assert callable(sk.samplers)
    assert callable(sk.solvers)
    assert callable(sk.certify)
    from sdekit.certify import certify

    assert certify("ddim", target, sk.VP(), steps=3).w2 == sk.certify("ddim", target, sk.VP(), steps=3).w2


# -- import ---------------------------------------------------------------------------------------------


def python(code: str) -> str:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_import_leaves_optional_and_slow_packages_alone():
    """No numba, scipy, matplotlib, sklearn, torchdiffeq, tqdm, ..., and no warning."""
    out = python(
        """
        import json, sys
        import torch
        before = set(sys.modules)
        import sdekit
        new = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
        print(json.dumps(new))
        """
    )
    loaded = set(json.loads(out.splitlines()[-1]))
    forbidden = {
        *("numba", "llvmlite", "scipy", "matplotlib", "sklearn", "torchdiffeq", "tqdm", "IPython", "pandas"),
        *("safetensors", "typer", "rich", "hypothesis", "pytest", "torchvision", "triton"),
    }
    assert not loaded & forbidden


def test_a_first_run_loads_only_what_it_needs():
    """A deterministic sample on the CPU needs neither scipy nor matplotlib; a certificate no numba either."""
    out = python(
        """
        import json, sys
        import sdekit as sk
        before = set(sys.modules)
        target = sk.Gaussian([0.0, 0.0], variance=1.0)
        sk.certify("ddim", target, sk.VP(), steps=3)
        sk.plan("kernel-quadrature", sk.VP())
        new = {name.partition(".")[0] for name in set(sys.modules) - before}
        print(json.dumps(sorted(new)))
        """
    )
    assert not set(json.loads(out.splitlines()[-1])) & {
        "numba",
        "scipy",
        "matplotlib",
        "sklearn",
        "torchdiffeq",
    }


def test_the_version_is_the_package_s():
    from importlib.metadata import version

    assert version("sdekit") == sk.__version__


def test_the_example_of_the_package_docstring_runs():
    target = sk.GaussianMixture([0.3, 0.7], [[-2.0, 0.0], [1.0, 1.0]], 0.05)
    process = sk.VP()
    samples = sk.sample(target.denoiser(process), (1000, 2), steps=10).x
    assert samples.shape == (1000, 2)
    assert bool(torch.isfinite(samples).all())
    for line in ("target = sk.GaussianMixture", "process = sk.VP()", "samples = sk.sample("):
        assert line in sk.__doc__
