"""Laws by impulses: the exact certificate on our samplers, the algebra on boxes made by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdekit as sk
from sdekit.certify import ResidualError
from tests.samplers.problems import AFFINE, PROCESSES, gaussian

D = 3
TARGET = gaussian(D, rotated=True)
PARTS = ("law", "reference", "initial", "discretization", "score_error", "truncation")


def same(found, expected, atol=1e-10):
    for part in PARTS:
        for moment in ("mean", "std"):
            a, b = (getattr(getattr(c, part), moment) for c in (found, expected))
            torch.testing.assert_close(a, b, rtol=0, atol=atol, msg=lambda m, p=part: f"{p}: {m}")


def box(plan, target, process, **options):
    """The plan's own run, as a black box."""
    model = target.denoiser(process)
    options = {"dtype": torch.float64, **options}

    def run(n, noise):
        return sk.sample(model, (n, *target.event_shape), sampler=plan, noise=noise, **options)

    return run


# -- our samplers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", ["VP", "VE", "RectifiedFlow"])
@pytest.mark.parametrize("name", AFFINE)
def test_equals_the_certificate(name, process):
    process = PROCESSES[process]
    for end in ("t_min", "clean"):
        exact = sk.certify(name, TARGET, process, steps=5, end=end)
        nodes = exact.plan.nodes
        times = {
            "start_std": exact.plan.prior_std,
            "t_start": float(nodes[0].t),
            "t_end": float(nodes[-2 if end == "clean" else -1].t),
        }
        found = sk.certify_response(box(exact.plan, TARGET, process), TARGET, process, end=end, **times)
        same(found, exact)
        assert found.residual < 1e-10
        assert found.stochastic == exact.stochastic
        assert not found.frozen


def test_against_the_marginal_and_without_a_process():
    process = sk.VP()
    exact = sk.certify("ddpm", TARGET, process, steps=8, against="t_min")
    run = box(exact.plan, TARGET, process)
    same(sk.certify_response(run, TARGET, process, against="t_min"), exact)
    alone = sk.certify_response(run, TARGET)
    data = sk.certify("ddpm", TARGET, process, steps=8)
    assert alone.w2 == pytest.approx(data.w2, abs=1e-12)
    assert alone.initial.norm == alone.truncation.norm == 0
    torch.testing.assert_close(alone.discretization.std, data.error.std)
    with pytest.raises(ValueError, match="needs the process"):
        sk.certify_response(run, TARGET, against="t_min")


def test_draws_through_torch_are_the_same_law():
    process, plan = sk.VP(), sk.plan("ancestral", sk.VP(), steps=6)
    model = TARGET.denoiser(process)
    found = sk.certify_response(
        lambda n: sk.sample(model, (n, D), sampler=plan, noise=sk.TorchNoise(), dtype=torch.float64).x,
        TARGET,
        process,
    )
    same(found, sk.certify(plan, TARGET, process))


def test_images_keep_their_shape():
    process, target = sk.VP(), gaussian(12, event=(3, 2, 2))
    exact = sk.certify("ddpm", target, process, steps=4)
    found = sk.certify_response(box(exact.plan, target, process), target, process)
    same(found, exact)
    assert found.mean.shape == (3, 2, 2)


def test_tiles_of_a_batch_take_their_own_rows():
    process = sk.VP()
    exact = sk.certify("ddpm", TARGET, process, steps=4)
    same(sk.certify_response(box(exact.plan, TARGET, process, batch_size=4), TARGET, process), exact)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.float16, 0.05)])
def test_states_of_few_digits(dtype, limit):
    process = sk.VP()
    exact = sk.certify("ddpm", TARGET, process, steps=10)
    run = box(exact.plan, TARGET, process)

    def rounded(n):
        x = torch.randn(n, D, dtype=dtype).double()
        return sk.sample(
            TARGET.denoiser(process),
            (n, D),
            sampler=exact.plan,
            noise=sk.TorchNoise(),
            x_init=x,
            dtype=x.dtype,
        ).x.to(dtype)

    found = sk.certify_response(rounded, TARGET, process)
    assert found.dtype is dtype
    assert 0 < found.residual < limit
    assert found.w2 == pytest.approx(exact.w2, abs=limit)
    with pytest.raises(ResidualError):
        sk.certify_response(rounded, TARGET, process, tolerance=1e-12)
    assert sk.certify_response(run, TARGET, process).dtype is torch.float64


