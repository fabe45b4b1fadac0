"""Sweeps until F has arrived, with `extrapolate` and without.

    python -m tests.benchmarks.extrapolation

For each program F after 20, 50, 100, .. sweeps, in nats above the least that either saw, and the
time of a sweep (`--case` chooses, `--sweeps` says how many plain ones).
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable

import gymnasium
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import jopa_ppl as jp
from tests.engine.test_extrapolation import loading
from tests.engine.test_rotation import relevant

AFTER = (20, 50, 75, 100, 200, 500, 1000, 2000, 5000)


def by_element(y, d):
    """`loading` with noises of the states that are told apart by element."""
    N, n = y.shape[1:]
    A = jp.latent("A", dist.Normal(jnp.eye(d), 1.0).to_event(2))
    C = jp.latent("C", dist.Normal(jnp.zeros((n, d)), 1.0).to_event(2))
    q = jp.latent("q", dist.Gamma(1.0, 0.1).expand([d]).to_event(1))
    tau = jp.latent("tau", dist.Gamma(1.0, 0.1))
    with jp.plate("trials", N):
        x0 = jp.latent("x0", dist.MultivariateNormal(jnp.zeros(d), jnp.eye(d)))

    def step(x, y):
        with jp.plate("trials", N):
            jp.observe("y", dist.Normal(x @ C.T, 1 / jnp.sqrt(tau)).to_event(1), y)
            return jp.latent("x", dist.Normal(x @ A.T, 1 / jnp.sqrt(q)).to_event(1)), None

    jp.scan(step, x0, y)


def simulate(T: int, N: int, d: int, n: int, noise: float) -> np.ndarray:
    """(T, N, n): channels of states that turn."""
    rng = np.random.default_rng(0)
    A, C = 0.97 * np.linalg.qr(rng.normal(size=(d, d)))[0], rng.normal(size=(n, d))
    x, found = rng.normal(size=(N, d)), []
    for _ in range(T):
        found.append(x @ C.T + noise * rng.normal(size=(N, n)))
        x = x @ A.T + 0.2 * rng.normal(size=(N, d))
    return np.array(found)


def frames(T: int, N: int, pixels: int) -> np.ndarray:
    """(T, N, pixels^2): frames of Gymnasium's Pendulum-v1 at random torques, small and grey, less
    their mean over time."""
    found = []
    for seed in range(N):
        env = gymnasium.make("Pendulum-v1", render_mode="rgb_array")
        env.reset(seed=seed)
        env.action_space.seed(seed)
        own = []
        for _ in range(T):
            env.step(env.action_space.sample())
            grey = env.render().mean(-1) / 255
            size = len(grey) // pixels
            own.append(grey[:size * pixels, :size * pixels].reshape(
                pixels, size, pixels, size).mean((1, 3)).ravel())
        env.close()
        found.append(own)
    y = np.moveaxis(np.array(found), 0, 1)
    return y - y.mean((0, 1))


CASES: dict[str, tuple[Callable, Callable[[], tuple]]] = {
    "trials": (loading, lambda: (simulate(60, 6, 3, 5, 0.3), 3)),
    "by element": (by_element, lambda: (simulate(60, 6, 3, 5, 0.3), 3)),
    "channels": (loading, lambda: (simulate(100, 1, 8, 73, 1.0), 8)),
    "frames": (loading, lambda: (frames(50, 2, 8), 4)),
    "relevant": (relevant, lambda: (simulate(120, 1, 4, 12, 1.0)[:, 0], 6)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--sweeps", type=int, default=2000, help="plain ones; a tenth ahead")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in options.case:
        model, data = CASES[name]
        args, found = data(), {}
        for ahead in (True, False):
            most = options.sweeps // (10 if ahead else 1)
            vmp = jp.VMP(model, progress=False, max_iters=most, tol=0.0, extrapolate=ahead)
            begun = time.perf_counter()
            first = np.asarray(vmp.run(*args).free_energy)
            middle = time.perf_counter()
            vmp.run(*args)
            took = time.perf_counter() - middle
            found[ahead] = first, middle - begun - took, took / len(first)
        least = min(F.min() for F, *_ in found.values())
        print(f"{name}: least F {least:.2f} nats")
        for ahead, (F, compiling, took) in found.items():
            above = "  ".join(f"{n}: {F[n - 1] - least:.3g}" for n in AFTER if n <= len(F))
            near = np.flatnonzero(least + 0.1 > F)
            print(f"  {'ahead' if ahead else 'plain'}  {above}; within 0.1 after "
                  f"{near[0] + 1 if near.size else 'more'}; compiled in {compiling:.1f} s, "
                  f"{1e3 * took:.2f} ms a sweep")


if __name__ == "__main__":
    main()
