"""Denoising score matching: the score of noised data from the noise that was added."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from sdekit._typing import Number, State
from sdekit.errors import ShapeError, check_state, unknown_name
from sdekit.matching.losses.fields import Score, at_time, normals, rows, squared
from sdekit.matching.losses.times import (
    TimeLaw,
    first_training_time,
    time_density,
    training_times,
    uniform,
)
from sdekit.matching.losses.weights import Weighting, weight
from sdekit.noise import Noise, Purpose
from sdekit.score.model import Denoiser
from sdekit.score.predictions import components
from sdekit.sde.rows import constant

__all__ = ["denoising", "likelihood_weighted", "multi_noise", "one_noise"]

LEVEL_WEIGHTINGS = ("sigma^2", "none")


def denoising(
    model: Denoiser,
    x0: State,
    *,
    t: Tensor | None = None,
    weighting: Weighting = "native",
    times: TimeLaw = None,
    stratified: bool = True,
    reweight: bool = False,
    seed: int = 0,
    draw: int = 0,
    noise: Noise | None = None,
) -> Float[Tensor, " B"]:
    r"""Denoising score matching at many noise levels, one value a sample:

        w(t) || net(x_t, t) - k ||^2,   x_t = alpha_t x0 + sigma_t eps,   eps ~ N(0, I),

    k what the network predicts of this very x0 and eps: eps, x0, v = alpha eps - sigma x0, the score
    -eps/sigma, the velocity (dalpha/dt) x0 + (dsigma/dt) eps, or F of an "edm" network. The minimiser is
    E[k | x_t], from which the score of p_t follows exactly; the norm is summed over the event.

    Parameters
    ----------
    model
        A `Denoiser`; its network gets gradients.
    x0
        Clean data (B, *event), in the network's dtype and on its device.
    t
        Times (B,); drawn by `training_times` unless given.
    weighting
        "native": w = 1, and sigma^2 for score networks, whose target is unbounded at small noise;
        for eps networks Ho et al.'s L_simple, for "edm" Karras et al.'s unit weight on F.
        "noise" or "sigma^2": the error of eps whatever is predicted, sigma^2 weighting of the score.
        "likelihood": g^2 on the error of the score, see `likelihood_weighted`.
        "edm": (rho^2 + s^2)/(rho s)^2 on the error of x0, rho = sigma/alpha, s the model's data_std; unit
        weight on F. "min-snr": min(SNR, 5) on the error of x0, see `min_snr`.
        A callable: w(t) itself on the network's own prediction, (B,) float64 -> (B,); a pair
        (prediction, callable): on the error of that prediction, "x0", "eps", "v", "score", "velocity" or "F".
    times, stratified
        Law of the times, see `training_times`.
    reweight
        Multiply by u(t)/p(t), p the density of the law of times and u that of the uniform one: importance
        sampling, whose expectation is that of uniform times (over the range of the law).
    seed, draw, noise
        Row i of the batch gets draw ``draw`` of sample i of Philox(seed) in the key of training, which no
        sampling run shares; ``noise`` gives eps instead. Times come from the seed.

    Returns
    -------
    (B,), in x0's dtype, at least float32.

    Raises
    ------
    ShapeError, NonFiniteError: x0 is not floating, not finite, or t is not (B,). UnknownNameError: an unknown
    weighting or law. ValueError: "edm" without data_std, reweight with t given.

    References
    ----------
    Vincent 2011 (doi:10.1162/NECO_a_00142), equation 11; Ho, Jain and Abbeel 2020 (arXiv:2006.11239),
    equation 14; Song et al. 2021 (arXiv:2011.13456), equation 7; Karras et al. 2022 (arXiv:2206.00364),
    table 1; Hang et al. 2023 (arXiv:2303.09556).
    """
    _check_model(model, "denoising")
    x0 = check_state(x0, "x0")
    count = x0.shape[0]
    eps = normals(x0, seed, draw, noise, Purpose.TRAINING)
    if t is None:
        t = training_times(
            model.process, count, law=times, stratified=stratified, seed=seed, draw=draw, device=x0.device
        )
    elif reweight:
        raise ValueError("reweight needs times drawn from a law, and t was given. Next: drop one of them.")
    if t.shape != (count,):
        raise ShapeError(f"t must have shape ({count},), one time for each row of x0, got {tuple(t.shape)}.")
    node = model.node(t)
    k0, k1 = components(model.kind, node, model.data_std)
    state = rows(node.alpha, x0) * x0 + rows(node.sigma, x0) * eps
    target = rows(k0, x0) * x0 + rows(k1, x0) * eps
    value = squared(model.native(state, node) - target)
    factor = weight(weighting, model, node)
    if reweight:
        even = time_density(model.process, t, "uniform")
        ratio = even / time_density(model.process, t, times)
        factor = ratio if factor is None else factor * ratio
    return value if factor is None else value * factor.to(value)


def likelihood_weighted(
    model: Denoiser,
    x0: State,
    *,
    times: str = "log-snr",
    stratified: bool = True,
    seed: int = 0,
    draw: int = 0,
    noise: Noise | None = None,
) -> Float[Tensor, " B"]:
    r"""Likelihood weighting, an unbiased estimate for each sample of

        1/2 int g(t)^2 E || s(x_t, t) + eps/sigma_t ||^2 dt     over the range of the times,

    which differs by a constant of the data from a bound of KL(data || model).
    Times come from ``times`` and are weighted by 1/p(t). Under "log-snr" p is proportional to g^2/sigma^2,
    and the value is (lambda_0 - lambda_1) ||error of eps||^2, of which no factor is large.

    Parameters, returns and errors as in `denoising`. Song, Durkan, Murray and Ermon 2021
    (arXiv:2101.09258), theorem 1.
    """
    _check_model(model, "likelihood_weighted")
    span = model.process.t_max - first_training_time(model.process)
    value = denoising(
        model, x0, weighting="likelihood", times=times, stratified=stratified, reweight=True,
        seed=seed, draw=draw, noise=noise,
    )  # fmt: skip
    return 0.5 * span * value


def one_noise(
    score: Score, x: State, sigma: Number, *, seed: int = 0, draw: int = 0, noise: Noise | None = None
) -> Float[Tensor, " B"]:
    r"""Denoising score matching at one noise level, without time:

        1/2 || s(x + sigma eps) + eps/sigma ||^2,   eps ~ N(0, I).

    The target is -eps/sigma = -(x_noised - x)/sigma^2, the score of N(x, sigma^2 I): it points back to the
    data. In the mean over eps, gradients are those of `explicit` on the Parzen density of the data.

    score: s(x), a callable of the state alone. x: (B, *event). sigma > 0: a number, in units of x.
    seed, draw, noise as in `denoising`. Returns (B,), at least float32. Raises ShapeError, NonFiniteError;
    ValueError for sigma <= 0. Vincent 2011 (doi:10.1162/NECO_a_00142), section 4.
    """
    x = check_state(x, "x")
    level = _levels(sigma)
    if level.numel() != 1:
        raise ShapeError(f"sigma must be one number, got shape {tuple(level.shape)}. Next: multi_noise.")
    eps = normals(x, seed, draw, noise, Purpose.TRAINING)
    s = float(level)
    return 0.5 * squared(at_time(score, x, None)(x + s * eps) + eps / s)


def multi_noise(
    score: Score,
    x: State,
    sigmas: Tensor,
    *,
    weighting: str = "sigma^2",
    stratified: bool = True,
    seed: int = 0,
    draw: int = 0,
    noise: Noise | None = None,
) -> Float[Tensor, " B"]:
    r"""Denoising score matching over noise levels sigma_1, ..., sigma_L (NCSN),

        w_k / 2 || s(x + sigma_k eps, sigma_k) + eps/sigma_k ||^2,   k uniform on 1, ..., L for each sample,

    with w = sigma^2, which makes the loss of every level of one size, or 1.

    Parameters
    ----------
    score
        s(x, sigma), the network of the noise level itself, sigma (B,).
    x
        Data (B, *event).
    sigmas
        (L,) levels > 0, in units of x; `sdekit.ncsn.levels` makes them.
    weighting
        "sigma^2" or "none"; a weight of your own multiplies the result of "none".
    stratified
        Spread the levels evenly over the batch, as in `training_times`.
    seed, draw, noise
        As in `denoising`.

    Returns
    -------
    (B,), at least float32.

    Raises
    ------
    ShapeError, NonFiniteError: data, levels or a score of the wrong kind. ValueError: a level <= 0.
    UnknownNameError: an unknown weighting.

    References
    ----------
    Song and Ermon 2019 (arXiv:1907.05600), equations 5 and 6.
    """
    x = check_state(x, "x")
    if weighting not in LEVEL_WEIGHTINGS:
        raise unknown_name("weighting of levels", weighting, LEVEL_WEIGHTINGS)
    levels = _levels(sigmas).to(x.device)
    u = uniform(len(x), stratified=stratified, seed=seed, draw=draw, device=x.device)
    sigma = levels[(u * len(levels)).long().clamp(max=len(levels) - 1)]
    eps = normals(x, seed, draw, noise, Purpose.TRAINING)
    scale = rows(sigma, x)
    error = at_time(score, x, sigma)(x + scale * eps) + eps / scale
    return 0.5 * squared(scale * error if weighting == "sigma^2" else error)


def _check_model(model: object, loss: str) -> None:
    if not isinstance(model, Denoiser):
        raise TypeError(
            f"{loss}(model, x0) takes a Denoiser, got {type(model).__name__}. Next: sdekit.Denoiser(net, "
            f"process, predicts=...), which says what the network predicts."
        )


def _levels(sigmas: object) -> Tensor:
    """(L,) float64. Raises ValueError for levels that are not positive."""
    levels = constant(sigmas, "sigma").flatten()
    if levels.numel() == 0 or not bool((levels > 0).all()):
        raise ValueError(f"noise levels must be one or more numbers > 0, got {sigmas!r}.")
    return levels
