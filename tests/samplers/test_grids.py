"""Grids: published node lists, exact ends, strict decrease, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

import sdekit as sk
from sdekit.samplers.grids import _LAYOUTS
from tests.samplers.problems import FROM_PURE_NOISE, PROCESSES

NAMED = sorted(_LAYOUTS)

# Published nodes for rho from 80 to 0.002, 10 intervals, to the digits printed there.
QUANTILE = "80 6.4 2.06 .97 .52 .29 .16 .089 .044 .016 .002"  # s = 0.5, s2 = 0.6
TRIGONOMETRIC = "80 5.43 1.66 .793 .445 .266 .160 .092 .046 .017 .002"  # s = 0.5


def agree_to_printed_digits(values, printed: str) -> None:
    for value, text in zip(values.tolist(), printed.split(), strict=True):
        digits = len(text.partition(".")[2])
        assert abs(value - float(text)) <= 0.5 * 10.0**-digits * (1 + 1e-9), (value, text)


def test_published_quantile_nodes():
    times = sk.Grid("quantile", lower=0.35).times(sk.EDM(0.002, 80.0), 10, 0.5, 0.6)
    agree_to_printed_digits(times, QUANTILE)


def test_published_trigonometric_nodes():
    times = sk.Grid("quantile-narrow").times(sk.EDM(0.002, 80.0), 10, 0.5)
    agree_to_printed_digits(times, TRIGONOMETRIC)


def test_karras_is_equation_5():
    n, top, bottom, p = 18, 80.0, 0.002, 7.0
    i = torch.arange(n, dtype=torch.float64)
    published = (top ** (1 / p) + i / (n - 1) * (bottom ** (1 / p) - top ** (1 / p))) ** p
    torch.testing.assert_close(
        sk.Grid("karras").times(sk.EDM(bottom, top), n - 1), published, rtol=1e-12, atol=0
    )
    option = (top ** (1 / 3) + i / (n - 1) * (bottom ** (1 / 3) - top ** (1 / 3))) ** 3
    torch.testing.assert_close(
        sk.Grid("karras", rho=3.0).times(sk.EDM(bottom, top), n - 1), option, rtol=1e-12, atol=0
    )


def test_uniform_grids_are_uniform():
    process, n = sk.VP(), 40
    t = sk.Grid("uniform-t").times(process, n)
    torch.testing.assert_close(t, torch.linspace(1.0, 1e-3, n + 1, dtype=torch.float64))
    root = sk.Grid("quadratic").times(process, n).sqrt()
    torch.testing.assert_close(root.diff(), root.diff().mean().expand(n))
    lam = process.half_log_snr(sk.Grid("uniform-lambda").times(process, n))
    torch.testing.assert_close(lam.diff(), lam.diff().mean().expand(n), rtol=1e-9, atol=0)
    lam = process.half_log_snr(sk.Grid("exponential", power=2.0).times(process, n))
    u = torch.linspace(1.0, 0.0, n + 1, dtype=torch.float64) ** 2
    torch.testing.assert_close(lam, lam[-1] + u * (lam[0] - lam[-1]), rtol=1e-9, atol=1e-9)


def test_standard_is_the_grid_of_the_publication():
    edm, vp = sk.EDM(), sk.VP()
    assert torch.equal(sk.Grid("standard").times(edm, 10), sk.Grid("karras").times(edm, 10))
    assert torch.equal(sk.Grid("standard").times(vp, 10), sk.Grid("uniform-t").times(vp, 10))


@pytest.mark.parametrize(
    ("n", "predicts", "floor", "width"),
    [
        (12, None, 0.18, 1.8),
        (12, "v", 0.18, 1.8),
        (25, "x0", 0.375, 1.8 * math.sqrt(0.8)),
        (50, "edm", 0.45, 1.3),
        (12, "eps", 0.72, 1.8),
        (50, "score", 0.9, 1.8),
    ],
)
def test_quantile_density_is_the_stated_one(n, predicts, floor, width):
    """The mass of the density between neighbouring nodes is 1/n, by quadrature of its definition."""
    s, s2 = 0.5, 2.0
    process = sk.EDM(0.002, 80.0)
    a, b = math.log(0.25 * s), math.log(max(0.25 * s, 0.75 * s**0.25 * s2**0.75))

    def shape(x):
        away = torch.where(x < a, a - x, torch.where(x > b, x - b, 0.0))
        return (1 + (away / width) ** 2 / 3) ** -2

    grid = torch.linspace(math.log(0.002), math.log(80.0), 400_001, dtype=torch.float64)
    density = shape(grid)
    density = floor / (grid[-1] - grid[0]) + (1 - floor) * density / torch.trapezoid(density, grid)
    cdf = torch.cumulative_trapezoid(density, grid)
    nodes = sk.Grid("quantile").times(process, n, s, s2, predicts=predicts).log()
    at = cdf[torch.searchsorted(grid, nodes.flip(0)).clamp(1, len(cdf)) - 1]
    torch.testing.assert_close(at, torch.linspace(0, 1, n + 1, dtype=torch.float64), rtol=0, atol=2e-5)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", NAMED)
def test_every_grid_decreases_and_ends_exactly(name, process):
    law = PROCESSES[process]
    for n in [*range(1, 21), 50, 100, 199, 200]:
        times = sk.Grid(name).times(law, n, 0.5, 0.7)
        assert times.dtype == torch.float64
        assert times.shape == (n + 1,)
        assert float(times[0]) == float(law.t_max)
        assert float(times[-1]) == float(law.t_min)
        assert bool((times.diff() < 0).all()), n


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", NAMED)
def test_every_grid_at_every_number_of_intervals(name, process):
    law = PROCESSES[process]
    for n in range(1, 201):
        times = sk.Grid(name).times(law, n, 0.5, 0.7)
        assert float(times[0]) == float(law.t_max)
        assert float(times[-1]) == float(law.t_min)
        assert bool((times.diff() < 0).all()), n


@pytest.mark.parametrize("s", [1e-3, 0.05, 20.0, 1e3])
@pytest.mark.parametrize("process", PROCESSES)
def test_grids_for_data_of_any_scale(process, s):
    law = PROCESSES[process]
    for name in ("quantile", "quantile-narrow"):
        times = sk.Grid(name).times(law, 50, s, 3 * s)
        assert bool((times.diff() < 0).all())
        assert (float(times[0]), float(times[-1])) == (law.t_max, law.t_min)


@pytest.mark.parametrize("process", FROM_PURE_NOISE)
@pytest.mark.parametrize("name", [n for n in NAMED if n not in ("uniform-t", "quadratic", "standard")])
def test_from_pure_noise_other_nodes_lie_below_200_s(name, process):
    """alpha = 0 at t_max: the first node is t_max, the rest of the grid has ln rho <= ln(200 s)."""
    law, s = PROCESSES[process], 0.3
    rho = law.rho(sk.Grid(name).times(law, 10, s, s))
    assert math.isinf(float(rho[0]))
    assert float(rho[1]) < 200 * s
    assert bool(torch.isfinite(rho[1:]).all())


def test_explicit_grids():
    times = [1.0, 0.5, 0.001]
    for given in (times, torch.tensor(times, dtype=torch.float64), sk.Grid.explicit(times)):
        plan = sk.plan("ddim", sk.VP(), grid=given)
        assert plan.times == tuple(times)
        assert plan.steps == 2
    assert "3 times" in repr(sk.Grid.explicit(times))
    clean = sk.plan("ddim", sk.VP(), grid=times, end="clean")
    assert clean.steps == 3
    assert clean.nodes[-1].sigma == 0.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sk.Grid("karas"), ["unknown grid 'karas'", "Nearest: 'karras'"]),
        (lambda: sk.Grid("karras", roh=3.0), ["'karras' does not take 'roh'", "rho"]),
        (lambda: sk.Grid("uniform-t", rho=3.0), ["does not take 'rho'", "none"]),
        (lambda: sk.Grid("karras", rho=math.nan), ["finite", "nan"]),
        (lambda: sk.Grid.explicit([1e-3, 0.5, 1.0]), ["decrease strictly", "forward order", "times.flip(0)"]),
        (lambda: sk.Grid.explicit([1.0, 0.5, 0.5]), ["decrease strictly", "t[1] = 0.5, t[2] = 0.5"]),
        (lambda: sk.Grid.explicit([1.0, math.nan]), ["finite", "nan"]),
        (lambda: sk.Grid.explicit([1.0, -0.1]), [">= 0", "-0.1"]),
        (lambda: sk.Grid.explicit([1.0]), ["at least two times", "(1,)"]),
        (lambda: sk.Grid.explicit(torch.ones(2, 2)), ["1-D", "(2, 2)"]),
        (lambda: sk.plan("ddim", sk.VP(), grid=[2.0, 0.1]), ["starts at t = 2", "beyond t_max = 1"]),
        (
            lambda: sk.plan("ddim", sk.VP(), grid=[1.0, 0.5, 0.1], steps=5),
            ["steps = 5", "2 intervals", "leave steps out"],
        ),
        (
            lambda: sk.plan("ddim", sk.VP(), grid=[1.0, 0.5, 0.1], nfe=5),
            ["costs 2 evaluations", "nfe = 5"],
        ),
        (lambda: sk.Grid("karras").times(sk.VP(), 0), ["intervals", ">= 1", "got 0"]),
        (
            lambda: sk.plan("euler-maruyama", sk.RectifiedFlow(), grid=[1.0, 0.5, 0.1]),
            ["needs finite drift", "alpha = 0", "start at t = 0.999"],
        ),
    ],
)
def test_refused_grids(make, words):
    with pytest.raises(ValueError if "unknown" not in words[0] else KeyError) as error:
        make()
    for word in words:
        assert word in str(error.value)
