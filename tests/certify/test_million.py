"""Certificates against Monte Carlo at a million samples, for every affine sampler of the registry.

Under the certified law the sample mean is normal and (n - 1) s^2/sigma^2 is chi-squared, exactly. Each of the
8 means and 8 variances stays within 4 deviations (as normal quantiles): a fresh seed raises a false alarm
with probability 16 x 6.3e-5 = 1e-3 a sampler. Seeds are fixed, so a pass is a pass. The control: deviations
0.6 % off are seen.
"""

from __future__ import annotations

import pytest
import torch

import sdekit as sk
from tests.certify.test_monte_carlo import scores
from tests.samplers.problems import AFFINE, gaussian

N = 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("name", AFFINE)
def test_a_million_samples_follow_the_certified_law(name):
    law, target = sk.VP(), gaussian(8)
    found = sk.certify(name, target, law, steps=6)
    x = sk.sample(
        target.denoiser(law), (N, 8), sampler=found.plan, seed=1, dtype=torch.float64, batch_size=50_000
    ).x
    means, variances = scores(found, x)
    assert float(means.abs().max()) <= 4.0
    assert float(variances.abs().max()) <= 4.0
    inflated = x * 1.006
    assert float(scores(found, inflated)[1].abs().max()) > 4.0
