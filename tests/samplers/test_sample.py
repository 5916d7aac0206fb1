"""`sample`: what it takes, what it gives back, and gradients through it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sdekit as sk
from sdekit.samplers.registry import SAMPLERS
from sdekit.solution import Status
from tests.samplers.problems import (
    DETERMINISTIC,
    NAMES,
    PROCESSES,
    STOCHASTIC,
    gaussian,
    mixture,
    smooth_network,
)


@pytest.mark.parametrize("state", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_the_state_keeps_its_dtype(name, state, device):
    target = gaussian(3)
    run = sk.sample(target.denoiser(sk.VP()), (64, 3), sampler=name, dtype=state, device=device, save="all")
    assert run.x.dtype == run.xs.dtype == state
    assert run.x.device.type == device.type
    assert run.ts.dtype == torch.float64
    reference = sk.sample(target.denoiser(sk.VP()), (64, 3), sampler=name, dtype=torch.float64, device=device)
    # bfloat16 holds 8 bits: states of size 1 to 3 drift by some 1e-2 over 20 steps. The corrector's step
    # is measured on the score, which at t_min is the difference of two such states over sigma^2 = 1e-4.
    rough = math.inf if name == "pc" else 0.2
    close = {torch.float32: 1e-3, torch.float64: 0.0, torch.bfloat16: rough}[state]
    assert bool(torch.isfinite(run.xs).all())
    assert float((run.x.double() - reference.x).abs().max()) <= close
    assert run.numpy().dtype == (np.float64 if state == torch.float64 else np.float32)


@pytest.mark.parametrize("kind", ["x0", "eps", "v"])
@pytest.mark.parametrize("name", ["kernel-quadrature", "ddpm", "heun", "pc"])
def test_networks_get_the_dtype_of_the_state(name, kind, device):
    seen = set()

    def net(x, t):
        seen.add((x.dtype, t.dtype, tuple(t.shape), t.device.type))
        return 0.3 * x

    for state in (torch.float32, torch.float64, torch.bfloat16):
        seen.clear()
        model = sk.Denoiser(net, sk.VP(), predicts=kind, data_std=1.0)
        sk.sample(model, (5, 2, 3), sampler=name, steps=3, dtype=state, device=device)
        assert seen == {(state, state, (5,), device.type)}


@pytest.mark.parametrize("shape", [(0, 3), (1, 3)])
@pytest.mark.parametrize("name", NAMES)
def test_empty_and_single_batches(name, shape, device):
    run = sk.sample(gaussian(3).denoiser(sk.VP()), shape, sampler=name, steps=3, save="all", device=device)
    assert run.x.shape == shape
    assert run.xs.shape == (4, *shape)
    assert run.status.shape == (shape[0],)
    assert run.ok
    tiled = sk.sample(
        gaussian(3).denoiser(sk.VP()), shape, sampler=name, steps=3, batch_size=4, device=device
    )
    assert torch.equal(tiled.x, run.x)


def test_events_of_any_shape(device):
    for event in ((), (1,), (2, 3), (3, 8, 8)):
        model = smooth_network(sk.VP())
        run = sk.sample(model, (2, *event), sampler="ddpm", steps=3, device=device)
        assert run.x.shape == (2, *event)
    assert sk.sample(model, 4, sampler="ddpm", steps=3, device=device).x.shape == (4,)
    assert sk.sample(model, torch.Size([2, 3]), sampler="ddpm", steps=3, device=device).x.shape == (2, 3)
    assert sk.sample(model, (np.int64(2), 3), sampler="ddpm", steps=3, device=device).x.shape == (2, 3)


def test_the_solution_says_what_happened(device):
    run = sk.sample(gaussian(3).denoiser(sk.VP()), (5, 3), sampler="heun", steps=4, device=device)
    assert (run.stats.nfe, run.stats.steps, run.stats.accepted, run.stats.rejected) == (8, 4, 4, 0)
    assert run.stats.seconds > 0
    assert run.ts.tolist() == [1.0, 1e-3]
    assert run.xs is None
    assert run.status.tolist() == [0] * 5
    assert bool((run.failed_step == -1).all())
    assert bool(run.failed_at.isnan().all())
    assert "nfe=8" in repr(run)
    assert "all ok" in repr(run)


@pytest.mark.parametrize("parallel", [None, 3])
def test_a_callback_may_look_and_not_touch(parallel):
    model = gaussian(3).denoiser(sk.VP())
    with pytest.raises(ValueError, match="changed x in place at node 2.*x.clone"):
        sk.sample(
            model,
            (4, 3),
            steps=5,
            parallel=parallel,
            callback=lambda i, t, x: x.mul_(2) if i == 2 else None,
        )
    with torch.inference_mode():  # such tensors do not count their changes
        assert sk.sample(model, (4, 3), steps=5, callback=lambda i, t, x: None).ok


@pytest.mark.parametrize("end", ["t_min", "clean"])
@pytest.mark.parametrize("name", NAMES)
def test_saved_states_callback_and_progress(name, end, device, capsys):
    target, seen = gaussian(3), []
    plan = sk.plan(name, sk.VP(), steps=5, end=end, data_std=target.data_std)
    run = sk.sample(
        target.denoiser(sk.VP()),
        (4, 3),
        sampler=plan,
        save="all",
        seed=2,
        device=device,
        progress=True,
        callback=lambda i, t, x: seen.append((i, t, x.clone())),
    )
    assert run.xs.shape == (6, 4, 3)
    assert tuple(run.ts.tolist()) == plan.times
    assert torch.equal(run.xs[-1], run.x)
    assert torch.equal(run.xs[0], plan.prior_std * sk.VP().prior((4, 3), 2))
    assert [i for i, _, _ in seen] == [1, 2, 3, 4, 5]
    assert [t for _, t, _ in seen] == list(plan.times[1:])
    assert torch.equal(torch.stack([x for _, _, x in seen]), run.xs[1:])
    assert "5/5" in capsys.readouterr().err
    plain = sk.sample(target.denoiser(sk.VP()), (4, 3), sampler=plan, seed=2, device=device)
    assert torch.equal(plain.x, run.x)


def test_saved_states_come_together_from_tiles(device):
    target = gaussian(3)
    options = {"sampler": "ddpm", "steps": 4, "save": "all", "device": device}
    whole = sk.sample(target.denoiser(sk.VP()), (11, 3), **options)
    tiled = sk.sample(target.denoiser(sk.VP()), (11, 3), batch_size=4, **options)
    assert torch.equal(whole.xs, tiled.xs)


@pytest.mark.parametrize("name", NAMES)
def test_x_init_replaces_the_prior_and_is_left_alone(name, device):
    target, process = mixture(), sk.VP()
    start = process.prior((5, 2), 9).to(device)
    plan = sk.plan(name, process, steps=4, data_std=0.9)
    start = plan.prior_std * start
    kept = start.clone()
    drawn = sk.sample(target.denoiser(process), (5, 2), sampler=plan, seed=9, device=device)
    given = sk.sample(target.denoiser(process), (5, 2), sampler=plan, seed=9, x_init=start)
    assert torch.equal(drawn.x, given.x)
    assert torch.equal(start, kept)
    tiled = sk.sample(target.denoiser(process), (5, 2), sampler=plan, seed=9, x_init=start, batch_size=3)
    assert torch.equal(tiled.x, given.x)
    assert (
        sk.sample(target.denoiser(process), (5, 2), sampler=plan, x_init=start.double()).x.dtype
        == torch.float64
    )
    array = sk.sample(target.denoiser(process), (5, 2), sampler=plan, seed=9, x_init=start.cpu().numpy())
    assert torch.equal(array.x, given.x.cpu())


def test_seeds_and_ids_choose_the_sample(device):
    model = gaussian(3).denoiser(sk.VP())
    runs = [
        sk.sample(model, (4, 3), seed=s, first_id=f, device=device).x for s, f in ((0, 0), (1, 0), (0, 4))
    ]
    assert not torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    again = sk.sample(model, (4, 3), noise=sk.Philox(1), device=device).x
    assert torch.equal(again, runs[1])


def test_torch_noise_is_torch_s_generator(device):
    """Draws in call order: the initial state first, then one for each step."""
    process = sk.VE()
    model = smooth_network(process)
    g = torch.Generator(device).manual_seed(7)
    draws = [torch.randn(5, 3, generator=g, dtype=torch.float64, device=device) for _ in range(4)]
    noise = sk.TorchNoise(torch.Generator(device).manual_seed(7))
    run = sk.sample(model, (5, 3), sampler="ddpm", steps=3, noise=noise, dtype=torch.float64, device=device)
    recorded = sk.Recorded(draws[1:], initial=draws[0])
    same = sk.sample(
        model, (5, 3), sampler="ddpm", steps=3, noise=recorded, dtype=torch.float64, device=device
    )
    assert torch.equal(run.x, same.x)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_recorded_noise_that_is_missing_is_named(name, device):
    model = gaussian(3).denoiser(sk.VP())
    start = torch.zeros(4, 3)
    with pytest.raises(IndexError, match=r"draw \d+ was asked for.* 1 .*recorded.*Next"):
        sk.sample(model, (4, 3), sampler=name, steps=5, noise=sk.Recorded(start[None]), x_init=start)
    with pytest.raises(IndexError, match=r"initial normal.*none was recorded.*Next"):
        sk.sample(model, (4, 3), sampler=name, steps=1, noise=sk.Recorded([start]), device=device)
    plan = sk.plan(name, sk.VP(), steps=3)
    noise = sk.Recorded([start] * (max(plan.draws) + 1))
    with pytest.raises(IndexError, match=r"sample id 4 was asked for"):
        sk.sample(model, (5, 3), sampler=plan, noise=noise, x_init=torch.zeros(5, 3))


# -- failures -------------------------------------------------------------------------------------------


def failing(process, rows, below=0.5, value=math.nan, **options):
    """A network that fails for some rows once t < below."""

    def net(x, t):
        out = 0.3 * x
        bad = (t < below) & torch.isin(
            torch.arange(len(x), device=x.device), torch.tensor(rows, device=x.device)
        )
        return torch.where(bad[:, None], value, out)

    return sk.Denoiser(net, process, **{"predicts": "x0", "data_std": 1.0, **options})


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_a_failing_network_is_named(name, value, device):
    model = failing(sk.VP(), [2, 5], value=value)
    plan = sk.plan(name, sk.VP(), steps=10)
    with pytest.raises(sk.errors.NonFiniteError) as error:
        sk.sample(model, (7, 3), sampler=plan, device=device)
    message = str(error.value)
    solution = error.value.solution
    step = int(solution.failed_step[2])
    failing_at = next(k for k, ins in enumerate(plan.instructions) if getattr(ins, "t", 1.0) < 0.5)
    states = (ins.out for ins in plan.instructions[failing_at:] if ins.out.startswith("x["))
    assert next(states) == f"x[{step}]"  # the first state that the failure reaches
    first = plan.instructions[failing_at].t
    for words in (
        "2 of 7 samples are not finite",
        f"first: sample 2 at step {step}, t = {plan.times[step]:g} of {name!r}",
        f"Likely cause: the network returned NaN or infinity at a finite state, t = {first:g}",
        "Next:",
    ):
        assert words in message
    run = sk.sample(model, (7, 3), sampler=plan, device=device, throw=False)
    assert torch.equal(solution.status, run.status)
    assert run.status.tolist() == [0, 0, int(Status.NON_FINITE), 0, 0, int(Status.NON_FINITE), 0]
    assert run.failed_step.tolist() == [-1, -1, step, -1, -1, step, -1]
    assert float(run.failed_at[2]) == plan.times[step]
    assert not run.ok
    assert "2 of 7 failed" in repr(run)
    good = sk.sample(failing(sk.VP(), []), (7, 3), sampler=plan, device=device)
    keep = [0, 1, 3, 4, 6]
    assert torch.equal(run.x[keep], good.x[keep])  # the others are unaffected


def test_the_adaptive_sampler_passes_everything_on(device, capsys):
    calls = []
    model = gaussian(3).denoiser(sk.VP())
    options = {"sampler": "rk45", "device": device, "dtype": torch.float64}
    run = sk.sample(model, (4, 3), callback=lambda k, t, x: calls.append(k), progress=True, **options)
    assert len(calls) == run.stats.steps
    assert capsys.readouterr().err
    assert torch.equal(sk.sample(model, (1, 3), first_id=3, **options).x[0], run.x[3])
    assert sk.sample(model, (0, 3), **options).x.shape == (0, 3)
    x_init = torch.zeros(2, 3, requires_grad=True)
    assert sk.sample(model, (2, 3), sampler="rk45", x_init=x_init).x.requires_grad
    with pytest.raises(sk.errors.NonFiniteError, match="sample 9 "):
        sk.sample(failing(sk.VP(), [0]), (2, 3), first_id=9, **options)


def test_failures_in_tiles_name_absolute_ids(device):
    model = failing(sk.VP(), [1])  # row 1 of each tile: ids 9, 17
    with pytest.raises(sk.errors.NonFiniteError, match="2 of 10 samples are not finite; first: sample 9 "):
        sk.sample(model, (10, 3), sampler="ddim", steps=5, batch_size=8, first_id=9, device=device)


def test_a_diverging_run_blames_the_steps(device):
    model = sk.Denoiser(lambda x, t: x.square() * 1e30, sk.VP(), predicts="x0", data_std=1.0)
    with pytest.raises(sk.errors.NonFiniteError, match=r"Likely cause: .*Next: more steps") as error:
        sk.sample(model, (3, 2), sampler="ddim", steps=9, device=device)
    assert "infinity" in str(error.value) or "too few steps" in str(error.value)


def test_noise_that_cannot_be_replayed_leaves_the_step_unknown(device):
    model = failing(sk.VP(), [2])
    run = sk.sample(model, (4, 3), sampler="ddpm", noise=sk.TorchNoise(), throw=False, device=device)
    assert run.status.tolist() == [0, 0, 1, 0]
    assert run.failed_step.tolist() == [-1] * 4
    assert bool(run.failed_at.isnan().all())


# -- gradients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_x_init(name, device):
    """Backprop through the executor against central differences."""
    target, process = mixture(), sk.VP()
    plan = sk.plan(name, process, steps=6, data_std=0.9)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(4, 2, generator=g, dtype=torch.float64).to(device)
    direction = torch.randn(4, 2, generator=g, dtype=torch.float64).to(device)

    def value(x_init):
        return (
            sk.sample(target.denoiser(process), (4, 2), sampler=plan, x_init=x_init, seed=3).x.square().sum()
        )

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    h = 1e-5
    difference = (value(x + h * direction) - value(x - h * direction)) / (2 * h)
    assert float((gradient * direction).sum()) == pytest.approx(float(difference), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", ["ddpm", "kernel-quadrature"])
def test_gradients_and_given_states_in_tiles(name, device):
    """x_init and its gradient through padded tiles that do not start at first_id."""
    model = mixture().denoiser(sk.VP())
    x = sk.VP().prior((11, 2), 5, dtype=torch.float64, device=device)
    found = []
    for size in (None, 4):
        leaf = x.clone().requires_grad_()
        run = sk.sample(model, (11, 2), sampler=name, steps=4, x_init=leaf, first_id=6, batch_size=size)
        (gradient,) = torch.autograd.grad(run.x.square().sum(), leaf)
        found.append((run.x.detach(), gradient))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("name", ["ddim", "kernel-quadrature", "ddpm", "heun"])
def test_gradients_reach_parameters_on_request(name, device):
    net = torch.nn.Linear(3, 3).double().to(device)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net

        def forward(self, x, t):
            return self.inner(x)

    model = sk.Denoiser(Net(), sk.VP(), predicts="x0", data_std=1.0)
    options = {"sampler": name, "steps": 4, "dtype": torch.float64, "batch_size": 2}
    quiet = sk.sample(model, (3, 3), **options)
    assert not quiet.x.requires_grad
    loud = sk.sample(model, (3, 3), gradient="backprop", **options)
    assert torch.equal(loud.x, quiet.x)
    loud.x.square().sum().backward()
    weight = net.weight
    with torch.no_grad():
        h, found = 1e-6, float(weight.grad[0, 1])
        values = []
        for sign in (1, -1):
            weight[0, 1] += sign * h
            values.append(float(sk.sample(model, (3, 3), **options).x.square().sum()))
            weight[0, 1] -= sign * h
    assert found == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_no_graph_is_kept_unless_asked(name, device):
    net = torch.nn.Linear(3, 3).to(device)
    model = sk.Denoiser(lambda x, t: net(x), sk.VP(), predicts="x0", data_std=1.0)
    assert not sk.sample(model, (3, 3), sampler=name, steps=3, device=device).x.requires_grad
    x_init = torch.zeros(3, 3, requires_grad=True)
    assert sk.sample(model, (3, 3), sampler=name, steps=3, x_init=x_init.to(device)).x.requires_grad
    with torch.no_grad():
        assert not sk.sample(model, (3, 3), sampler=name, steps=3, x_init=x_init.to(device)).x.requires_grad
    with torch.inference_mode():
        assert bool(torch.isfinite(sk.sample(model, (3, 3), sampler=name, steps=3, device=device).x).all())


@pytest.mark.parametrize("name", NAMES)
def test_a_run_in_inference_mode_spoils_no_later_gradient(name, device):
    """What is kept between runs is not made of inference tensors."""
    model = mixture().denoiser(sk.VP())
    options = {"sampler": name, "steps": 3, "device": device}
    with torch.inference_mode():
        before = sk.sample(model, (2, 2), **options).x
    x_init = torch.zeros(2, 2, device=device, requires_grad=True)
    sk.sample(model, (2, 2), x_init=x_init, **options).x.sum().backward()
    assert bool(torch.isfinite(x_init.grad).all())
    assert torch.equal(sk.sample(model, (2, 2), **options).x, before)


# -- what the network may do ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_network_may_return_its_own_input(name, device):
    """Nothing is overwritten before its last use: an aliasing network equals a copying one."""
    aliased, copied = (
        sk.sample(
            sk.Denoiser(net, sk.VP(), predicts="eps", data_std=1.0),
            (4, 3),
            sampler=name,
            seed=1,
            device=device,
        )
        for net in (lambda x, t: x, lambda x, t: x.clone())
    )
    assert torch.equal(aliased.x, copied.x)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_may_return_another_precision(name, device):
    """A float64 or bfloat16 output does not change the state's dtype."""
    for out in (torch.float64, torch.bfloat16):
        model = sk.Denoiser(lambda x, t, out=out: (0.3 * x).to(out), sk.VP(), predicts="eps", data_std=1.0)
        assert sk.sample(model, (4, 3), sampler=name, steps=4, device=device).x.dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_a_network_that_works_in_place_is_refused(name, device):
    """x.mul_(...) would change the state, or the caller's x_init, behind the plan's back."""
    model = sk.Denoiser(lambda x, t: x.mul_(0.5), sk.VP(), predicts="x0", data_std=1.0)
    with pytest.raises(ValueError, match=r"changed its input.* in place.*Likely cause.*Next.*x\.clone\(\)"):
        sk.sample(model, (4, 3), sampler=name, steps=4, device=device)


