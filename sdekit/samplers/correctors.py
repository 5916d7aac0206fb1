r"""Predictor-corrector sampling: a reverse-SDE step, then steps that keep the marginal at the new time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from sdekit._math import sqrt, value
from sdekit.errors import check_count, check_positive, unknown_name
from sdekit.samplers.base import Path, Sampler
from sdekit.samplers.grids import Grid
from sdekit.samplers.plan import Apply, Combine, Evaluate, Instruction, combine, state
from sdekit.samplers.reverse_sde import Ancestral, EulerMaruyama, ReverseDiffusion
from sdekit.samplers.score_sde import score_sde

__all__ = ["PredictorCorrector"]

_PREDICTORS: dict[str, Sampler | None] = {
    "reverse-diffusion": ReverseDiffusion(),
    "euler-maruyama": EulerMaruyama(),
    "ancestral": Ancestral(),
    "none": None,
}
#: Evaluations of one correction; "re-noise": those of the predictor.
_CORRECTORS = {"langevin-norm": 1, "langevin": 1, "ula": 1, "mala": 3, "re-noise": 1}
_COMPAT = (None, "score_sde")


@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    """A step p from t to t' by ``predictor``, then ``corrections`` steps of ``corrector``, its score at t'.

        p  = (2 - a) x + v score(x, t) + sqrt(v) xi           "reverse-diffusion", the default predictor
        x' = p + e score(p, t') + sqrt(2 e) z                 every Langevin corrector

    with a, v of the forward step (see `reverse_sde`) and b = a^2 (1 for VE, 1 - beta on DDPM's table).

        corrector       e, the step
        langevin-norm   2 b (snr |z| / |score|)^2, norms of each sample; not affine, so `certify` refuses it
        langevin        2 b (snr sigma')^2
        ula             step sigma'^2
        mala            step sigma'^2, accepted or refused by the Metropolis rule; not affine
        re-noise        none: x = a p + sqrt(v) z back to t, and the predictor again (Lugmayr et al. 2022)

    mala takes the ratio of densities from the score, by Simpson's rule along the line of the proposal
    (Sjoberg et al. 2023), so that it needs no density; 3 evaluations a correction. It is exact where the
    score is cubic on the line, Gaussian data included. `sdekit.solvers.MALA` uses the density itself.

    predictor: also "euler-maruyama", "ancestral" (see those samplers), or "none", which multiplies x by
    alpha'/alpha and leaves all the work to the corrector ("ula" is then annealed Langevin dynamics).
    In few dimensions the score of one sample is often near zero, and langevin-norm's step then has no bound:
    on N(0, I_2) under VP the output's deviation was 2.2 after 50 steps and 8.7 after 2000; in 64 dimensions
    it was 1.04. There take "langevin" or "ula".

    The corrector samples p_{t'}, so its score is taken at t', not at the previous, noisier time.
    snr: 0.16 for CIFAR-10, 0.17 CelebA, 0.075 LSUN and larger.

    compat="score_sde": the steps of the published code on VP, sub-VP and VE, with its quirks (see `score_sde`
    in `sdekit.samplers.score_sde`); its norms are averaged over the batch, so that samples depend on each
    other and on ``batch_size``: leave that out.

    Raises UnknownNameError for a name, ValueError for a number that does not fit or a corrector that
    compat or the predictor does not have.
    """

    name: ClassVar[str] = "pc"
    order: ClassVar[float] = 1
    evaluations: ClassVar[int] = 2
    reference: ClassVar[str] = "Song et al. 2021 (score SDE), algorithms 1, 4 and 5"
    stochastic: ClassVar[bool] = True
    needs_finite_drift: ClassVar[bool] = True
    default_grid: ClassVar[Grid] = Grid("standard")

    snr: float = 0.16
    corrections: int = 1
    predictor: str = "reverse-diffusion"
    corrector: str = "langevin-norm"
    step: float = 0.1
    compat: str | None = None

    def __post_init__(self) -> None:
        check_positive(self.snr, "snr")
        check_positive(self.step, "step")
        check_count(self.corrections, "corrections")
        for kind, known in (("predictor", _PREDICTORS), ("corrector", _CORRECTORS)):
            if getattr(self, kind) not in known:
                raise unknown_name(kind, getattr(self, kind), known)
        if self.compat not in _COMPAT:
            raise unknown_name("compat", self.compat, ["score_sde"])
        if self.corrector == "re-noise" and self.predictor == "none":
            raise ValueError(
                "corrector 're-noise' predicts again after noising, but predictor is 'none'. Next: "
                "predictor='reverse-diffusion'."
            )
        if self.corrector == "ula" and self.step >= 2:
            raise ValueError(
                f"step = {self.step:g} is too long for corrector 'ula', whose steps are unstable from 2 (in "
                f"units of sigma'^2). Next: step=0.1, or corrector='mala', which refuses what goes too far."
            )
        if self.compat and self.corrector not in ("langevin-norm", "langevin"):
            raise ValueError(
                f"compat='score_sde' has the correctors 'langevin-norm' and 'langevin', got "
                f"{self.corrector!r}. Next: leave compat out."
            )

    @property
    def cost(self) -> int:
        return (self.predictor != "none") + self.corrections * _CORRECTORS[self.corrector]

    def recipe(self, path: Path) -> Iterator[Instruction]:
        if self.compat:
            yield from score_sde(path, self.predictor, self.corrector, self.snr, self.corrections)
            return
        n, draw = self.corrections, 0
        for i in range(path.steps):
            x = f"p[{i + 1},0]"
            for ins in self._predict(path, i, state(i), x, draw):
                yield ins
                draw += len(ins.noise) if isinstance(ins, Combine) else 0
            for k in range(n):
                out = state(i + 1) if k + 1 == n else f"p[{i + 1},{k + 1}]"
                for ins in self._correct(path, i, x, out, draw):
                    yield ins
                    draw += len(ins.noise) if isinstance(ins, Combine) else isinstance(ins, Apply)
                x = out

    def _predict(self, path: Path, i: int, x: str, out: str, draw: int) -> Iterator[Instruction]:
        """The predictor from register x at node i to register out at node i + 1."""
        sampler = _PREDICTORS[self.predictor]
        if sampler is None:
            yield combine(out, [(path[i + 1].alpha / path[i].alpha, x)])
            return
        names = {state(0): x, state(1): out}
        for ins in sampler.recipe(Path(path.nodes[i : i + 2], path.data_std, path.data_spread, path.process)):
            name = names.setdefault(ins.out, f"{ins.out}->{out}")
            if isinstance(ins, Evaluate):
                yield replace(ins, out=name, x=names[ins.x])
            elif isinstance(ins, Combine):
                terms = [(w, names[register]) for w, register in ins.terms]
                yield combine(name, terms, [(c, draw + k) for c, k in ins.noise])

    def _correct(self, path: Path, i: int, x: str, out: str, draw: int) -> Iterator[Instruction]:
        """One correction from register x to register out, both at node i + 1."""
        a, v = path.back(i, i + 1)
        if self.corrector == "re-noise":
            yield combine(f"up->{out}", [(a, x)], [(sqrt(v), draw)])
            yield from self._predict(path, i, f"up->{out}", out, draw + 1)
            return
        score, sigma = f"c->{out}", path[i + 1].sigma
        yield path.evaluate(score, x, i + 1, "score")
        if self.corrector == "langevin-norm":
            yield Apply(
                out, (x, score), "langevin-norm", {"snr": self.snr, "scale": value(a * a), "draw": draw}
            )
            return
        fixed = self.corrector in ("ula", "mala")
        e = self.step * sigma**2 if fixed else 2 * a * a * (self.snr * sigma) ** 2
        mala = self.corrector == "mala"
        y, middle = (f"y->{out}", f"m->{out}") if mala else (out, "")
        yield combine(y, [(1.0, x), (e, score)], [(sqrt(2 * e), draw)])
        if mala:
            yield combine(middle, [(0.5, x), (0.5, y)])
            yield path.evaluate(f"c({middle})", middle, i + 1, "score")
            yield path.evaluate(f"c({y})", y, i + 1, "score")
            line = (x, y, score, f"c({middle})", f"c({y})")
            yield Apply(out, line, "metropolis", {"step": value(e), "draw": draw + 1})
