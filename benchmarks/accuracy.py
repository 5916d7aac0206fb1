"""Error of the deterministic samplers to the exact probability-flow map, against evaluations.

Error of a sample: RMS distance to the end of the same trajectory, solved to 1e-8. Reported: the median over
128 samples, for closed-form targets on VP and EDM, and the geometric mean over them. The ratio compares the
default sampler on its default grid with the best *single* configuration (sampler and grid) of the others at
each number of evaluations.
"""

from __future__ import annotations

import math

import torch

import sdekit as sk

EVALUATIONS = (6, 8, 10, 15, 20, 30, 50)
OURS = ("kernel-quadrature", "trig-adams")
PEERS = ("ddim", "euler", "heun", "dpmpp-2m")
GRIDS = ("uniform-lambda", "karras", "quantile", "quadratic", "uniform-t")
SAMPLES = 128


def targets() -> dict[str, sk.Gaussian | sk.GaussianMixture | sk.Empirical]:
    """Closed-form laws: two Gaussians, mixtures in 2-D and 16-D, and the digits with a small bandwidth."""
    from sklearn.datasets import load_digits

    generator = torch.Generator().manual_seed(0)
    power = torch.arange(1, 65, dtype=torch.float64)
    angles = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    ring = torch.stack([angles.cos(), angles.sin()], dim=1)
    means = torch.randn(5, 16, generator=generator, dtype=torch.float64)
    digits = torch.tensor(load_digits().data[:400], dtype=torch.float64) / 8 - 1
    return {
        "gaussian d=64, k^-1": sk.Gaussian(torch.zeros(64), variance=1 / power),
        "gaussian d=64, k^-2": sk.Gaussian(torch.zeros(64), variance=16 / power**2),
        "ring of 8, d=2": sk.GaussianMixture(torch.full((8,), 1 / 8), ring, 0.01),
        "mixture of 5, d=16": sk.GaussianMixture(torch.full((5,), 0.2), means, 0.05),
        "digits, d=64": sk.Empirical(digits, bandwidth=0.1),
    }


def run() -> dict[str, object]:
    """{"errors": {target: {configuration: {nfe: median}}}, "ratio": {nfe: default / best peer}}."""
    torch.set_num_threads(2)
    errors: dict[str, dict[str, dict[int, float]]] = {}
    for label, target in targets().items():
        for process in (sk.VP(), sk.EDM()):
            model = target.denoiser(process)
            start = process.prior((SAMPLES, *target.event_shape), seed=1, dtype=torch.float64)
            flow = sk.probability_flow(process, model)
            print(f"{label} on {process}", flush=True)
            span = (process.t_max, process.t_min)
            exact = sk.solve(flow, start, span, solver="rk45", rtol=1e-8, atol=1e-8).x
            rows = errors.setdefault(f"{label}, {type(process).__name__}", {})
            for name, grid in [(n, None) for n in OURS] + [(n, g) for n in PEERS for g in GRIDS]:
                row = rows.setdefault(f"{name}{f' on {grid}' if grid else ''}", {})
                for nfe in EVALUATIONS:
                    x = sk.sample(
                        model, start.shape, sampler=name, nfe=nfe, grid=grid, x_init=start, throw=False
                    ).x
                    distance = (x - exact).square().flatten(1).mean(1).sqrt()
                    row[nfe] = float(distance.median())
    configurations = next(iter(errors.values()))
    means = {
        name: {
            n: math.exp(sum(math.log(rows[name][n]) for rows in errors.values()) / len(errors))
            for n in EVALUATIONS
        }
        for name in configurations
    }
    peers = [name for name in configurations if name not in OURS]
    best = {n: min(peers, key=lambda name: means[name][n]) for n in EVALUATIONS}
    return {
        "errors": errors,
        "geometric means": means,
        "best peer": best,
        "ratio": {o: {n: means[o][n] / means[best[n]][n] for n in EVALUATIONS} for o in OURS},
    }


if __name__ == "__main__":
    import json

    result = run()
    for key in ("ratio", "best peer", "geometric means"):
        print(key, json.dumps(result[key], indent=1))
