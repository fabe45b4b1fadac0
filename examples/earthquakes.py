"""Regimes in counts: the world's earthquakes of magnitude 7 and more, year by year, 1900 to 2006.

    python -m examples.earthquakes

A regime a year, which follows that of the year before, and a rate for each:

    z_t | z_{t-1} ~ Categorical(P[z_{t-1}]),  y_t | z_t ~ Poisson(rate[z_t]),  P, rate unknown

Everything is conjugate, the regimes one chain. Beliefs settle near where they begin, so that each
number of regimes begins `--starts` times side by side; *nats* is F, an upper bound of -log p(y), by
number of regimes, *spread* by how much starts differ. The picture shows the most probable path.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from matplotlib.figure import Figure

import jopa_ppl as jp
from examples._command import parse, save

DATA = Path(__file__).parent / "data" / "earthquakes.csv"
STAYS = 4.0                 # years that a regime stays beside one in each other, a priori


def earthquakes(counts: np.ndarray | None = None, *, T: int, regimes: int) -> None:
    """The program; counts a year."""
    P = jp.latent("P", dist.Dirichlet(jnp.ones((regimes, regimes)) + STAYS * jnp.eye(regimes)))
    with jp.plate("regimes", regimes):
        rate = jp.latent("rate", dist.Gamma(2.0, 0.1))

    def step(z: jnp.ndarray, count: jnp.ndarray | None) -> tuple:
        z = jp.latent("z", dist.Categorical(P[z]))
        jp.observe("y", dist.Poisson(rate[z]), count)
        return z, None

    jp.scan(step, jp.latent("z0", dist.Categorical(jnp.ones(regimes) / regimes)), counts, length=T)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Find the regimes; returns the summary that is written to summary.json."""
    args = parse("earthquakes", __doc__, argv, {"most": 2, "starts": 3},
                 most=(4, "regimes at most"), starts=(20, "starts of each number of regimes"),
                 seed=(0, "of the starts"))
    years, counts = np.loadtxt(DATA, delimiter=",", skiprows=1).T
    found = {k: jp.VMP(earthquakes, max_iters=2000, tol=1e-8, starts=args.starts).run(
        counts, T=len(counts), regimes=k, rng_key=args.seed) for k in range(2, args.most + 1)}
    best = min(found, key=lambda k: found[k].free_energy[-1])
    rate, path = found[best].mean("rate"), found[best].most_probable()["z"]
    sd = np.sqrt(found[best].variance("rate"))
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(years, counts, color="0.3", lw=0.8, marker=".", ms=3, label="earthquakes")
    axes.step(years, rate[path], where="mid", color="#d55e00", label="rate of the regime")
    axes.fill_between(years, (rate - 2 * sd)[path], (rate + 2 * sd)[path], step="mid",
                      color="#d55e00", alpha=0.25, lw=0, label="2 sds")
    axes.set(xlabel="year", ylabel="a year", xlim=years[[0, -1]], ylim=(0, 50))
    axes.legend(frameon=False, ncols=3)
    return save(args, figure, {
        "nats": {str(k): p.free_energy[-1] for k, p in found.items()},
        "spread": {str(k): np.ptp(p.starts) for k, p in found.items()},
        "regimes": best, "rates": np.sort(rate),
        "years": np.bincount(path, minlength=best)[np.argsort(rate)]})


if __name__ == "__main__":
    main()
