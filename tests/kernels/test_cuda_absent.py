"""Without Triton the CUDA back end says so, and how to get it."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from sdekit.kernels import cuda
from sdekit.noise import source


def test_a_machine_without_triton_is_told_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'sdekit[cuda]'" in cuda.serves(torch.zeros(2, 3))


def test_without_triton_the_noise_on_a_card_is_the_specification(monkeypatch):
    """No compiled fill, and no warning: an optional package is absent."""
    monkeypatch.setitem(sys.modules, "sdekit.noise.cuda", None)
    assert source._cuda_fill.__wrapped__(torch.float32, torch.device("cuda", 0)) is None


def test_a_fill_that_fails_is_told_and_left_alone(monkeypatch):
    """Triton is there and the card is not: plain torch, with a warning."""
    broken = ModuleType("sdekit.noise.cuda")

    def checked(dtype, device):
        raise RuntimeError("no such card")

    broken.checked = checked
    monkeypatch.setitem(sys.modules, "sdekit.noise.cuda", broken)
    monkeypatch.setattr("sdekit.noise.cuda", broken, raising=False)
    with pytest.warns(RuntimeWarning, match="no such card"):
        assert source._cuda_fill.__wrapped__(torch.float32, torch.device("cuda", 0)) is None
