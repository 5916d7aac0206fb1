"""Gradients of the exact distances through nodes and weights of a plan, against central differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import sdekit as sk
from sdekit.certify.affine import exact_denoiser, propagate, respond
from sdekit.samplers.base import Path, nodes_at
from sdekit.samplers.plan import Combine, Evaluate, Plan
from sdekit.samplers.registry import SAMPLERS
from sdekit.score.predictions import conversion
from tests.samplers.problems import AFFINE, PROCESSES, gaussian

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")


def plan_at(name, process, times, target) -> Plan:
    """The recipe on nodes that may carry gradients."""
    nodes = tuple(nodes_at(process, times))
    path = Path(nodes, target.data_std, target.data_spread, process)
    prior = float(process.prior_std(float(times[0].detach())))
    return Plan(tuple(SAMPLERS[name]().recipe(path)), nodes, prior, name, repr(process))


def differences(f, u, h=1e-6):
    """Central differences of f at u, element by element."""
    out = torch.empty_like(u)
    for i in range(len(u)):
        step = torch.zeros_like(u)
        step[i] = h * u[i].abs()
        with torch.no_grad():
            out[i] = (f(u + step) - f(u - step)) / (2 * step[i])
    return out


@pytest.mark.parametrize("process", ["VP", "VE", "RectifiedFlow"])
@pytest.mark.parametrize("name", AFFINE)
def test_distances_are_differentiable_in_the_grid(name, process):
    """W2 squared and KL of the run on tensors of times: every affine sampler of the registry."""
    law, target = PROCESSES[process], gaussian(4)
    times = torch.tensor(sk.plan(name, law, steps=5, finite=True).times, dtype=torch.float64)
    inner = times[1:-1].clone().requires_grad_()
    for distance in ("squared_norm", "divergence"):

        def value(u, distance=distance):
            plan = plan_at(name, law, torch.cat((times[:1], u, times[-1:])), target)
            found = sk.certify(plan, target, law)
            return found.divergence if distance == "divergence" else found.error.squared_norm

        (gradient,) = torch.autograd.grad(value(inner), inner)
        expected = differences(value, inner.detach())
        scale = float(expected.abs().max())
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4 * scale)
        assert scale > 0


@pytest.mark.parametrize("name", ["ddpm", "unipc-2", "sa-solver"])
def test_w2_is_differentiable_in_every_weight(name):
    law, target = sk.VP(), gaussian(3)
    plan = sk.plan(name, law, steps=4, data_std=target.data_std, data_spread=target.data_spread)
    counts = [len(ins.terms) + len(ins.noise) if isinstance(ins, Combine) else 0 for ins in plan.instructions]
    weights = torch.tensor(
        [w for ins in plan.instructions if isinstance(ins, Combine) for w, _ in (*ins.terms, *ins.noise)],
        dtype=torch.float64,
    )

    def value(weights):
        parts = iter(weights.split([n for n in counts if n]))
        made = []
        for ins, n in zip(plan.instructions, counts, strict=True):
            if n:
                own = next(parts)
                terms = tuple((own[j], name) for j, (_, name) in enumerate(ins.terms))
                noise = tuple((own[len(terms) + j], draw) for j, (_, draw) in enumerate(ins.noise))
                ins = replace(ins, terms=terms, noise=noise)
            made.append(ins)
        return sk.certify(replace(plan, instructions=tuple(made)), target, law).error.squared_norm

    leaf = weights.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    expected = differences(value, weights)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))
    found = sk.certify(plan, target, law)
    assert isinstance(found.w2, float)
    assert found.frechet == pytest.approx(found.w2**2)
    assert float(value(weights)) == pytest.approx(found.frechet)


def test_a_step_down_the_gradient_is_a_better_grid():
    """At 5 evaluations, by 100 steps of Adam on the times in ln rho: the W2 falls by a third."""
    law, target = sk.VP(), gaussian(8)
    start = sk.plan("ddim", law, steps=5)
    rho = law.rho(torch.tensor(start.times, dtype=torch.float64)).log()
    free = rho[1:-1].clone().requires_grad_()
    optimiser = torch.optim.Adam([free], lr=0.03)

    def value():
        times = law.t_of_rho(torch.cat((rho[:1], free, rho[-1:])).exp())
        return sk.certify(plan_at("ddim", law, times, target), target, law, against="t_min").error

    before = value().norm
    for _ in range(100):
        optimiser.zero_grad()
        value().squared_norm.backward()
        optimiser.step()
    assert value().norm < 0.67 * before


# -- the sweep ------------------------------------------------------------------------------------------


def forward(plan, c, m):
    """The rows b, g, G_1, ..., G_K by going forwards through the registers, all of them kept."""
    draws = list(
        dict.fromkeys(d for ins in plan.instructions if isinstance(ins, Combine) for _, d in ins.noise)
    )
    rows = torch.zeros(2 + len(draws), len(c), dtype=torch.float64)
    rows[1] = 1.0
    registers = {"x[0]": rows}
    for ins in plan.instructions:
        if isinstance(ins, Evaluate):
            alpha, sigma = ins.node.alpha, ins.node.sigma
            gain = alpha * c / (alpha**2 * c + sigma**2)
            p, q = conversion("x0", ins.predicts, ins.node, None, ins.data_std)
            out = (p + q * gain) * registers[ins.x]
            out[0] += q * (1 - alpha * gain) * m
        else:
            out = sum(w * registers[name] for w, name in ins.terms)
            for w, draw in ins.noise:
                out[2 + draws.index(draw)] += w
        registers[ins.out] = out
    return registers[plan.output]


@pytest.mark.parametrize("end", ["t_min", "clean"])
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", AFFINE)
def test_backwards_and_forwards_agree(name, process, end):
    """Rows of the output from adjoints and from registers; `respond` is their sum of squares."""
    target = gaussian(5)
    plan = sk.plan(name, PROCESSES[process], steps=6, end=end, data_std=0.9)
    rows = propagate(plan, target.eigenvalues, target.mean)
    expected = forward(plan, target.eigenvalues, target.mean)
    size = float(expected.abs().max())
    torch.testing.assert_close(rows, expected, rtol=1e-9, atol=1e-12 * size)
    found = respond(plan, exact_denoiser(target.eigenvalues, target.mean), 5)
    torch.testing.assert_close(found.constant, rows[0])
    torch.testing.assert_close(found.gain, rows[1])
    torch.testing.assert_close(found.variance, rows[2:].square().sum(0))


def test_registers_and_noise_that_lead_nowhere():
    """A value that is never read, and noise that never reaches the output, change nothing."""
    law, target = sk.VP(), gaussian(2)
    plan = sk.plan("ddpm", law, steps=3)
    dead = (
        Combine("dead", ((2.0, "x[0]"),), ((1.0, 99),)),
        Evaluate("deader", "dead", plan.nodes[0].t, "x0", plan.nodes[0]),
    )
    longer = replace(plan, instructions=(dead[0], dead[1], *plan.instructions))
    a, b = (sk.certify(p, target, law).law for p in (plan, longer))
    assert torch.equal(a.std, b.std)
    assert torch.equal(a.mean, b.mean)
    rows = propagate(longer, target.eigenvalues, target.mean)
    assert rows.shape == (2 + 4, 2)
    assert rows[2].tolist() == [0.0, 0.0]
