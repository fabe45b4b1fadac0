"""Is VMP calibrated? Simulation-based calibration of an LDS with unknown A, B, W, and a remedy.

    python -m examples.calibration

Parameters, states and data are drawn from the program itself; VMP is run on every data set; where
the truth falls among the draws should be uniform (Talts et al. 2018). Mean field between
states and parameters makes beliefs about parameters too narrow. The remedy is
`jopa_ppl.correct`: parameters from a widened belief, states exactly given each,
Pareto-smoothed weights. Writes ranks.png and summary.json to outputs/calibration/.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.infer import Predictive
from numpyro.infer.util import log_density
from tqdm.auto import tqdm

import jopa_ppl as jp

T, D = 40, 2
BINS = 10
COLOURS = {"VMP": "#0072B2", "corrected": "#E69F00"}


def lds(y=None, *, u, T, d=D):
    """An LDS whose prior is proper to draw from: A ~ N(0.6 I, 0.2^2), process noise near 0.5."""
    A = jp.latent("A", dist.Normal(0.6 * jnp.eye(d), 0.2).to_event(2))
    B = jp.latent("B", dist.Normal(jnp.zeros((d, 1)), 1.0).to_event(2))
    W = jp.latent("W", dist.Wishart(d + 4.0, rate_matrix=1.5 * jnp.eye(d)))
    x0 = jp.latent("x0", dist.MultivariateNormal(jnp.zeros(d), jnp.eye(d)))

    def step(x, now):
        u, y = now
        jp.observe("y", dist.Normal(x, 0.5).to_event(1), y)
        x = jp.latent("x", dist.MultivariateNormal(A @ x + B @ u, precision_matrix=W))
        return x, None

    jp.scan(step, x0, (u, y), length=T)


def quantities(draws: dict) -> dict[str, np.ndarray]:
    """The scalars that are ranked, by kind: {kind: (draws, elements)}."""
    A, B, W, x = (np.asarray(draws[n], float) for n in ("A", "B", "W", "x"))
    rows, columns = np.tril_indices(D)
    return {"A": A.reshape(len(A), -1), "B": B.reshape(len(B), -1), "W": W[:, rows, columns],
            "log|W|": np.linalg.slogdet(W)[1][:, None],
            "states": x[:, [0, T // 2, T - 2]].reshape(len(x), -1)}


def positions(draws: dict, truth: dict, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Posterior probability below the truth, {kind: (elements,)} in [0, 1]."""
    found = {}
    true = quantities({n: x[None] for n, x in truth.items()})
    for kind, values in quantities(draws).items():
        w = np.full(len(values), 1 / len(values)) if weights is None else weights
        found[kind] = ((values < true[kind]) * w[:, None]).sum(0)
    return found


def study(count: int, num_draws: int, temper: float, seed: int) -> tuple[dict, dict]:
    """Positions of the truth {method: {kind: (count, elements)}}, and what it cost."""
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(T, 1)).astype(np.float32)
    missing = rng.random((count, T)) < 0.05
    prior = Predictive(lds, num_samples=count)(jax.random.key(seed), u=u, T=T)
    y = np.array(prior["y"], np.float32)
    y[missing] = np.nan
    truths = {n: np.asarray(prior[n]) for n in ("A", "B", "W", "x")}
    vmp, found = jp.VMP(lds, tol=1e-8, progress=False), {"VMP": [], "corrected": []}
    score = jax.jit(lambda y, draws: jax.lax.map(
        lambda one: log_density(lds, (y,), {"u": u, "T": T}, one)[0], draws, batch_size=16))
    ks, joint_ks, ess, clock = [], [], [], {"VMP": [], "corrected": []}
    for i in tqdm(range(count), desc="data sets"):
        truth = {n: x[i] for n, x in truths.items()}
        begun = time.perf_counter()
        posterior = vmp.run(y[i], u=u, T=T)
        clock["VMP"].append(time.perf_counter() - begun)
        draws = posterior.sample(jax.random.key(i), (num_draws,))
        found["VMP"].append(positions(draws, truth))
        begun = time.perf_counter()
        fixed = jp.correct(posterior, num_draws, temper=temper, rng_key=jax.random.key(i))
        clock["corrected"].append(time.perf_counter() - begun)
        found["corrected"].append(positions(fixed.draws, truth, fixed.weights))
        ks.append(fixed.pareto_k)
        ess.append(fixed.ess)
        if i < 20:      # the plain weights of whole joint draws, to see why states are solved
            joint = score(y[i], draws)
            joint_ks.append(jp.psis(joint - posterior.log_prob(draws))[1])
    stacked = {m: {k: np.stack([p[k] for p in ps]) for k in ps[0]} for m, ps in found.items()}
    cost = {"seconds_median": {m: float(np.median(s)) for m, s in clock.items()},
            "seconds_first": {m: s[0] for m, s in clock.items()},
            "pareto_k": {"median": float(np.median(ks)), "above_0.7": float(np.mean(
                np.array(ks) > 0.7))}, "ess_median": float(np.median(ess)),
            "pareto_k_of_joint_draws": {"median": float(np.median(joint_ks)), "above_0.7": float(
                np.mean(np.array(joint_ks) > 0.7))}}
    return stacked, cost


