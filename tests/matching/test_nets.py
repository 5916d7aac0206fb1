"""Networks: shapes, reproducible weights, smooth time features."""

from __future__ import annotations

import pytest
import torch

from sdekit.errors import ShapeError, UnknownNameError
from sdekit.matching.nets import MLP, TimeFeatures, UNet


def awake(net):
    """The net with its zero-initialised layers filled, so that every path carries signal."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    return net


@pytest.mark.parametrize("event", [3, (3,), (2, 5), (1, 4, 4)])
def test_mlp_takes_any_event_shape(event, device, dtype):
    shape = (event,) if isinstance(event, int) else event
    net = MLP(event, width=16, depth=2).to(device=device, dtype=dtype)
    x = torch.randn(7, *shape, device=device, dtype=dtype)
    t = torch.rand(7, device=device, dtype=dtype)
    assert net(x, t).shape == x.shape
    assert not net(x, t).any()  # the output layer starts at zero
    assert awake(net)(x, t).any()


@pytest.mark.parametrize(
    ("channels", "size", "options"),
    [
        (1, (8, 8), {}),
        (3, (16, 8), {"attention": True, "blocks": 2}),
        (2, (12, 12), {"multipliers": (1, 2, 3), "width": 12}),
        (1, (7, 5), {"multipliers": (2,)}),
    ],
)
def test_unet_takes_any_channels_and_even_sizes(channels, size, options, device, dtype):
    net = UNet(channels, **{"width": 8} | options).to(device=device, dtype=dtype)
    x = torch.randn(4, channels, *size, device=device, dtype=dtype)
    out = awake(net)(x, torch.rand(4, device=device, dtype=dtype))
    assert out.shape == x.shape
    assert out.dtype == dtype


@pytest.mark.parametrize("make", [lambda: MLP(4, width=8, depth=2), lambda: UNet(1, width=4, attention=True)])
def test_every_parameter_and_the_time_matter(make):
    net = awake(make().double())
    x = torch.randn(3, 4) if isinstance(net, MLP) else torch.randn(3, 1, 4, 4)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    out = net(x.double(), t)
    out.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in net.parameters())
    assert not torch.allclose(out, net(x.double(), t.flip(0)))


@pytest.mark.parametrize("make", [lambda seed: MLP(4, seed=seed), lambda seed: UNet(seed=seed)])
def test_a_seed_fixes_the_initial_weights_and_leaves_torch_alone(make):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    a, b, c = (make(seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


def test_the_default_unet_is_small():
    assert 1e5 < sum(p.numel() for p in UNet().parameters()) < 1e6


def test_log_features_are_hyperbolic_tangents_with_slope_at_most_one_half():
    t = torch.logspace(-5, 4, 400, dtype=torch.float64)
    features = TimeFeatures().double()
    out = features(t)
    tau = torch.logspace(-3, 3, 32, dtype=torch.float64)
    expected = torch.tanh(torch.log(t[:, None] / tau) / 2)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    slope = out.diff(dim=0) / torch.log(t).diff()[:, None]
    assert float(slope.max()) <= 0.5
    assert float(slope.min()) > 0
    assert features(torch.zeros(1, dtype=torch.float64)).tolist() == [[-1.0] * 32]


def test_negative_levels_give_nan_under_log_and_values_under_real():
    level = torch.tensor([-1.0, 1.0])
    assert TimeFeatures()(level).isnan().all(dim=1).tolist() == [True, False]
    real = TimeFeatures(16, kind="real")(level)
    assert real.shape == (2, 16)
    torch.testing.assert_close(real[0, :8], -real[1, :8])
    torch.testing.assert_close(real[0, 8:], real[1, 8:])


def test_bad_input_is_named():
    t = torch.ones(2)
    with pytest.raises(ShapeError, match=r"must have shape \(B, 3\).*got \(2, 4\)"):
        MLP(3)(torch.ones(2, 4), t)
    with pytest.raises(ShapeError, match=r"H and W divisible by 2 \(2 levels\).*\(2, 1, 7, 8\)"):
        UNet(width=8)(torch.ones(2, 1, 7, 8), t)
    with pytest.raises(ShapeError, match=r"x\[:, None\] adds the channel axis"):
        UNet(width=8)(torch.ones(2, 8, 8), t)
    with pytest.raises(UnknownNameError, match="unknown kind of time features 'sine'"):
        MLP(3, features="sine")
    with pytest.raises(ValueError, match="width must be a whole number >= 1"):
        MLP(3, width=0)
    with pytest.raises(ValueError, match="at least one level"):
        UNet(multipliers=())
