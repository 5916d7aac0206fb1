"""Where the Triton kernels run in tests: on a CUDA device, or by Triton's interpreter on CPU tensors."""

from __future__ import annotations

import os

import pytest
import torch

triton = pytest.importorskip("triton")
if not torch.cuda.is_available():  # read when the kernels are defined
    os.environ["TRITON_INTERPRET"] = "1"

INTERPRETED = not torch.cuda.is_available()
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
EXACT = [torch.float32, torch.float64, torch.float16]
"""Dtypes of which the kernels return the specification's bits; the interpreter cuts bfloat16 off."""
EXACT += [] if INTERPRETED else [torch.bfloat16]
