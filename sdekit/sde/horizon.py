"""The least noisy time of training and likelihood, which lies below that of sampling."""

from __future__ import annotations

from sdekit.sde.gaussian import GaussianDiffusion

__all__ = ["first_training_time"]


def first_training_time(process: GaussianDiffusion) -> float:
    """Least noisy time of training: 1e-5 where sampling ends by 1e-3 of unit time, else t_min.

    (VP, SubVP, VE, Cosine and RectifiedFlow the former; EDM, DiscreteVP and processes that end earlier
    the latter.) Song et al. 2021 (arXiv:2011.13456), appendix C.
    """
    short = process.t_max == 1.0 and process.t_min <= 1e-3
    return min(1e-5, process.t_min) if short else float(process.t_min)
