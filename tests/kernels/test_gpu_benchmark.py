"""The GPU benchmark: absent without a device; its code runs, small, on whatever device the tests have."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_device_it_is_absent():
    assert gpu.run() == {"absent": "no CUDA device"}


def test_every_figure_is_there(device):
    sizes = gpu.Sizes((4, 3, 8, 8), (2, 3, 8, 8), width=8, steps=3, paths=16, samples=8, repetitions=3)
    found = gpu.measure(device, sizes)
    ratios = found["ratios"]
    assert {"step over copy bandwidth", "noisy step over copy bandwidth", "compaction"} <= set(ratios)
    assert {"solver share, launched, 1", "solver share, launched, 2"} <= set(ratios)
    assert all(row["low"] <= row["median"] <= row["high"] for row in ratios.values())
    assert ratios["solver share, launched, 2"]["wanted"] == gpu.WANTED["share"]
    if device.type == "cpu":
        assert found["agreement"]["largest difference, float64"] == 0
        assert found["agreement"]["equal normals, float32"] == 1


def test_the_network_has_ten_million_parameters():
    net = gpu.network(torch.device("cpu"), gpu.Sizes()).net
    assert 9.5e6 < sum(p.numel() for p in net.parameters()) < 10.5e6
