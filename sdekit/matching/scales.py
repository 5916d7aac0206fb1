"""Noise levels and the law of training from the data alone: how far noise must go, how fine, where most.

Everything is equivariant: data times c have lengths times c, and mean_log_sigma + ln c.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sdekit.errors import ShapeError, check_count, check_state
from sdekit.matching.data import as_data, permutation
from sdekit.matching.data import scales as _moments
from sdekit.matching.losses.times import P_MEAN, P_STD, log_normal_times
from sdekit.matching.ncsn import levels as _levels
from sdekit.matching.ncsn import max_distance
from sdekit.sde.diffusion import EDM
from sdekit.sde.gaussian import GaussianDiffusion

__all__ = ["DataScales", "scales_of"]

#: sigma_data, sigma_min of Karras et al. 2022, table 1: the scale of which their other numbers are multiples.
REFERENCE_STD, REFERENCE_MIN = 0.5, 0.002
#: Values of one step: at least 16 (fewer are classes, not levels) and at most those of 16 bits.
FEWEST, MOST = 16, 2**16
#: Elements in which a step is looked for.
LOOKED_AT = 2**20


@dataclass(frozen=True)
class DataScales:
    """What `scales_of` returns; ``print`` shows each number with its reason.

    data_std, data_spread: sqrt(tr C/D) and sqrt(tr C^2/tr C), see `sdekit.Denoiser`. sigma_max, sigma_min:
    range of noise levels. mean_log_sigma, std_log_sigma: P_mean and P_std of EDM. All but the last two are
    in the units of the data. dimension: D. reasons: a sentence for each.
    """

    data_std: float
    data_spread: float
    sigma_max: float
    sigma_min: float
    mean_log_sigma: float
    std_log_sigma: float
    dimension: int
    reasons: dict[str, str] = field(repr=False, compare=False)

    def process(self) -> EDM:
        """`EDM` with these sigma_min and sigma_max."""
        return EDM(self.sigma_min, self.sigma_max)

    def times(self, process: GaussianDiffusion) -> Callable[[Tensor], Tensor]:
        """ln(sigma/alpha) ~ N(mean_log_sigma, std_log_sigma^2), the ``times`` of `sdekit.fit` and losses."""
        return log_normal_times(process, self.mean_log_sigma, self.std_log_sigma)

    def levels(self, overlap: float = 0.5) -> Tensor:
        """(L,) float64: `sdekit.ncsn.levels` from sigma_max to sigma_min, NCSNv2's technique 2.

        Raises ValueError in few dimensions, where neighbours overlap more at any ratio.
        """
        return _levels(self.sigma_max, self.sigma_min, dimension=self.dimension, overlap=overlap)

    def __str__(self) -> str:
        return "\n".join(
            f"{name:15s}{getattr(self, name):<11.5g}{reason}" for name, reason in self.reasons.items()
        )


def scales_of(data: Any, *, rows: int = 4096, seed: int = 0) -> DataScales:
    r"""Noise levels and EDM's law of training, from data (N, *event):

        sigma_max       max_ij ||y_i - y_j||                  NCSNv2's technique 1
        sigma_min       q/sqrt(12) for data in steps of q,    the deviation of rounding;
                        0.004 data_std otherwise              EDM: 0.002 for data_std 0.5
        mean_log_sigma  -1.2 + ln(data_std/0.5)               EDM: -1.2, table 1
        std_log_sigma   1.2

    EDM's loss of F depends on sigma/data_std alone, so data times c and the law of ln sigma moved by ln c
    have the same loss at each quantile: that is the shift. For 8-bit images in [-1, 1] both rules of
    sigma_min say 0.002. A noise level below the step of the data would only teach that they are steps.

    Parameters
    ----------
    data
        (N, *event) floating, N >= 2; as training will see them.
    rows
        Data that sigma_max compares in pairs; of more, that many are chosen by the seed, and the greatest
        distance found is a lower bound.

    Raises
    ------
    ShapeError: integer data, no event axis or one datum. NonFiniteError: NaN or infinity. ValueError: all
    data equal.

    References
    ----------
    Song and Ermon 2020 (arXiv:2006.09011), techniques 1 and 2; Karras et al. 2022 (arXiv:2206.00364),
    table 1 and section 5.
    """
    x = check_state(data, "data")
    x = as_data(x, x)
    if len(x) < 2:
        raise ShapeError(
            f"data must have shape (N, *event) with N >= 2, since scales are differences, got "
            f"{tuple(x.shape)}. Likely cause: one image without its batch axis. Next: all training data."
        )
    std, spread = _moments(x)
    count = check_count(rows, "rows", 2)
    chosen = x if len(x) <= count else x[permutation(len(x), seed)[:count].to(x.device)]
    flat = x.reshape(len(x), -1)
    still = int((flat == flat[:1]).all(dim=0).sum())
    step = _step(flat)
    low = step / math.sqrt(12) if step else std * REFERENCE_MIN / REFERENCE_STD
    high = max_distance(chosen)
    size = f"{len(x)} data" if chosen is x else f"{count} of {len(x)} data, hence at least"
    reasons = {
        "data_std": f"sqrt(tr C/D) over {flat.shape[1]} elements"
        + (f", {still} of them constant" if still else ""),
        "data_spread": "sqrt(tr C^2/tr C), the deviation along the main directions",
        "sigma_max": f"largest distance between two of {size}",
        "sigma_min": f"rounding to steps of {step:.4g}, step/sqrt(12)" if step else "0.004 data_std, as EDM",
        "mean_log_sigma": "-1.2 + ln(data_std/0.5), EDM's P_mean for this scale",
        "std_log_sigma": "EDM's P_std, free of units",
    }
    mean = P_MEAN + math.log(std / REFERENCE_STD)
    return DataScales(std, spread, high, low, mean, P_STD, flat.shape[1], reasons)


def _step(flat: Tensor) -> float | None:
    """q where all elements lie on a + q k, k whole, with at least `FEWEST` values in use; else None."""
    rows = max(1, LOOKED_AT // flat.shape[1])
    some = flat[:: -(-len(flat) // rows)].double()
    values: Tensor = some.unique()  # type: ignore[no-untyped-call]
    if not FEWEST <= len(values) <= min(MOST, some.numel() // 4):
        return None
    gaps = values.diff()
    in_steps = gaps / gaps.min()
    whole = in_steps.round()
    if float(whole.sum()) > MOST or float((in_steps - whole).abs().max()) > 0.05:
        return None
    return float(gaps.sum() / whole.sum())
