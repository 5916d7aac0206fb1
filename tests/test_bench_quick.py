"""The quick parts of the benchmarks: they measure what `run` measures, and say what is absent."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import sdekit as sk

pytest.importorskip("sklearn")

from benchmarks import (
    _cells,
    accuracy,
    breakdown,
    calibrated,
    gpu,
    noise,
    overhead,
    peers,
    response,
    steps,
    stochastic,
)


def row(times, width=0.1):
    """As `compare` has it of what takes ``times`` as long as the first."""
    return {
        "ratio": 1 / times,
        "ratio_low": (1 - width) / times,
        "ratio_high": (1 + width) / times,
        "best_us": 10.0,
    }


@pytest.fixture
def alone(monkeypatch):
    """No library is installed, none is kept."""
    monkeypatch.setattr(peers, "available", list)
    monkeypatch.setattr(_cells, "peers", dict)
    monkeypatch.setattr(_cells, "cells", lambda *_: {})
    monkeypatch.setattr(_cells, "read_json", lambda _: {})
    monkeypatch.setattr(_cells, "loaded", lambda _: None)
    monkeypatch.setattr(_cells, "_store", lambda _: None)


def test_without_the_libraries_the_comparisons_are_absent(alone):
    for found in (accuracy.quick(), stochastic.quick(), response.quick()):
        assert found["ratios"] == {}
        assert found["absent"].endswith("not installed") or "is not installed" in found["absent"]
    assert set(calibrated.run()) == set(response.run()) == {"absent"}


def test_problems_measured_anew_have_names_of_their_own():
    single = {nfe: dict.fromkeys(accuracy.QUICK, 0.1 * nfe) for nfe in (8, 10, 20)}
    found = accuracy.each_problem(single)
    assert len(found) == len(accuracy.QUICK) * len(accuracy.QUICK_AT)
    assert all(name.startswith(accuracy.QUICK) for name in found)
    assert found[f"{accuracy.QUICK[0]}, 20: error over the best peer"]["median"] == 2.0
    assert accuracy.each_problem({10: {"another": 1.0}}) == {}
    assert set(accuracy.QUICK) <= set(_cells.SUITES["closed-form"])
    assert set(calibrated.QUICK) <= set(_cells.SUITES["closed-form"]) - set(calibrated.DESIGN)
    found = calibrated.each_problem({calibrated.QUICK[0]: 0.5, "another": 1.0})
    assert list(found) == [f"{calibrated.QUICK[0]}, 8: error over default"]
    assert found[f"{calibrated.QUICK[0]}, 8: error over default"]["median"] == 0.5


def test_accuracy_measures_both_sides_anew(monkeypatch):
    name = accuracy.QUICK[0]
    monkeypatch.setattr(accuracy, "QUICK", (name,))

    class Peer:
        def run(self, model, start, nfe):
            return sk.sample(model, tuple(start.shape), sampler="ddim", nfe=nfe, x_init=start).x

    table = [{"suite": "closed-form", "nfe": nfe, "peer": "library 1: x"} for nfe in (8, 10, 20)]
    monkeypatch.setattr(accuracy, "record", lambda _: {"result": {"table": table}})
    monkeypatch.setattr(_cells, "peers", lambda: {"library 1: x": Peer()})
    found = accuracy.quick()["ratios"]
    assert set(found) == {f"{name}, {nfe}: error over the best peer" for nfe in (10, 20)}
    p = _cells.loaded(name)
    for nfe in (10, 20):
        ours, theirs = (
            accuracy.errors([p], of, None, (nfe,))[name][nfe][1] for of in ("kernel-quadrature", "ddim")
        )
        assert found[f"{name}, {nfe}: error over the best peer"]["median"] == pytest.approx(
            ours / theirs, rel=1e-3
        )
    monkeypatch.setattr(_cells, "peers", dict)
    assert accuracy.quick()["absent"] == "library 1 is not installed"


def test_stochastic_certifies_both_sides_anew(monkeypatch):
    class Peer:
        name = "library: x"

    table = [{"nfe": nfe, "peer": "library: x"} for nfe in (10, 20, 50)] + [{"nfe": 10}]
    monkeypatch.setattr(stochastic, "record", lambda _: {"result": {"table": table}})
    monkeypatch.setattr(peers, "stochastic_configurations", lambda _: [Peer()])
    monkeypatch.setattr(
        peers, "exact_w2", lambda p, *case: 2 * sk.certify("gaussian-split", *case[:2], nfe=case[2]).w2
    )
    found = stochastic.quick()["ratios"]
    assert {name: figure["median"] for name, figure in found.items()} == {
        f"W2 at {nfe} over the best peer": 0.5 for nfe in (10, 20)
    }


def test_noise_is_compared_with_torch_and_numpy():
    case = {"fill": {"torch": row(4.0), "numpy": row(9.0)}, "Philox.normal": row(0.5)}
    found = noise.ratios({"float64 1e6": case})
    assert {name: figure["median"] for name, figure in found.items()} == {
        "fill float64 1e6": 4.0,
        "fill float64 1e6: numpy": 9.0,
        "Philox.normal float64 1e6": 2.0,
    }
    assert found["fill float64 1e6"]["wanted"] == noise.WANTED["float64"]
    assert found["fill float64 1e6: numpy"]["wanted"] is None
    assert all(figure["low"] < figure["median"] < figure["high"] for figure in found.values())


def test_certificates_are_compared_with_a_product(monkeypatch):
    def compare(works, **_):
        works["product"]()
        return {name: row(2.0 + k) for k, name in enumerate(works) if name != "product"}

    monkeypatch.setattr(overhead, "compare", compare)
    found = overhead._against_a_product()
    assert [figure["median"] for figure in found.values()] == [3.0, 4.0, 5.0]
    assert all(name.startswith(overhead.QUICK) for name in found)


def test_set_timesteps_is_not_overhead(monkeypatch):
    def rivals(shape):
        return {"ddim": {"sdekit": "a", "library slow": "b", "library": ("c", "d")}}

    rows = {"sdekit": {"best_us": 50.0}, "library slow": row(9.0), "library": row(10.0)}
    rows["library slow"]["best_us"], rows["library"]["best_us"] = 450.0, 500.0
    rows["library: set_timesteps"] = {"best_us": 100.0}
    monkeypatch.setattr(steps, "rivals", rivals)
    monkeypatch.setattr(steps, "compare", lambda calls, **_: rows)
    found = steps._overhead((1, 16))["ddim"]
    assert found["us"] == {"sdekit": 1.0, "library slow": 9.0, "library": 8.0}
    assert found["best rival"] == "library"
    assert found["ratio"]["median"] == 8.0
    assert found["ratio"]["low"] < 8.0 < found["ratio"]["high"]
    assert steps._overhead((1, 16), ("ancestral",)) == {}


def test_an_absent_card_is_said():
    if not torch.cuda.is_available():
        assert gpu.quick() == {"ratios": {}, "absent": "no CUDA device"}
    found = gpu._over_copy({"step": [0.5, 0.6], "noisy step": [0.9, 0.9], "copy GB/s": [1.0, 1.0]})
    assert all(name.startswith(gpu.QUICK) for name in found)
    assert len(found) == 2


HERE = (breakdown.__file__, 1, "_network")


@pytest.mark.parametrize(
    ("where", "caller", "part"),
    [
        (("/x/sdekit/solvers/solve.py", 3, "solve"), HERE, "solvers"),
        (("/x/sdekit/encode.py", 3, "encode"), None, "other sdekit"),
        (HERE, None, "given"),
        (("~", 0, "<built-in method torch.matmul>"), HERE, "given"),
        (("~", 0, "<built-in method torch.matmul>"), ("/x/sdekit/a/b.py", 1, "f"), "torch"),
        (("/x/torch/nn/functional.py", 1, "silu"), None, "torch"),
        (("~", 0, "<method 'run_backward' of 'torch._C._EngineBase' objects>"), None, "derivatives"),
        (("~", 0, "<built-in method builtins.len>"), ("/x/sdekit/a/b.py", 1, "f"), "Python"),
    ],
)
def test_time_is_counted_where_it_goes(where, caller, part):
    assert breakdown._part(where, caller, "given") == part


def test_shares_are_of_the_whole():
    process = sk.VP()

    def network(x, t):
        return torch.mul(x, 0.5)

    network.__code__ = network.__code__.replace(co_filename=breakdown.__file__)
    model = sk.Denoiser(network, process, predicts="eps", data_std=1.0)
    found = breakdown.shares(lambda: sk.sample(model, (1, 16), sampler="ddim", steps=5), 2)
    assert sum(found.values()) == pytest.approx(1.0)
    assert found["network"] > 0
    assert found["samplers"] > 0
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert breakdown._percent({"a": 0.514, "b": 0.004}) == {"a": "51 %"}


def test_parts_add_up_over_functions_and_callers(monkeypatch):
    library, matmul = ("/x/sdekit/solvers/a.py", 1, "f"), ("~", 0, "<built-in method torch.matmul>")
    stats = {
        library: (1, 1, 3.0, 9.0, {}),
        ("/x/sdekit/solvers/b.py", 1, "g"): (1, 1, 1.0, 1.0, {library: (1, 1, 1.0, 1.0)}),
        HERE: (1, 1, 1.0, 4.0, {library: (1, 1, 1.0, 4.0)}),
        matmul: (2, 2, 5.0, 5.0, {HERE: (1, 1, 3.0, 3.0), library: (1, 1, 2.0, 2.0)}),
    }
    monkeypatch.setattr(breakdown.pstats, "Stats", lambda _: SimpleNamespace(stats=stats))
    assert breakdown.shares(lambda: None, 1, "equation") == {"solvers": 0.4, "equation": 0.4, "torch": 0.2}


def test_a_step_of_the_executor_is_what_is_beyond_the_network(monkeypatch):
    """The fake clock: 50 steps of 7 us, then 50 calls of the network of 2 us, later runs twice as long."""
    ticks = iter([t for k in range(300) for t in _ticks(1 if k % 10 == 0 else 2)])
    monkeypatch.setattr(steps, "time", SimpleNamespace(thread_time=lambda: next(ticks)))
    monkeypatch.setattr(steps, "execute", lambda *_, **__: None)
    found = steps._step_us("ddim")
    assert len(found) == 30
    assert found == pytest.approx([5.0] * 30)


def _ticks(slow):
    return 0.0, slow * 50 * 7e-6, slow * 50 * 9e-6
