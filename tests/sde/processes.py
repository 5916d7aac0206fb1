"""Processes for property tests, with their parameters drawn by hypothesis."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from sdekit.sde import EDM, VE, VP, Cosine, DiscreteVP, GaussianDiffusion, RectifiedFlow, SubVP

F64 = torch.float64


class Trigonometric(GaussianDiffusion):
    """A user's process: alpha and sigma only, everything else by default."""

    def alpha(self, t):
        return torch.cos(1.5 * t)

    def sigma(self, t):
        return torch.sin(1.5 * t)


def ddpm(n: int = 1000) -> DiscreteVP:
    """The linear table of Ho et al. 2020, scaled to n steps (and kept below 1 where they are few)."""
    return DiscreteVP.from_betas((torch.linspace(1e-4, 0.02, n, dtype=F64) * (1000 / n)).clamp(max=0.9))


ALL = (VP(), SubVP(), VE(), Cosine(), EDM(), RectifiedFlow(), ddpm(), Trigonometric())
LIBRARY = ALL[:-1]
IDS = [type(p).__name__ for p in ALL]

numbers = st.floats(0.05, 3.0)
processes = st.one_of(
    st.builds(lambda a, b: VP(a, a + b), numbers, st.floats(0.5, 30)),
    st.builds(lambda a, b: SubVP(a, a + b), numbers, st.floats(0.5, 30)),
    st.builds(lambda a, b: VE(a, a * (1 + b)), st.floats(1e-3, 0.5), st.floats(1, 5000)),
    st.builds(lambda a, b: EDM(a, a * (1 + b)), st.floats(1e-3, 0.5), st.floats(1, 5000)),
    st.just(Cosine()),
    st.just(RectifiedFlow()),
    st.just(Trigonometric()),
    st.builds(ddpm, st.integers(50, 1000)),
)
fractions = st.floats(0.0, 1.0)


def at(process: GaussianDiffusion, u: float) -> float:
    """The time at fraction u between t_min and t_max."""
    return process.t_min + u * (process.t_max - process.t_min)
