"""Contracts and messages of the noise objects."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from sdekit.errors import ShapeError
from sdekit.noise import Noise, Philox, Recorded, TorchNoise, as_noise

LIKE, IDS = torch.zeros(4, 3), torch.arange(4)


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1, -(2**63), np.int64(7), torch.tensor(7), True])
def test_seeds(seed: int) -> None:
    noise = Philox(seed)
    assert noise.seed == int(seed) % 2**64
    assert noise == Philox(int(seed) % 2**64)
    assert hash(noise) == hash(Philox(int(seed)))
    assert eval(repr(noise)) == noise
    assert pickle.loads(pickle.dumps(noise)) == noise


@pytest.mark.parametrize("seed", [1.5, "1", None, torch.Generator(), [1]])
def test_a_seed_must_be_an_integer(seed: object) -> None:
    with pytest.raises(TypeError, match=r"seed must be an integer.*TorchNoise\(generator\)"):
        Philox(seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_a_seed_must_fit(seed: int) -> None:
    with pytest.raises(ValueError, match=r"must fit 64 bits.*mod 2\*\*64"):
        Philox(seed)


@pytest.mark.parametrize("noise", [Philox(0), Recorded(torch.zeros(2, 4, 3))])
@pytest.mark.parametrize("draw", [-1, 2**32])
def test_draws_are_bounded(noise: Noise, draw: int) -> None:
    with pytest.raises(ValueError, match=r"draw must be in \[0, 2\*\*32\), got .*number draws from 0"):
        noise.normal(draw, LIKE, IDS)


def test_the_last_draw_exists() -> None:
    for event in (1, 2, 3, 5):
        assert bool(torch.isfinite(Philox(0).normal(2**32 - 1, torch.zeros(2, event), IDS[:2])).all())


def test_a_draw_must_be_an_integer() -> None:
    with pytest.raises(TypeError):
        Philox(0).normal(0.5, LIKE, IDS)  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", [Philox(0), Recorded(torch.zeros(2, 4, 3), torch.zeros(4, 3))])
@pytest.mark.parametrize("like", [torch.zeros(4, 3, dtype=torch.int64), torch.tensor(1.0)])
def test_the_state_must_be_a_floating_batch(noise: Noise, like: torch.Tensor) -> None:
    for call in (lambda: noise.normal(0, like, IDS), lambda: noise.initial(like, IDS)):
        with pytest.raises(
            ShapeError, match=r"like must be a floating tensor \(B, \*event\).*the state itself"
        ):
            call()


@pytest.mark.parametrize(
    "ids",
    [
        IDS.int(),
        IDS.double(),
        IDS[:3],
        IDS[None],
        torch.tensor(0),
        torch.empty(4, dtype=torch.int64, device="meta"),
    ],
)
def test_ids_must_fit_the_batch(ids: torch.Tensor) -> None:
    for noise in (Philox(0), Recorded(torch.zeros(2, 4, 3))):
        with pytest.raises(
            ShapeError, match=r"ids must be int64 of shape \(4,\) on cpu.*torch.arange\(4, device='cpu'\)"
        ):
            noise.normal(0, LIKE, ids)


# TorchNoise


def test_torch_noise_is_randn_in_call_order(device: torch.device, dtype: torch.dtype) -> None:
    like, ids = LIKE.to(device, dtype), IDS.to(device)
    noise = TorchNoise(torch.Generator(device).manual_seed(5))
    got = [noise.initial(like, ids), noise.normal(9, like, ids), noise.normal(9, like, ids)]
    generator = torch.Generator(device).manual_seed(5)
    expected = [torch.randn(4, 3, generator=generator, dtype=dtype, device=device) for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    torch.manual_seed(8)
    with pytest.raises(TypeError, match=r"takes a torch.Generator, got int.*Philox\(seed\)"):
        TorchNoise(0)  # type: ignore[arg-type]
    got = [TorchNoise().normal(0, like, ids)]
    torch.manual_seed(8)
    assert torch.equal(got[0], torch.randn(4, 3, dtype=dtype, device=device))


def test_torch_noise_names_both_devices() -> None:
    with pytest.raises(
        ValueError, match=r"generator lives on cpu, the state on meta.*torch.Generator\('meta'\)"
    ):
        TorchNoise(torch.Generator()).normal(0, LIKE.to("meta"), IDS.to("meta"))


# Recorded


def test_recorded_gives_rows_by_id(device: torch.device) -> None:
    draws = torch.randn(3, 6, 2, 5, dtype=torch.float64)
    start = torch.randn(6, 2, 5, dtype=torch.float64)
    ids = torch.tensor([5, 0, 3], device=device)
    like = torch.zeros(3, 2, 5, device=device)
    for given in (draws, list(draws), draws.numpy(), [d.numpy() for d in draws]):
        noise = Recorded(given, initial=start)
        got = noise.normal(2, like, ids)
        assert (got.dtype, got.device) == (like.dtype, like.device)
        assert torch.equal(got.cpu(), draws[2][ids.cpu()].float())
        assert torch.equal(noise.initial(like.double(), ids).cpu(), start[ids.cpu()])
        assert noise == Recorded(draws, start)
    assert noise != Recorded(draws)
    assert noise != Recorded(draws[:2], start)
    assert noise != Recorded(draws + 1, start)
    assert noise != Philox(0)
    assert repr(noise) == "Recorded(3 draws of (6, 2, 5), initial=(6, 2, 5))"
    assert repr(Recorded([])) == "Recorded(0 draws of (), initial=None)"


def test_recorded_replays_any_source() -> None:
    source = Philox(3)
    noise = Recorded([source.normal(k, LIKE, IDS) for k in range(2)], source.initial(LIKE, IDS))
    some = torch.tensor([2, 1])
    assert torch.equal(noise.normal(1, LIKE[:2], some), source.normal(1, LIKE[:2], some))
    assert torch.equal(noise.initial(LIKE[:2], some), source.initial(LIKE[:2], some))


def test_recorded_says_what_is_missing() -> None:
    noise = Recorded(torch.zeros(2, 4, 3))
    with pytest.raises(
        IndexError, match=r"draw 2 was asked for, but only 2 were recorded.*record more draws"
    ):
        noise.normal(2, LIKE, IDS)
    with pytest.raises(IndexError, match=r"sample id 4 was asked for, but draw 1 holds ids 0 to 3.*first_id"):
        noise.normal(1, LIKE, IDS + 1)
    with pytest.raises(IndexError, match=r"sample id -1 was asked for"):
        noise.normal(1, LIKE, IDS - 1)
    with pytest.raises(IndexError, match=r"initial normal and none was recorded.*initial=\.\.\."):
        noise.initial(LIKE, IDS)
    with pytest.raises(
        ShapeError, match=r"draw 0 must have shape \(N, \*event\), event \(2,\), got \(4, 3\)"
    ):
        noise.normal(0, LIKE[:, :2], IDS)
    with pytest.raises(ShapeError, match="the initial normal must have shape"):
        Recorded([], torch.zeros(4)).initial(LIKE, IDS)


# as_noise


def test_as_noise() -> None:
    noise = TorchNoise()
    assert as_noise(3) == Philox(3)
    assert as_noise() == Philox(0)
    assert as_noise(3, noise) is noise
    for wrong in (3, torch.Generator(), torch.zeros(2, 4, 3), "philox"):
        with pytest.raises(
            TypeError, match=r"noise must be a Noise .*seed=.*TorchNoise\(generator\).*Recorded"
        ):
            as_noise(0, wrong)  # type: ignore[arg-type]


def test_a_source_of_ones_own_needs_one_method() -> None:
    class Ones(Noise):
        def normal(self, draw: int, like: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return torch.full_like(like, float(draw))

    assert Ones().initial(LIKE.double(), IDS)[0, 0] == 2**32 - 1
    assert as_noise(0, Ones()).normal(3, LIKE, IDS)[0, 0] == 3
    with pytest.raises(TypeError, match="abstract"):
        Noise()  # type: ignore[abstract]