# -- boxes made by hand -----------------------------------------------------------------------------------


def every(value) -> torch.Tensor:
    return torch.full((D,), value, dtype=torch.float64)


def expect(found, base, std, atol=1e-12):
    """base, std: in the eigenbasis."""
    torch.testing.assert_close(found.law.mean, base, rtol=0, atol=atol)
    torch.testing.assert_close(found.law.std, std, rtol=0, atol=atol)


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=6), st.integers(3, 9), st.floats(-2, 2))
def test_any_affine_box(weights, batch, shift):
    """x = shift + sum_k B w_k g xi_k with B diagonal in the eigenbasis."""
    gain = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    weights = [w if abs(w) > 1e-3 else 1.0 for w in weights]

    def run(n):
        x = torch.full((n, D), shift, dtype=torch.float64)
        for w in weights:
            xi = torch.randn(n, D, dtype=torch.float64)
            x = x + w * TARGET.from_basis(gain * TARGET.to_basis(xi))
        return x

    found = sk.certify_response(run, TARGET, batch=batch)
    base = TARGET.to_basis(torch.full((D,), shift, dtype=torch.float64))
    expect(found, base, gain * math.sqrt(sum(w * w for w in weights)), atol=1e-10)
    assert found.draws == len(weights)
    assert found.stochastic == (len(weights) > 1)


F64 = {"dtype": torch.float64}
DRAWS = {
    "randn": lambda n: 2 * torch.randn(n, D, **F64) + 1,
    "randn of a generator": lambda n: 2 * torch.randn(n, D, generator=torch.Generator(), **F64) + 1,
    "randn_like": lambda n: 2 * torch.randn_like(torch.empty(n, D, **F64)) + 1,
    "out": lambda n: 2 * torch.randn(n, D, out=torch.empty(n, D, **F64)) + 1,
    "normal_": lambda n: torch.empty(n, D, **F64).normal_(1.0, 2.0),
    "init": lambda n: torch.nn.init.normal_(torch.empty(n, D, **F64), 1.0, 2.0),
    "new": lambda n: torch.ones(1, **F64).new_empty(n, D).normal_(mean=1.0, std=2.0),
    "normal of numbers": lambda n: torch.normal(1.0, 2.0, (n, D), **F64),
    "normal of tensors": lambda n: torch.normal(torch.ones(n, D, **F64), torch.full((n, D), 2.0, **F64)),
    "normal of a mean": lambda n: torch.normal(torch.ones(n, D, **F64), 2.0),
    "normal of a std": lambda n: torch.normal(1.0, torch.full((n, D), 2.0, **F64)),
    "normal, out": lambda n: torch.normal(torch.ones(n, D, **F64), 2.0, out=torch.empty(n, D, **F64)),
    "distribution": lambda n: torch.distributions.Normal(torch.ones(D, **F64), 2.0).sample((n,)),
    "rsample": lambda n: torch.distributions.Normal(torch.ones(n, D, **F64), 2.0).rsample(),
    "reshape": lambda n: 2 * torch.randn(n * D, **F64).reshape(n, D) + 1,
    "transpose": lambda n: 2 * torch.randn(D, n, **F64).T + 1,
    "axes of one": lambda n: 2 * torch.randn(1, n, 1, D, **F64).reshape(n, D) + 1,
    "inference mode": lambda n: torch.inference_mode()(torch.normal)(1.0, 2.0, (n, D), **F64),
}


@pytest.mark.parametrize("name", DRAWS)
def test_every_way_to_draw_a_normal(name):
    draw = DRAWS[name]
    found = sk.certify_response(lambda n: draw(n) + draw(n), TARGET)
    two = torch.full((D,), 2.0, dtype=torch.float64)
    # A fresh generator starts at one seed: its two draws are the same.
    std = two * 2 if name == "randn of a generator" else two * math.sqrt(2)
    expect(found, TARGET.to_basis(two), std)
    assert found.draws == (1 if name == "randn of a generator" else 2)


def test_half_precision_draws():
    found = sk.certify_response(lambda n: torch.randn(n, D, dtype=torch.float16).double(), TARGET)
    assert found.dtype is torch.float16
    expect(found, every(0.0), every(1.0), atol=2e-3)


