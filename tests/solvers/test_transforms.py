"""`solve` inside torch.func transforms, and with a compiled drift."""

from __future__ import annotations

import shutil

import pytest
import torch

import sdekit as sk
from sdekit.noise import Philox

ODE = sk.ODE(lambda x, t: torch.sin(x) - x * t)
SDE = sk.SDE(lambda x, t: -x, lambda x, t: 0.3 * torch.cos(x))
SYSTEMS = {
    "ode": (ODE, "heun"),
    "sde": (SDE, "euler-maruyama"),
    "milstein": (SDE, "milstein"),
}


def states(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("event", [(3,), (2, 40), (1,)])
def test_vmap_and_grad_of_solve(name, event):
    """Mapping over initial states is a loop over them: the noise of sample i is that of its id in each."""
    system, solver = SYSTEMS[name]

    def f(x):
        return sk.solve(system, x, (0.0, 1.0), solver=solver, steps=5).x

    xs = states(4, 2, *event)
    mapped = torch.func.vmap(f)(xs)
    for x, out in zip(xs, mapped, strict=True):
        torch.testing.assert_close(out, f(x), rtol=0, atol=1e-14)
    own = xs[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(f(own).square().sum(), own)
    found = torch.func.grad(lambda x: f(x).square().sum())(xs[0])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_noise_inside_a_transform_is_that_outside():
    like, ids, noise = torch.zeros(3, 5), torch.tensor([4, 2**40, 7]), Philox(5)
    expected = noise.normal(6, like, ids)
    assert torch.equal(
        torch.func.vmap(lambda x: x * 0 + noise.normal(6, x, ids))(torch.zeros(2, 3, 5))[1], expected
    )

    def at(x):
        made = noise.normal(6, x, ids + 0)
        assert not made.requires_grad
        return (x * made).sum()

    assert torch.equal(torch.func.grad(at)(like), expected)
    assert torch.equal(noise.normals(6, 2, like, ids)[0], expected)


def test_ids_that_are_mapped_over_are_refused():
    with pytest.raises(ValueError, match="ids of the samples are mapped over.*Next"):
        torch.func.vmap(lambda i: Philox(0).normal(0, torch.zeros(2, 3), i))(torch.arange(6).reshape(3, 2))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of the compiler's own making
@pytest.mark.skipif(shutil.which("gcc") is None, reason="torch.compile needs a C compiler")
def test_a_compiled_drift():
    drift = torch.compile(lambda x, t: torch.sin(x) - x * t)
    x = states(5, 7)
    found = sk.solve(sk.ODE(drift), x, (0.0, 1.0), solver="heun", steps=8).x
    torch.testing.assert_close(
        found, sk.solve(ODE, x, (0.0, 1.0), solver="heun", steps=8).x, rtol=1e-12, atol=0
    )
