"""Names of samplers: the table behind `sdekit.samplers()` and the strings that `sample` takes."""

from __future__ import annotations

from dataclasses import dataclass, fields

from sdekit.errors import unknown_name
from sdekit.samplers.adams import DEIS, IPNDM, LMS
from sdekit.samplers.annealed import AnnealedLangevin
from sdekit.samplers.base import Sampler
from sdekit.samplers.churn import EDMStochastic
from sdekit.samplers.correctors import PredictorCorrector
from sdekit.samplers.ddim import DDIM
from sdekit.samplers.dpmpp import DPMpp2M, DPMpp3M, SDEDPMpp2M, SDEDPMpp3M
from sdekit.samplers.er_sde import ERSDE
from sdekit.samplers.exponential import ExponentialAdams
from sdekit.samplers.flow import Euler, Heun
from sdekit.samplers.gaussian_split import GaussianSplit
from sdekit.samplers.pndm import PNDM
from sdekit.samplers.restart import Restart
from sdekit.samplers.reverse_sde import DDPM, Ancestral, EulerMaruyama, ReverseDiffusion
from sdekit.samplers.sa import SASolver
from sdekit.samplers.seeds import Seeds
from sdekit.samplers.single_step import DPM2, DPM3, KDPM2, DPMpp2S, KDPM2Ancestral
from sdekit.samplers.trigonometric import KernelQuadrature, TrigAdams
from sdekit.samplers.unipc import UniPC2, UniPC3

__all__ = ["SAMPLERS", "SamplerTable", "as_sampler", "samplers"]

SAMPLERS: dict[str, type[Sampler]] = {
    cls.name: cls
    for cls in (
        KernelQuadrature,
        TrigAdams,
        GaussianSplit,
        EulerMaruyama,
        ReverseDiffusion,
        Ancestral,
        DDPM,
        DDIM,
        Euler,
        Heun,
        EDMStochastic,
        KDPM2,
        KDPM2Ancestral,
        LMS,
        IPNDM,
        PNDM,
        DEIS,
        DPM2,
        DPM3,
        DPMpp2S,
        DPMpp2M,
        Restart,
        DPMpp3M,
        SDEDPMpp2M,
        SDEDPMpp3M,
        UniPC2,
        UniPC3,
        ExponentialAdams,
        SASolver,
        ERSDE,
        Seeds,
        PredictorCorrector,
        AnnealedLangevin,
    )
}


def as_sampler(sampler: object) -> Sampler:
    """A sampler object from a name or an object. Raises UnknownNameError with the nearest names."""
    if isinstance(sampler, Sampler):
        return sampler
    if isinstance(sampler, type) and issubclass(sampler, Sampler):
        raise TypeError(
            f"sampler must be a name or a sampler object, got the class {sampler.__name__}. Next: "
            f"{sampler.__name__}()."
        )
    if not isinstance(sampler, str):
        raise TypeError(
            f"sampler must be a name or a sampler object, got {sampler!r}. Next: 'ddim', or DDIM(eta=0.5)."
        )
    if sampler not in SAMPLERS:
        raise unknown_name("sampler", sampler, [*SAMPLERS, "rk45"])
    return SAMPLERS[sampler]()


@dataclass(frozen=True)
class Row:
    """One sampler of the table."""

    name: str
    cls: str
    order: float
    stochastic: bool
    evaluations: int | str
    grid: str
    reference: str


class SamplerTable(tuple[Row, ...]):
    """The samplers as rows; prints as a table."""

    def __str__(self) -> str:
        titles = [f.name.replace("cls", "class") for f in fields(Row)]
        cells = [[str(getattr(row, f.name)) for f in fields(Row)] for row in self]
        widths = [max(len(line[k]) for line in [titles, *cells]) for k in range(len(titles))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
            for line in [titles, *cells]
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])

    __repr__ = __str__


def samplers() -> SamplerTable:
    """Every sampler: name, class, declared order, stochastic or not, evaluations a step, reference.

    The last, "rk45", is adaptive: it has no plan and runs through `sdekit.solve`.
    """
    adaptive = Row(
        "rk45", "DormandPrince", 5, False, "adaptive", "-", "Dormand and Prince 1980; score SDE, appendix D.1"
    )
    rows = [
        Row(
            name,
            cls.__name__,
            cls.order,
            cls.stochastic,
            cls.evaluations,
            cls.default_grid.name,
            cls.reference,
        )
        for name, cls in SAMPLERS.items()
    ]
    return SamplerTable([*rows, adaptive])