def coverage(positions: np.ndarray, level: float) -> tuple[float, float]:
    """Share of truths inside the central interval, and its standard error over data sets."""
    inside = np.abs(positions - 0.5) <= level / 2
    each = inside.mean(1)
    return float(each.mean()), float(each.std() / np.sqrt(len(each)))


def draw(found: dict, path: Path) -> None:
    """Histograms of the truth's position, a column a kind; grey: 95 % of uniform histograms."""
    from matplotlib.figure import Figure

    kinds = list(found["VMP"])
    figure = Figure(figsize=(2.6 * len(kinds), 4.6), layout="constrained")
    grid = figure.subplots(2, len(kinds), sharex=True, sharey=True)
    count = len(found["VMP"][kinds[0]])
    band = np.quantile(np.random.default_rng(0).binomial(count, 1 / BINS, 10000),
                       [0.025, 0.975]) * BINS / count
    for row, (method, by_kind) in zip(grid, found.items()):
        for ax, kind in zip(row, kinds):
            ax.axhspan(*band, color="#dddddd")
            ax.hist(by_kind[kind].ravel(), np.linspace(0, 1, BINS + 1), density=True,
                    color=COLOURS[method], edgecolor="white")
            ax.set_title(f"{kind}, {method}", fontsize=10)
        row[0].set_ylabel("density (uniform: 1)")
    for ax in grid[-1]:
        ax.set_xlabel("posterior probability\nbelow the truth")
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> dict:
    """Run the study, print coverages, write the picture and summary.json."""
    parser = argparse.ArgumentParser(prog="python -m examples.calibration", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, default=300,
                        help="data sets drawn from the prior (300)")
    parser.add_argument("--draws", type=int, default=1000, help="posterior draws a data set (1000)")
    parser.add_argument("--temper", type=float, default=0.4,
                        help="power of q that parameters are proposed from, 1: q itself (0.4)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (0)")
    parser.add_argument("--fast", action="store_true",
                        help="a smoke test: 40 data sets of 200 draws")
    parser.add_argument("--out", type=Path, default=Path("outputs/calibration"), metavar="DIR",
                        help="where ranks.png and summary.json go (%(default)s)")
    args = parser.parse_args(argv)
    count, draws = (40, 200) if args.fast else (args.datasets, args.draws)
    begun = time.perf_counter()
    found, cost = study(count, draws, args.temper, args.seed)
    summary = {"datasets": count, "draws": draws, "temper": args.temper, "seed": args.seed, **cost,
               "coverage": {m: {k: {str(level): coverage(p, level) for level in (0.5, 0.9)}
                                for k, p in by.items()} for m, by in found.items()},
               "seconds_total": time.perf_counter() - begun}
    args.out.mkdir(parents=True, exist_ok=True)
    draw(found, args.out / "ranks.png")
    (args.out / "summary.json").write_text(json.dumps(summary, indent=2))
    print(f"{'coverage of central intervals':32s}{'50 %':>16s}{'90 %':>16s}")
    for method, by in summary["coverage"].items():
        for kind, levels in by.items():
            cells = "".join(f"{100 * c:10.1f} +-{100 * e:3.1f}" for c, e in levels.values())
            print(f"{method + ', ' + kind:32s}{cells}")
    print(json.dumps(cost, indent=2))
    return summary


if __name__ == "__main__":
    main()
