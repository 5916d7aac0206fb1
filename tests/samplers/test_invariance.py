"""A sample is the same alone and in any batch, bit for bit, with closed-form targets."""

from __future__ import annotations

import pytest
import torch

import sdekit as sk
from tests.samplers.problems import NAMES, PROCESSES, STOCHASTIC, gaussian, mixture

STEPS = 6
ODD = [17, 3, 40, 63]


def empirical() -> sk.Empirical:
    data = torch.randn(200, 2, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return sk.Empirical(data, 0.2)


TARGETS = {
    "gaussian": gaussian(5),
    "rotated gaussian": gaussian(7, rotated=True),
    "mixture": mixture(),
    "empirical": empirical(),
}


def run(target, process, name, n, *, dtype, device, **options):
    shape = (n, *target.event_shape)
    options = {"steps": STEPS, **options}
    model = target.denoiser(process)
    return sk.sample(model, shape, sampler=name, seed=11, dtype=dtype, device=device, **options).x


@pytest.mark.parametrize("state", [torch.float32, torch.float64])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_sample_17_alone_is_sample_17_of_64(name, target, state, device):
    law = TARGETS[target]
    for process in ("VP", "RectifiedFlow") if state == torch.float32 else ("RectifiedFlow",):
        everybody = run(law, PROCESSES[process], name, 64, dtype=state, device=device)
        for i in ODD:
            alone = run(law, PROCESSES[process], name, 1, first_id=i, dtype=state, device=device)
            assert torch.equal(alone[0], everybody[i]), (process, i)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", NAMES)
def test_any_split_of_the_batch_on_any_process(name, process, device):
    law, target = PROCESSES[process], TARGETS["rotated gaussian"]
    # Kernels know no process: the second dtype is tried on one.
    for state in (torch.float32, torch.float64) if process == "VP" else (torch.float32,):
        whole = run(target, law, name, 37, dtype=state, device=device, end="clean")
        parts, start = [], 0
        for n in (1, 2, 3, 5, 7, 19):
            parts.append(run(target, law, name, n, dtype=state, device=device, first_id=start, end="clean"))
            start += n
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("name", NAMES)
def test_tiles_and_unaligned_first_id(name, device):
    law, target = PROCESSES["VP"], TARGETS["mixture"]
    whole = run(target, law, name, 50, dtype=torch.float32, device=device)
    for size in (1, 7, 16, 64):
        tiled = run(target, law, name, 50, dtype=torch.float32, device=device, batch_size=size)
        assert torch.equal(tiled, whole)
        part = run(target, law, name, 22, dtype=torch.float32, device=device, batch_size=size, first_id=13)
        assert torch.equal(part, whole[13:35])


@pytest.mark.parametrize("name", NAMES)
def test_threads_change_nothing(name, device):
    target = gaussian(40, rotated=True)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(run(target, PROCESSES["VP"], name, 300, dtype=torch.float32, device=device))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("name", NAMES)
def test_ids_beyond_32_bits(name, device):
    target, first = TARGETS["gaussian"], 2**40 + 5
    pair = run(target, PROCESSES["VP"], name, 2, dtype=torch.float32, device=device, first_id=first)
    second = run(target, PROCESSES["VP"], name, 1, dtype=torch.float32, device=device, first_id=first + 1)
    other = run(target, PROCESSES["VP"], name, 1, dtype=torch.float32, device=device, first_id=6)
    assert torch.equal(pair[1:], second)
    assert not torch.equal(second, other)


@pytest.mark.parametrize("name", NAMES)
def test_float32_follows_float64(name, device):
    target = TARGETS["mixture"]
    single, double = (
        run(target, PROCESSES["VP"], name, 16, dtype=dtype, device=device)
        for dtype in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-3)


def test_a_network_sees_tiles_of_one_size_aligned_to_ids(device):
    seen = []

    def net(x, t):
        seen.append(tuple(x.shape))
        return 0.5 * x

    model = sk.Denoiser(net, PROCESSES["VP"], predicts="x0", data_std=1.0)
    x = sk.sample(model, (10, 3), sampler="ddim", steps=2, batch_size=8, first_id=5, device=device).x
    assert seen == [(8, 3)] * 4  # tiles 0..7 and 8..15, two evaluations each
    again = sk.sample(model, (3, 3), sampler="ddim", steps=2, batch_size=8, first_id=12, device=device).x
    assert torch.equal(again, x[7:10])


def test_the_same_tile_gives_the_same_bits_to_a_network_that_mixes_rows(device):
    """Batch norms and BLAS make rows depend on their tile: equal tiles must then be made of equal rows."""

    def net(x, t):
        return x - x.mean(dim=0, keepdim=True)

    model = sk.Denoiser(net, PROCESSES["VP"], predicts="x0", data_std=1.0)
    whole = sk.sample(model, (32, 3), sampler="ddpm", steps=3, batch_size=8, device=device).x
    part = sk.sample(model, (11, 3), sampler="ddpm", steps=3, batch_size=8, first_id=10, device=device).x
    assert torch.equal(part, whole[10:21])


@pytest.mark.parametrize("name", STOCHASTIC)
def test_recorded_noise_in_padded_tiles(name, device):
    """Padding asks the noise for no rows that were not recorded."""
    target = TARGETS["gaussian"]
    plan = sk.plan(name, PROCESSES["VP"], steps=3)
    g = torch.Generator().manual_seed(0)
    draws = torch.randn(max(plan.draws) + 1, 5, 5, generator=g, dtype=torch.float64)
    noise = sk.Recorded(draws, initial=torch.randn(5, 5, generator=g, dtype=torch.float64))
    whole, tiled = (
        sk.sample(
            target.denoiser(PROCESSES["VP"]),
            (5, 5),
            sampler=plan,
            noise=noise,
            batch_size=size,
            device=device,
        ).x
        for size in (None, 4)
    )
    assert torch.equal(whole, tiled)


@pytest.mark.parametrize("name", NAMES)
def test_permuted_rows(name, device):
    """Recorded noise and initial states permuted together permute the samples, bit for bit."""
    target, plan = TARGETS["mixture"], sk.plan(name, PROCESSES["VP"], steps=4)
    g = torch.Generator().manual_seed(0)
    draws = torch.randn(max(plan.draws, default=0) + 1, 9, 2, generator=g, dtype=torch.float64)
    start = torch.randn(9, 2, generator=g, dtype=torch.float64)
    order = torch.randperm(9, generator=g)
    model = target.denoiser(PROCESSES["VP"])
    first = sk.sample(model, (9, 2), sampler=plan, noise=sk.Recorded(draws), x_init=start, device=device).x
    again = sk.sample(
        model, (9, 2), sampler=plan, noise=sk.Recorded(draws[:, order]), x_init=start[order], device=device
    ).x
    assert torch.equal(again, first[order])
