"""What takes (x, t) is accepted, whatever signature it shows; what does not is named."""

from __future__ import annotations

import functools
import inspect

import pytest
import torch
from torch import nn

import sdekit as sk
from sdekit.errors import ArgumentOrderError

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class OfX(nn.Module):
    def forward(self, x):
        return 0.5 * x


class OfThree(nn.Module):
    def forward(self, x, t, y):
        return 0.5 * x + y


class OwnCall(OfX):
    def __call__(self, x, t):
        return self.forward(x)


class WrappedForward(nn.Module):
    @functools.wraps(OfThree.forward)
    def forward(self, x, t):
        return OfThree.forward(self, x, t, 0.0)


class Declared:
    __signature__ = inspect.Signature([inspect.Parameter("y", inspect.Parameter.POSITIONAL_ONLY)])

    def __call__(self, x, t):
        return 0.5 * x


def without_time():
    @functools.wraps(OfX.forward)
    def net(x, t):
        return OfX()(x)

    return net


def turned():
    def field(t, x):
        return 0.5 * x

    @functools.wraps(field)
    def net(x, t):
        return field(t, x)

    return net


def offloaded():
    """As accelerate does it: forward becomes a partial that shows the old one's signature."""
    net = OfThree()
    old = net.forward

    def forward(module, *args, **kwargs):
        return old(*args, **kwargs, y=0.0)

    net.forward = functools.update_wrapper(functools.partial(forward, net), old)
    return net


def hooked(net, more):
    net.register_forward_pre_hook(lambda module, args: (args[0], *more(args)))
    return net


@pytest.mark.parametrize(
    "net",
    [
        OwnCall(),
        WrappedForward(),
        Declared(),
        without_time(),
        turned(),
        offloaded(),
        hooked(OfX(), lambda args: ()),
        hooked(OfThree(), lambda args: (args[1], 0.0)),
    ],
    ids=["call", "forward", "declared", "wrapped", "turned", "accelerate", "fewer", "more"],
)
def test_networks_that_show_another_signature(net):
    """Each is called as net(x, t) and returns x/2, so each is a model of that prediction."""
    assert torch.equal(sk.Denoiser(net, sk.VP(), predicts="x0").x0(X, 0.5), 0.5 * X)


def test_hooks_of_all_modules():
    handle = nn.modules.module.register_module_forward_pre_hook(lambda module, args: args[:1])
    try:
        model = sk.Denoiser(OfX(), sk.VP(), predicts="x0")
        assert torch.equal(model.x0(X, 0.5), 0.5 * X)
    finally:
        handle.remove()
    with pytest.raises(TypeError, match="OfX cannot be"):
        sk.Denoiser(OfX(), sk.VP())


def test_wrappers_that_hand_everything_on_show_the_order_of_what_they_wrap():
    def field(t, x):
        return x

    with pytest.raises(ArgumentOrderError, match="lambda x, t"):
        sk.Denoiser(torch.no_grad()(field), sk.VP())
    with pytest.raises(TypeError, match=r"missing.*'y'.*net\(x, t, what else"):
        sk.Denoiser(OfThree(), sk.VP())
