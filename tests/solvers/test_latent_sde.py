"""The latent SDE of docs/tutorials/latent-sde.md: its bound at the exact posterior; its fit."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "latent-sde.md"


@pytest.fixture(scope="module")
def page() -> Iterator[dict[str, Any]]:
    """What the cells of the tutorial define, without its runs."""
    pytest.importorskip("matplotlib").use("Agg")
    names: dict[str, Any] = {}
    before = torch.get_default_dtype()
    with torch.random.fork_rng():
        for cell in re.findall(r"```\{code-cell\} python\n(.*?)```", PAGE.read_text(), re.DOTALL)[:5]:
            text = re.split(r"^(?:posterior|history) =", cell, flags=re.MULTILINE)[0]
            exec(compile(text, PAGE.name, "exec"), names)
        yield names
    torch.set_default_dtype(before)


def exact_posterior(page: dict[str, Any], kappa: float, m: float) -> Any:
    """The law of the path given y, as a control u = sigma d/dx log p(y after t | x): the information filter
    run backwards, with a the precision and e the precision times the mean.
    """
    sigma, r, times, y = (page[name] for name in ("sigma", "r", "times", "y"))

    def back(a: float, e: float, h: float) -> tuple[float, float]:
        d, v = math.exp(-kappa * h), sigma**2 / (2 * kappa) * -math.expm1(-2 * kappa * h)
        p = 1 / (1 / a + v)
        return p * d * d, p * d * (e / a - m * (1 - d))

    filtered: list[tuple[float, float]] = []
    for i in reversed(range(len(times))):
        a, e = back(*filtered[0], float(times[i + 1] - times[i])) if filtered else (0.0, 0.0)
        filtered.insert(0, (a + r**-2, e + float(y[i]) * r**-2))

    class Exact(page["Posterior"]):  # type: ignore[misc]
        def control(self, x: Tensor, t: Tensor) -> Tensor:
            i = int(torch.searchsorted(times, t).clamp(max=len(times) - 1))
            a, e = back(*filtered[i], float(times[i] - t))
            return sigma * (e - a * x)

    posterior = Exact()
    a, e = back(*filtered[0], float(times[0]))
    with torch.no_grad():
        for p, value in ((posterior.kappa, kappa), (posterior.m, m)):
            p.fill_(value)
        posterior.start.copy_(torch.tensor([e / (a + 1), -math.log(a + 1) / 2]))
    return posterior


def test_the_bound_is_the_likelihood_at_the_exact_posterior(page: dict[str, Any]) -> None:
    """Up to the steps (0.2 at 300), and int u dW of the paths: its variance is E int u^2 = 2 KL = 11, so with
    1500 paths 6 standard errors are 0.5 (false alarm 2e-9). Half the control loses more than that.
    """
    posterior = exact_posterior(page, 1.5, 1.0)
    exact = float(page["evidence"](torch.tensor(1.5), torch.tensor(1.0)))

    def gap() -> float:
        with torch.no_grad():
            return exact - float(page["bound"](posterior, paths=1500, steps=300, seed=0))

    assert -0.3 < gap() < 0.7
    control = posterior.control
    posterior.control = lambda x, t: 0.5 * control(x, t)
    assert gap() > 1.2


def test_training_raises_the_bound(page: dict[str, Any]) -> None:
    torch.manual_seed(0)
    posterior = page["Posterior"]()
    history = page["train"](posterior, iterations=8, paths=8, steps=30)
    assert len(history) == 8
    assert history[-1] > history[0] + 50
    assert all(p.grad is not None and p.grad.isfinite().all() for p in posterior.parameters())


def test_slopes_of_the_bound(page: dict[str, Any]) -> None:
    """Adjoint and backprop, in all parameters: nearer with more steps."""
    torch.manual_seed(1)
    posterior = page["Posterior"]()
    errors = []
    for steps in (30, 120):
        values = [page["bound"](posterior, 4, steps, 0, gradient) for gradient in ("adjoint", "backprop")]
        a, b = (
            torch.cat([g.flatten() for g in torch.autograd.grad(v, posterior.parameters())]) for v in values
        )
        errors.append(float((a - b).norm() / b.norm()))
    assert errors[1] < min(0.05, errors[0] / 3), errors
