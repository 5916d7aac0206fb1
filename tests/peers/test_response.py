"""Plain loops of the libraries: certified laws against their own runs, and the committed table."""

from __future__ import annotations

import math

import pytest
import torch

import sdekit as sk
from benchmarks import response
from benchmarks.peers import available
from benchmarks.peers.plain import plain, refused
from docs import third_party
from tests.peers.problems import needs

if not available():
    pytest.skip("the libraries are not installed: make peers-env", allow_module_level=True)

ROWS = {s.name: s for s in plain()}
TRIED = [
    "diffusers: DDPM",
    "diffusers: EulerAncestralDiscrete",
    "diffusers: DPMSolverSDE, Karras",
    "diffusers: UniPCMultistep",
    "diffusers: FlowMatchHeunDiscrete",
    "diffusers: EDMDPMSolverMultistep, SDE",
    "k-diffusion: dpmpp_2m_sde",
    "k-diffusion: heun, churn",
    "azula: PC",
    "azula: zEAB",
]


def test_names_are_unique():
    assert len(ROWS) == len(plain())


@pytest.mark.parametrize("name", TRIED)
def test_the_certified_law_is_that_of_runs(name):
    """2,000 samples: |mean| and relative std within 5 standard errors in 64 directions.

    False alarm: 128 comparisons at 5 standard errors, below 1e-4 a sampler; the seed is fixed.
    """
    needs(ROWS[name].library)
    law, n = response.data(), 2000
    run = ROWS[name].make(law, 10)
    found = sk.certify_response(run, law)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        x = law.to_basis(run(n))
    assert bool(((x.mean(0) - found.law.mean).abs() < 5 * found.law.std / math.sqrt(n)).all())
    assert bool(((x.std(0) / found.law.std - 1).abs() < 5 / math.sqrt(2 * n)).all())


@pytest.mark.parametrize("name", TRIED)
def test_the_committed_table_is_what_the_libraries_give(name):
    needs(ROWS[name].library)
    stored = third_party.read()["sections"][ROWS[name].family]["peers"][name]["10"]
    found = response.entry(ROWS[name], 10)
    assert found["w2"] == pytest.approx(stored["w2"], rel=1e-4)
    assert found["draws"] == stored["draws"]


def test_the_committed_table_is_complete():
    sections = third_party.read()["sections"]
    stored = {name for found in sections.values() for name in found["peers"]}
    assert stored == set(ROWS)
    for found in sections.values():
        for row in found["peers"].values():
            assert all(entry is None or entry["residual"] < 1e-4 for entry in row.values())


@pytest.mark.parametrize("sampler", refused(), ids=lambda s: s.name)
def test_clipping_and_thresholding_are_refused(sampler):
    needs(sampler.library)
    law = response.data()
    with pytest.raises(sk.certify.ResidualError, match="clipping, thresholding") as caught:
        sk.certify_response(sampler.make(law, 10), law)
    assert caught.value.residual == pytest.approx(response.entry(sampler, 10)["refused"])
    assert caught.value.residual > 0.01


def test_ddpm_of_the_table_is_ours():
    """diffusers' DDPM in 40 steps takes every 25th entry of the table, and ours those nodes."""
    needs("diffusers")
    law = response.data()
    found = sk.certify_response(ROWS["diffusers: DDPM"].make(law, 40), law)
    table = sk.DiscreteVP.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    times = torch.arange(39, -1, -1, dtype=torch.float64) * 25 + 1
    ours = sk.certify("ddpm", law, table, grid=times, end="clean")
    assert found.w2 == pytest.approx(ours.w2, rel=1e-5)