def test_no_more_is_held_than_the_method_needs():
    """Registers are dropped after their last reader: ddim holds the state and one prediction."""
    from sdekit.samplers.execute import Program

    most = {}
    for name in NAMES:
        program = Program(sk.plan(name, sk.VP(), steps=30))
        alive, most[name] = {"x[0]"}, 0
        for line in program.lines:
            alive.add(line.ins.out)
            most[name] = max(most[name], len(alive))
            alive -= set(line.dead)
        assert alive == {"x[30]"}
    assert most["ddim"] == most["ddpm"] == 3
    assert max(most.values()) <= 12


def test_modules_give_their_device_and_are_called_as_modules(device):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(0.5))
            self.calls = 0

        def forward(self, x, t):
            self.calls += 1
            return self.scale * x

    net = Net().to(device)
    run = sk.sample(sk.Denoiser(net, sk.VP(), data_std=1.0), (2, 3), sampler="ddim", steps=5)
    assert run.x.device.type == device.type
    assert net.calls == run.stats.nfe == 5


def test_the_sampler_may_be_an_object_a_name_or_a_plan(device):
    target = gaussian(3)
    model = target.denoiser(sk.VP())
    plan = sk.plan("ddim", sk.VP(), steps=5, eta=0.3)
    runs = [
        sk.sample(model, (3, 3), device=device, **options).x
        for options in (
            {"sampler": plan},
            {"sampler": "ddim", "steps": 5, "eta": 0.3},
            {"sampler": sk.samplers.DDIM(eta=0.3), "steps": 5},
            {"sampler": SAMPLERS["ddim"](), "nfe": 5, "eta": 0.3},
        )
    ]
    assert all(torch.equal(runs[0], x) for x in runs[1:])


@pytest.mark.parametrize("process", PROCESSES)
def test_sample_runs_the_plan_that_certify_certifies(process, device):
    """Targets tell both what they know of themselves: the same data_std, hence the same nodes."""
    law, target = PROCESSES[process], sk.Gaussian([0.1, 0.0, -0.1], variance=[0.01, 0.04, 0.0004])
    for name in NAMES:
        for grid in (None, "quantile", "karras"):
            run = sk.sample(
                target.denoiser(law), (1, 3), sampler=name, steps=5, grid=grid, save="all", device=device
            )
            plan = sk.plan(
                name, law, steps=5, grid=grid, data_std=target.data_std, data_spread=target.data_spread
            )
            assert tuple(run.ts.tolist()) == plan.times
            if plan.affine:
                certified = sk.certify(name, target, law, steps=5, grid=grid).plan
                assert repr(certified.instructions) == repr(plan.instructions)
