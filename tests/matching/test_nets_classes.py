"""Networks of classes, and attention by level."""

from __future__ import annotations

import pytest
import torch

from sdekit.errors import ShapeError
from sdekit.matching import load, save
from sdekit.matching.labels import ClassDenoiser
from sdekit.matching.nets import MLP, UNet
from sdekit.sde import VP
from tests.matching.test_nets import awake

EVENT = (1, 4, 4)


def make(kind, classes=3, **options):
    if kind is MLP:
        return awake(MLP(EVENT, width=16, depth=1, classes=classes, seed=0, **options))
    return awake(UNet(1, width=8, classes=classes, seed=0, **options))


def points(n=5):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, *EVENT, generator=generator), torch.rand(n, generator=generator)


@pytest.mark.parametrize("kind", [MLP, UNet])
def test_each_row_follows_its_own_label(kind):
    """Row i of a mixed batch is row i of a batch of one class, and the classes differ."""
    net, (x, t) = make(kind), points()
    label = torch.tensor([0, 1, 2, 3, 1])
    mixed = net(x, t, label)
    single = [net(x, t, torch.full((5,), k)) for k in range(4)]
    torch.testing.assert_close(mixed, torch.stack([single[k][i] for i, k in enumerate(label.tolist())]))
    torch.testing.assert_close(net(x, t), single[3])  # 3 is "no class"
    apart = [float((a - b).detach().abs().max()) for i, a in enumerate(single) for b in single[:i]]
    assert min(apart) > 1e-3


@pytest.mark.parametrize("kind", [MLP, UNet])
def test_every_class_gets_its_gradient(kind):
    net, (x, t) = make(kind), points()
    net(x, t, torch.tensor([0, 1, 1, 3, 3])).square().sum().backward()
    moved = net.table.weight.grad.abs().sum(dim=1) > 0
    assert moved.tolist() == [True, True, False, True]


@pytest.mark.parametrize("kind", [MLP, UNet])
def test_classes_leave_the_initial_weights_of_the_rest_alone(kind):
    with_classes, without = make(kind).state_dict(), make(kind, classes=None).state_dict()
    assert with_classes.keys() - without.keys() == {"table.weight"}
    assert all(torch.equal(with_classes[k], v) for k, v in without.items())


def test_bad_labels_are_named():
    (x, t), net = points(), make(MLP)
    with pytest.raises(TypeError, match="made without classes, and got a label"):
        make(MLP, classes=None)(x, t, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"label must be int64 of shape \(5,\).*got torch.float32"):
        net(x, t, torch.zeros(5))
    with pytest.raises(ShapeError, match=r"of shape \(1,\)"):
        net(x, t, torch.zeros(1, dtype=torch.int64))
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match=rf"0, ..., 2, or be 3 for no class, got {wrong}"):
            net(x, t, torch.tensor([0, 1, wrong, 0, 0]))
    with pytest.raises(ValueError, match="classes must be a whole number >= 1"):
        MLP(2, classes=0)


def test_a_model_of_one_class_is_the_network_with_its_label():
    net, (x, t) = make(UNet), points()
    model = ClassDenoiser(net, VP(), predicts="v", time="sigma", data_std=0.7, data_spread=0.9)
    one = model.given(2)
    assert (one.predicts, one.time, one.data_std, one.data_spread) == ("v", "sigma", 0.7, 0.9)
    assert one.process is model.process
    assert model.classes == 3
    sigma = VP().sigma(t.double()).float()
    torch.testing.assert_close(one.v(x, t), net(x, sigma, torch.full((5,), 2)))
    torch.testing.assert_close(model.v(x, t), net(x, sigma))
    assert torch.equal(model.given(torch.tensor(2)).v(x, t), one.v(x, t))
    assert one.net.training == net.training


@pytest.mark.parametrize("label", [torch.tensor([0, 1]), 1.0, True, "cat", None, torch.tensor(1.0)])
def test_one_class_at_a_time(label):
    model = ClassDenoiser(make(MLP), VP())
    with pytest.raises(TypeError, match=r"label must be one whole number.*one call of given\(label\)"):
        model.given(label)


def test_a_class_that_is_not_there_is_named():
    model = ClassDenoiser(make(MLP), VP())
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match=rf"label must lie in 0, ..., 2, got {wrong}"):
            model.given(wrong)
    with pytest.raises(TypeError, match="MLP has none"):
        ClassDenoiser(make(MLP, classes=None), VP())


def test_models_of_classes_come_back_from_disk(tmp_path):
    model = ClassDenoiser(make(UNet, attention=(0, 1)).eval(), VP(), data_std=1.0)
    back = load(save(model, tmp_path / "m.safetensors"))
    (x, t) = points()
    assert isinstance(back, ClassDenoiser)
    assert back.net.config == model.net.config
    assert torch.equal(back.given(1).x0(x, t), model.given(1).x0(x, t))
    with pytest.raises(TypeError, match=r"save the ClassDenoiser it came from"):
        save(model.given(1), tmp_path / "one.safetensors")


@pytest.mark.parametrize(("attention", "blocks"), [(False, 0), (True, 1), ((1,), 3), ((0, 1), 6), ((), 0)])
def test_attention_is_where_it_was_asked_for(attention, blocks):
    """One block a level down and two up: three more by level named."""
    net = UNet(1, width=8, attention=attention)
    names = [name for name, _ in net.named_parameters() if name.endswith("qkv.weight")]
    assert len(names) == blocks + (not isinstance(attention, bool) and len(attention) > 0)


def test_gradients_reach_every_parameter_of_attention_by_level():
    net = awake(UNet(1, width=4, multipliers=(1, 2), attention=(0, 1)))
    x = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    net(x, torch.ones(2)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in net.parameters())


def test_levels_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match=r"attention must name levels among 0, ..., 1.*got 2"):
        UNet(1, width=8, attention=(2,))


@pytest.mark.parametrize("groups", [1, 3, 8, 32])
def test_groups_need_not_divide_the_channels(groups):
    x, t = torch.randn(2, 1, 6, 6), torch.ones(2)
    assert UNet(1, width=6, multipliers=(1, 3), groups=groups)(x, t).shape == x.shape
