"""Guards at the public door that no single module owns; each was once a silent wrong answer or raw error."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

import sdekit as sk
from sdekit.errors import ArgumentOrderError

VP = sk.VP()
TARGET = sk.Gaussian(torch.zeros(2), variance=1.0)
MODEL = TARGET.denoiser(VP)


@pytest.mark.parametrize(
    "call",
    [VP.drift, VP.diffusion, VP.marginal, MODEL.x0, MODEL.score, TARGET.score(VP)],
    ids=["drift", "diffusion", "marginal", "x0", "score", "score of a law"],
)
def test_swapped_arguments_of_methods_are_named(call) -> None:
    with pytest.raises(ArgumentOrderError, match="takes .x, t., state first.*swapped arguments"):
        call(0.5, torch.rand(3, 2))


@pytest.mark.parametrize("solver", ["euler", "heun", "rk45"])
def test_a_drift_that_changes_its_state_in_place_is_refused(solver) -> None:
    with pytest.raises(ValueError, match="drift changed its input x in place.*Next: .*clone"):
        sk.solve(sk.ODE(lambda x, t: x.mul_(-1.0)), torch.ones(1, 1), (0.0, 1.0), solver=solver)


def test_numpy_states_are_accepted_by_the_methods_of_processes_and_models() -> None:
    x = np.ones((3, 2))
    assert VP.drift(x, 0.5).shape == (3, 2)
    assert VP.marginal(x, 0.5).mean.shape == (3, 2)
    assert MODEL.score(x, 0.5).dtype == torch.float64


@pytest.mark.parametrize("first_id", [-1, 2**63 - 5])
def test_first_id_leaves_room_for_every_id(first_id) -> None:
    with pytest.raises(ValueError, match="first_id must"):
        sk.sample(MODEL, (8, 2), first_id=first_id, steps=2)
    with pytest.raises(ValueError, match="first_id must"):
        sk.solve(VP, torch.zeros(8, 2), (0.0, 1.0), steps=2, first_id=first_id)


def test_a_tiny_dt_is_refused_before_memory_is() -> None:
    with pytest.raises(ValueError, match="Likely cause: dt in other units"):
        sk.solve(VP, torch.zeros(1, 2), (0.0, 1.0), dt=1e-12)


def test_an_index_time_needs_a_table_or_unit_time() -> None:
    with pytest.raises(ValueError, match="time='index'.*Next"):
        sk.Denoiser(lambda x, t: x, sk.EDM(), time="index")


def test_the_signature_of_a_callable_package_is_its_function() -> None:
    assert list(inspect.signature(sk.certify).parameters)[:3] == ["sampler", "target", "process"]


def test_a_law_does_not_share_the_tensors_it_was_made_from() -> None:
    values, basis = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    law = sk.Gaussian(torch.zeros(2), eigen=(values, basis))
    values.zero_()
    basis.zero_()
    torch.testing.assert_close(law.cov, torch.diag(torch.tensor([1.0, 2.0], dtype=torch.float64)))


@pytest.mark.parametrize("process", [sk.VP(), sk.EDM()], ids=repr)
def test_closed_form_scores_keep_their_digits_at_the_clean_end(process) -> None:
    """(alpha D - x)/sigma^2 in float32 would be off by 1e-4 to 1e-3 here."""
    law = sk.Gaussian(torch.tensor([0.3, -1.0]), variance=torch.tensor([1.0, 0.04]))
    x = torch.linspace(-1, 1, 20).reshape(10, 2)
    exact = law.score(process)(x.double(), process.t_min)
    torch.testing.assert_close(
        law.denoiser(process).score(x, process.t_min).double(), exact, rtol=1e-6, atol=1e-6
    )


def test_eta_one_is_allowed_at_any_ratio_of_noise() -> None:
    for sigma_max in np.linspace(80, 157, 12):
        sk.plan("ddim", sk.EDM(1e-9, float(sigma_max)), steps=1, eta=1.0)


def test_per_sample_control_has_no_outliers() -> None:
    """A vanishing error estimate of one sample in two dimensions must not lead to a careless step."""
    law = sk.Gaussian(torch.tensor([0.3, -1.0]), torch.tensor([[1.0, 0.5], [0.5, 0.6]]))
    flow = sk.probability_flow(VP, law.denoiser(VP))
    x = VP.prior((300, 2), 1, dtype=torch.float64)
    run = {tol: sk.solve(flow, x, (1.0, 1e-3), solver="rk45", rtol=tol, atol=tol).x for tol in (1e-5, 1e-10)}
    assert float((run[1e-5] - run[1e-10]).abs().max()) < 10 * 1e-5