SHAPES = {
    "draws first": lambda n: torch.randn(2, n, D, **F64).unbind(0),
    "draws second": lambda n: torch.randn(n, 2, D, **F64).unbind(1),
    "chunks": lambda n: torch.randn(2 * n, D, **F64).chunk(2),
    "sums of scalars": lambda n: torch.randn(n * 2 * D, **F64).reshape(n, 2, D).unbind(1),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("batch", [None, 3])
def test_many_normals_in_one_draw(name, batch):
    def run(n):
        a, b = SHAPES[name](n)
        return 3 * a + 4 * b

    found = sk.certify_response(run, TARGET, batch=batch)
    expect(found, every(0.0), every(5.0))
    assert found.draws == 2


def test_a_generator_set_back_repeats_its_draw():
    def run(n, reset=True):
        x = torch.zeros(n, D, dtype=torch.float64)
        generator = torch.Generator()
        for _ in range(4):
            if reset:
                generator.manual_seed(7)
            x = x + torch.randn(n, D, generator=generator, dtype=torch.float64)
        return x

    one = torch.ones(D, dtype=torch.float64)
    expect(sk.certify_response(run, TARGET), 0 * one, 4 * one)
    expect(sk.certify_response(lambda n: run(n, False), TARGET), 0 * one, 2 * one)

    def globally(n):
        torch.manual_seed(3)
        x = torch.randn(n, D, dtype=torch.float64)
        torch.manual_seed(3)
        return x + torch.randn(n, D, dtype=torch.float64)

    expect(sk.certify_response(globally, TARGET), 0 * one, 2 * one)

    def mixed(n):
        torch.manual_seed(3)
        x = torch.randn(n, D, dtype=torch.float64)
        torch.manual_seed(3)
        return x + torch.randn(n, 2, D, dtype=torch.float64).sum(1)

    with pytest.raises(sk.SdekitError, match="partly the same"):
        sk.certify_response(mixed, TARGET)


def test_a_noise_asked_twice_is_one_draw():
    def run(n, noise):
        like, ids = torch.empty(n, D, dtype=torch.float64), torch.arange(n)
        return noise.initial(like, ids) + sum(noise.normal(k, like, ids) for k in (0, 5, 0))

    one = torch.ones(D, dtype=torch.float64)
    found = sk.certify_response(run, TARGET)
    expect(found, 0 * one, math.sqrt(1 + 4 + 1) * one)
    assert found.draws == 3


def test_a_seed_drawn_by_torch_is_allowed():
    def run(n):
        generator = torch.Generator().manual_seed(int(torch.randint(0, 2**63 - 1, [])))
        return torch.randn(n, D, generator=generator, dtype=torch.float64)

    expect(sk.certify_response(run, TARGET), every(0.0), every(1.0))


def test_noise_drawn_sample_by_sample_is_run_one_by_one():
    def run(n):
        generators = [torch.Generator().manual_seed(i) for i in range(n)]
        draws = [[torch.randn(1, D, generator=g, dtype=torch.float64) for g in generators] for _ in range(3)]
        return sum(torch.cat(rows) for rows in draws)

    found = sk.certify_response(run, TARGET)
    expect(found, every(0.0), every(math.sqrt(3)))
    assert (found.batch, found.draws) == (1, 3)


def test_noise_shared_by_the_samples_is_that_of_each():
    shared = sk.certify_response(
        lambda n: torch.randn(n, D, dtype=torch.float64) + torch.randn(D, dtype=torch.float64), TARGET
    )
    expect(shared, every(0.0), every(math.sqrt(2)))
    assert shared.batch == 1


def test_runs_are_no_larger_than_the_batch():
    sizes = []

    def run(n):
        sizes.append(n)
        x = torch.zeros(n, D, dtype=torch.float64)
        for k in range(40):
            x = 0.9 * x + (1 + k) * torch.randn(n, D, dtype=torch.float64)
        return x

    whole = sk.certify_response(run, TARGET)
    assert max(sizes) == whole.batch == 42
    sizes.clear()
    parts = sk.certify_response(run, TARGET, batch=10)
    assert max(sizes) == parts.batch == 10
    torch.testing.assert_close(parts.law.std, whole.law.std)
    expected = math.sqrt(sum((0.9 ** (39 - k) * (1 + k)) ** 2 for k in range(40)))
    expect(whole, every(0.0), every(expected), atol=1e-10)


def test_generators_are_left_as_they_were():
    before = torch.get_rng_state()
    sk.certify_response(lambda n: torch.randn(n, D, dtype=torch.float64), TARGET)
    assert torch.equal(before, torch.get_rng_state())


def test_arrays_are_samples():
    found = sk.certify_response(
        lambda n: torch.randn(n, D, dtype=torch.float64).numpy(), TARGET, name="mine", nfe=7
    )
    assert (found.name, found.nfe) == ("mine", 7)
    assert "1 draws" in repr(found)


# -- the split --------------------------------------------------------------------------------------------


def test_start_in_other_units_and_elsewhere():
    """x = a start + xi_1, start = 5 xi_0 drawn second, between t = 0.8 and 0.1."""
    process, a = sk.VP(), 0.3
    c, m = TARGET.eigenvalues, TARGET.to_basis(TARGET.mean)

    def run(n):
        xi = torch.randn(n, D, dtype=torch.float64)
        return a * (5 * torch.randn(n, D, dtype=torch.float64)) + 0.2 * xi + 1

    found = sk.certify_response(run, TARGET, process, start=1, start_std=5.0, t_start=0.8, t_end=0.1)
    alpha, sigma = float(process.alpha(0.8)), float(process.sigma(0.8))
    base = TARGET.to_basis(torch.ones(D, dtype=torch.float64))
    marginal = torch.sqrt(a**2 * (alpha**2 * c + sigma**2) + 0.04)
    prior = every(math.sqrt(a**2 * 25 + 0.04))
    torch.testing.assert_close(found.initial.std, prior - marginal)
    torch.testing.assert_close(found.initial.mean, -a * alpha * m)
    alpha, sigma = float(process.alpha(0.1)), float(process.sigma(0.1))
    torch.testing.assert_close(found.discretization.std, marginal - torch.sqrt(alpha**2 * c + sigma**2))
    torch.testing.assert_close(
        found.discretization.mean, base + a * float(process.alpha(0.8)) * m - alpha * m
    )
    torch.testing.assert_close(found.truncation.std, torch.sqrt(alpha**2 * c + sigma**2) - c.sqrt())
    none = sk.certify_response(run, TARGET, process, start=None, t_end=0.1)
    assert none.initial.norm == 0
    assert none.stochastic
    torch.testing.assert_close(none.error.std, found.error.std)
    with pytest.raises(ValueError, match="start must number one of the 2"):
        sk.certify_response(run, TARGET, process, start=2)


# -- what is refused --------------------------------------------------------------------------------------


def refuse(run, match, target=TARGET, **options):
    with pytest.raises(sk.SdekitError, match=match) as caught:
        sk.certify_response(run, target, **options)
    return caught.value


RANDOM = {
    "rand": lambda n: torch.rand(n, D, **F64),
    "uniform_": lambda n: torch.empty(n, D, **F64).uniform_(),
    "bernoulli_": lambda n: torch.nn.functional.dropout(torch.ones(n, D, **F64)),
    "bernoulli": lambda n: torch.bernoulli(torch.full((n, D), 0.5, **F64)),
    "multinomial": lambda n: torch.multinomial(torch.ones(n, D, **F64), D).double(),
    "exponential_": lambda n: torch.empty(n, D, **F64).exponential_(),
    "randint": lambda n: torch.randint(0, 9, (n, D)).double(),
    "randperm": lambda n: torch.randperm(D).double().expand(n, D),
    "poisson": lambda n: torch.poisson(torch.ones(n, D, **F64)),
    "_standard_gamma": lambda n: torch.distributions.Gamma(torch.ones(n, D, **F64), 1.0).sample(),
}


@pytest.mark.parametrize("op", RANDOM)
def test_other_random_numbers_are_named(op):
    refuse(
        lambda n: torch.randn(n, D, **F64) + RANDOM[op](n), f"only random numbers are normal.*'{op}'.*Next"
    )


def test_noise_that_torch_does_not_draw():
    import numpy as np

    rng = np.random.default_rng(0)
    rows = lambda n: torch.randn(n, D, **F64) + torch.from_numpy(rng.standard_normal((n, D)))  # noqa: E731
    refuse(rows, "equal samples where every normal is zero.*numpy")
    shared = lambda n: torch.randn(n, D, **F64) + torch.from_numpy(rng.standard_normal(D))  # noqa: E731
    refuse(shared, "equal samples where every normal is zero.*numpy")
    weight = lambda n: rng.uniform(0.5, 2.0) * torch.randn(n, D, **F64)  # noqa: E731
    refuse(weight, "affine")


def test_noise_drawn_before_the_run():
    start = torch.randn(64, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    refuse(lambda n: start[:n] + torch.randn(n, D, **F64), "drawn before run|drawn *before run")
    refuse(lambda n: start[:1].expand(n, D) * 1.0, "draws normals, got none")
    refuse(lambda n: start[:1] + 0 * torch.randn(n, D, **F64), "got none that does")


def test_numbers_shared_by_the_elements():
    refuse(
        lambda n: torch.randn(n, 1, **F64) + torch.randn(n, D, **F64), "draws of D = 3 numbers.*draw 0.*Next"
    )
    refuse(lambda n: torch.randn((), **F64) * torch.ones(n, D, **F64), "got draw 0 of shape \\(\\)")
    complex_ = lambda n: torch.randn(n, D, dtype=torch.complex128).real  # noqa: E731
    refuse(complex_, "real normals, got a draw of dtype torch.complex128")


def clipped(n):
    return (torch.randn(n, D, **F64) * 2).clamp(-1, 1)


def test_what_is_not_affine_is_refused_with_its_residual():
    error = refuse(
        clipped, "affine in its noise.*what its impulses predict.*Next: sdekit.certify_monte_carlo"
    )
    assert isinstance(error, ResidualError)
    assert error.residual > 0.1
    refuse(
        lambda n: torch.randn(n, D, **F64) * torch.randn(n, D, **F64),
        "got none that does|affine in its noise",
    )


def test_samples_that_depend_on_their_batch_are_refused():
    def normed(n):
        x, z = torch.randn(n, D, **F64), torch.randn(n, D, **F64)
        return x + z / (1 + z.norm(dim=1).mean())

    refuse(normed, "the same noise gives another sample in another batch")

    def centred(n):
        x = torch.randn(n, D, **F64)
        return x - x.mean(0) / 2

    refuse(centred, "affine in its noise")


def test_the_denoiser_of_another_target_is_refused():
    process, other = sk.VP(), gaussian(8)
    target = gaussian(8, rotated=True)
    plan = sk.plan("ddpm", process, steps=6)
    refuse(box(plan, other, process), "a denoiser of another target", target=target)


def test_draws_that_change_are_refused():
    def adaptive(n):
        x = torch.randn(n, D, **F64)
        for _ in range(1 + int(x.abs().max() > 0.5)):
            x = x + torch.randn(n, D, **F64)
        return x

    refuse(adaptive, "the same draws in every run, got more draws than the 2")

    def fewer(n):
        x = torch.randn(n, D, **F64)
        return x if x.abs().max() > 0.5 else x + torch.randn(n, D, **F64)

    refuse(fewer, "got 1 draws, and 2 in the first run")


def test_wrong_samples_and_arguments():
    refuse(
        lambda n: torch.randn(n + 1, D, **F64), "run\\(3\\) must return floating samples of shape \\(3, 3\\)"
    )
    refuse(lambda n: (torch.randn(n, D), 0), "got tuple")
    refuse(lambda n: torch.randn(n, D, **F64) / 0, "finite samples, got NaN or infinity in 3")
    run = lambda n: torch.randn(n, D, **F64)  # noqa: E731
    with pytest.raises(TypeError, match="Gaussian target"):
        sk.certify_response(run, sk.GaussianMixture([1.0], [[0.0]], 1.0))
    with pytest.raises(TypeError, match="callable as run"):
        sk.certify_response("ddpm", TARGET)
    with pytest.raises(TypeError, match="noise=True needs run"):
        sk.certify_response(run, TARGET, noise=True)
    for wrong in ({"against": "prior"}, {"end": "t_max"}):
        with pytest.raises(ValueError, match="must be"):
            sk.certify_response(run, TARGET, sk.VP(), **wrong)
    ids_from_one = lambda n, noise: noise.normal(0, torch.empty(n, D, **F64), torch.arange(1, n + 1))  # noqa: E731
    refuse(ids_from_one, "affine in its noise")


def test_how_a_run_takes_its_noise():
    like = torch.empty(1, D, **F64)

    def draw(n, noise):
        return (
            torch.randn(n, D, **F64)
            if noise is None
            else 2 * noise.normal(0, like.expand(n, D), torch.arange(n))
        )

    def keyword(n, *, noise):
        return draw(n, noise)

    def optional(n, noise=None):
        return draw(n, noise)

    def positional(n, source):
        return draw(n, source)

    for run, option, std in (
        (keyword, None, 2.0),
        (positional, None, 2.0),
        (optional, None, 1.0),
        (optional, True, 2.0),
        (optional, False, 1.0),
    ):
        found = sk.certify_response(run, TARGET, noise=option)
        assert float(found.law.std[0]) == pytest.approx(std)


# -- frozen, and Monte Carlo ------------------------------------------------------------------------------


def test_frozen_is_the_linearised_response():
    def bent(n):
        return torch.sin(0.5 * torch.randn(n, D, **F64) + 0.1) + 0.3 * torch.randn(n, D, **F64)

    found = sk.certify_response(bent, gaussian(D), frozen=True)
    std = math.sqrt((0.5 * math.cos(0.1)) ** 2 + 0.09)
    expect(found, every(math.sin(0.1)), every(std), atol=1e-8)
    assert found.frozen
    assert found.residual > 1e-3
    assert "linearised" in repr(found)
    exact = sk.certify("ddpm", TARGET, sk.VP(), steps=5)
    affine = sk.certify_response(box(exact.plan, TARGET, sk.VP()), TARGET, sk.VP(), frozen=True, batch=7)
    same(affine, exact, atol=1e-9)


def test_monte_carlo_of_a_black_box_covers_the_exact_distance():
    """Two intervals of 99.9 %, fixed seeds: false alarm below 0.2 % for fresh ones."""
    process = sk.VP()
    exact = sk.certify("ddpm", TARGET, process, steps=8)
    noisy = box(exact.plan, TARGET, process)
    through_torch = lambda n: noisy(n, sk.TorchNoise()).x  # noqa: E731
    for run in (noisy, through_torch):
        found = sk.certify_monte_carlo(run, TARGET, samples=8000, confidence=0.999, nfe=8)
        assert found.low < exact.w2 < found.high
        assert found.high - found.low < 0.2
        assert (found.nfe, found.plan, found.samples) == (8, None, 8000)
    found = sk.certify_monte_carlo(clipped, gaussian(D), samples=400)
    assert found.w2 > 0.1
    assert "clipped" in repr(found)
    with pytest.raises(ValueError, match="pass it without"):
        sk.certify_monte_carlo(clipped, TARGET, steps=4)
    with pytest.raises(TypeError, match="needs the process"):
        sk.certify_monte_carlo("ddpm", TARGET)


def test_clipping_of_rare_samples_is_seen():
    target = sk.Gaussian(torch.zeros(D), variance=torch.ones(D))
    with pytest.raises(ResidualError, match="not what its impulses predict"):
        sk.certify_response(lambda n: torch.randn(n, D, dtype=torch.float64).clamp(-5, 5), target)


def test_a_decision_for_the_whole_batch_is_seen():
    target = sk.Gaussian(torch.zeros(D), variance=torch.ones(D))

    def run(n):
        x = torch.randn(n, D, dtype=torch.float64) + 0.1
        return x if x.abs().max() < 0.5 else 2 * x

    with pytest.raises(ResidualError, match="another batch"):
        sk.certify_response(run, target)


def test_guidance_by_autograd_runs_as_it_is():
    target = sk.Gaussian(torch.zeros(D), variance=torch.ones(D))

    def run(n):
        x = torch.randn(n, D, dtype=torch.float64).requires_grad_()
        (gradient,) = torch.autograd.grad(x.square().sum(), x)
        return x - 0.25 * gradient

    found = sk.certify_response(run, target)
    torch.testing.assert_close(found.law.std, torch.full((D,), 0.5, dtype=torch.float64))


def test_samples_of_this_package_need_its_noise():
    process = sk.VP()
    model = TARGET.denoiser(process)
    with pytest.raises(sk.errors.NotAffineError, match="noise=noise"):
        sk.certify_response(lambda n: sk.sample(model, (n, D), sampler="ddpm", steps=3).x, TARGET, process)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"start": 0.5}, ValueError, "start must number"),
        ({"start_std": 0.0}, ValueError, "start_std must be > 0"),
        ({"process": "vp"}, TypeError, "process must be"),
    ],
)
def test_settings_that_do_not_fit(options, error, message):
    with pytest.raises(error, match=message):
        sk.certify_response(lambda n: torch.randn(n, D, dtype=torch.float64), TARGET, **options)
