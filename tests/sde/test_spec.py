"""Processes are values: frozen, equal by parameters, written as they are made, rebuilt from JSON."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import pytest
import torch
from hypothesis import given

from sdekit.errors import UnknownNameError
from sdekit.sde import EDM, VE, VP, Cosine, DiscreteVP, GaussianDiffusion, RectifiedFlow, SubVP, from_spec

from .processes import Trigonometric, ddpm, processes


@given(processes)
def test_json_round_trip(process):
    again = from_spec(json.loads(json.dumps(process.spec())))
    assert type(again) is type(process)
    assert again.spec() == process.spec()
    t = 0.3 * process.t_max
    assert float(again.sigma(t)) == float(process.sigma(t))
    if not isinstance(process, Trigonometric):
        assert again == process
        assert hash(again) == hash(process)


def test_repr_is_the_constructor():
    assert repr(VP()) == "VP(beta_min=0.1, beta_max=20.0)"
    assert repr(SubVP(0.2, 10)) == "SubVP(beta_min=0.2, beta_max=10.0)"
    assert repr(VE(0.01, 90)) == "VE(sigma_min=0.01, sigma_max=90.0)"
    assert repr(EDM()) == "EDM(sigma_min=0.002, sigma_max=80.0)"
    assert (repr(Cosine()), repr(RectifiedFlow(t_min=1e-5))) == ("Cosine()", "RectifiedFlow(t_min=1e-05)")
    assert repr(ddpm()) == "DiscreteVP(<1000 alphas_cumprod, 0.9999 to 4.03583e-05>)"
    for p in (VP(t_min=1e-4), SubVP(), VE(), EDM(0.1, 3.0), Cosine(), RectifiedFlow()):
        assert eval(repr(p)) == p


def test_frozen_equal_copied():
    p = VP()
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.beta_min = 1.0
    assert p != VP(0.2, 20)
    assert p != SubVP()
    assert p != VP(t_min=1e-5)
    for q in (p, ddpm(10)):
        assert copy.deepcopy(q) == q == pickle.loads(pickle.dumps(q))
        assert float(copy.deepcopy(q).sigma(1.0)) == float(q.sigma(1.0))
    assert DiscreteVP([0.9, 0.5]) == DiscreteVP(torch.tensor([0.9, 0.5], dtype=torch.float64))
    assert DiscreteVP([0.9, 0.5]).alphas_cumprod == (0.9, 0.5)


def test_a_users_dataclass_round_trips():
    @dataclasses.dataclass(frozen=True, repr=False)
    class Power(GaussianDiffusion):
        exponent: float = 2.0

        def alpha(self, t):
            return 1.0 - t**self.exponent

        def sigma(self, t):
            return t

    p = Power(3.0)
    assert repr(p) == "Power(exponent=3.0)"
    assert from_spec(p.spec()) == p


def test_errors_name_the_way_out():
    class Own(GaussianDiffusion):
        def __init__(self, k):
            super().__init__()
            self.k = k

    with pytest.raises(TypeError, match="frozen dataclass whose fields are its parameters"):
        Own(2).spec()
    with pytest.raises(UnknownNameError, match=r"unknown process 'VPP'\. Nearest: 'VP'"):
        from_spec({"name": "VPP"})
    with pytest.raises(ValueError, match=r"spec of 'VP' does not fit its class: .*gamma"):
        from_spec({"name": "VP", "gamma": 1})


def test_a_users_class_does_not_replace_one_of_ours():
    class VE(GaussianDiffusion):
        pass

    with pytest.raises(TypeError, match=r"another process is named 'VE'. Next: rename"):
        VE().spec()
    assert repr(from_spec({"name": "VE"})) == "VE(sigma_min=0.01, sigma_max=50.0)"
