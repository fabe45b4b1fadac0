"""A forecast with bands: carbon dioxide at Mauna Loa, month by month.

    python -m examples.co2

A level that a slope carries on, and a season of two waves a year that may change slowly:

    x_{t+1} ~ N(F x_t, diag(1 / q)),    y_t ~ N(level_t + waves_t, 1 / r),    q, r unknown

All but the last ten years are learned from; `posterior.forecast` draws these: *inside*, the share
of them inside its 90 % band, *error*, the root mean square of its median's (ppm).
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

DATA = Path(__file__).parent / "data" / "co2_monthly.csv"
TURNS = [2 * np.pi * k / 12 for k in (1, 2)]                  # of the waves, a month
F = np.kron(np.eye(3), np.eye(2))
F[0, 1] = 1.0                                                 # the slope carries the level on
for i, a in zip((2, 4), TURNS):
    F[i:i + 2, i:i + 2] = [[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]
SEEN = np.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.0])


def seasonal(y: np.ndarray | None = None, *, T: int) -> None:
    """The program; y in ppm above the least."""
    q = jp.latent("q", dist.Gamma(jnp.ones(6), jnp.array([1e-2, 1e-5, *[1e-4] * 4])).to_event(1))
    r = jp.latent("r", dist.Gamma(1.0, 0.1))
    x0 = jp.latent("x0", dist.Normal(0.0, jnp.array([3.0, 0.3, 3.0, 3.0, 1.0, 1.0])).to_event(1))

    def step(x: jnp.ndarray, y: jnp.ndarray | None) -> tuple:
        jp.observe("y", dist.Normal(SEEN @ x, 1 / jnp.sqrt(r)), y)
        return jp.latent("x", dist.Normal(F @ x, 1 / jnp.sqrt(q)).to_event(1)), None

    jp.scan(step, x0, y, length=T)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Forecast; returns the summary that is written to summary.json."""
    args = parse("co2", __doc__, argv, {"years": 10}, ahead=(120, "months that are forecast"),
                 years=(100, "years to learn from at most"))
    ppm = np.genfromtxt(DATA, delimiter=",", skip_header=1, usecols=1)
    ppm = ppm[-12 * args.years - args.ahead:]
    first = np.nanmin(ppm)
    past, came = ppm[:-args.ahead] - first, ppm[-args.ahead:]
    learned = jp.VMP(seasonal, max_iters=2000).run(past, T=len(past))
    low, middle, high = first + np.quantile(learned.forecast(args.ahead, rng_key=0)["y"],
                                            [0.05, 0.5, 0.95], axis=0)
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes, at = figure.subplots(), 2002 - np.arange(len(ppm), 0, -1) / 12      # to December 2001
    axes.plot(at[-300:], ppm[-300:], color="0.3", lw=0.8, label="measured")
    axes.plot(at[-args.ahead:], middle, color="#0072b2", lw=1, label="forecast")
    axes.fill_between(at[-args.ahead:], low, high, color="#0072b2", alpha=0.25, label="90 %")
    axes.set(xlabel="year", ylabel="CO2 (ppm)")
    axes.legend(frameon=False)
    return save(args, figure, {"inside": np.mean((came > low) & (came < high)),
                               "error": np.sqrt(np.mean((came - middle)**2))})


if __name__ == "__main__":
    main()
