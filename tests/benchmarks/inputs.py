"""A controlled LDS whose actions are an input of the scan, beside the same with the actions as a
conditioned site, time a sweep: `python -m tests.benchmarks.inputs`."""

from __future__ import annotations

import time
import warnings

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import jopa_ppl as jp

SIZES = ((4, 1_000), (8, 1_000))


def program(y, u=None, *, d):
    """Actions are an input where they are given, else a site."""
    A = jp.latent("A", dist.Normal(jnp.eye(d), 0.7).to_event(2))
    B = jp.latent("B", dist.Normal(jnp.zeros((d, 1)), 3.0).to_event(2))
    W = jp.latent("W", dist.Wishart(d + 2.0, rate_matrix=0.01 * jnp.eye(d)))
    x0 = jp.latent("x0", dist.MultivariateNormal(jnp.zeros(d), jnp.eye(d)))

    def step(x, now):
        y, u = now
        jp.observe("y", dist.Normal(x, 0.05).to_event(1), y)
        if u is None:
            u = jp.latent("u", dist.Normal(jnp.zeros(1), 2.0).to_event(1))
        return jp.latent("x", dist.MultivariateNormal(A @ x + B @ u, precision_matrix=W)), None

    jp.scan(step, x0, (y, u))


def series(d: int, T: int) -> tuple[np.ndarray, np.ndarray]:
    """Observations and actions of a random stable system."""
    rng = np.random.default_rng(0)
    A = 0.97 * np.linalg.qr(rng.normal(size=(d, d)))[0]
    x, y, u = np.zeros(d), [], rng.normal(size=(T, 1))
    for t in range(T):
        y.append(x + 0.05 * rng.normal(size=d))
        x = A @ x + u[t] + 0.1 * rng.normal(size=d)
    return np.array(y), u


def compare(d: int, T: int, sweeps: int = 20, repeats: int = 15) -> np.ndarray:
    """Milliseconds a sweep, (repeats, 2): as a conditioned site, as an input."""
    y, u = series(d, T)
    options = {"progress": False, "tol": 0, "max_iters": sweeps}
    as_site, as_input = jp.VMP(jp.condition(program, {"u": u}), **options), jp.VMP(
        program, **options)
    runs = (lambda: as_site.run(y, d=d), lambda: as_input.run(y, u, d=d))
    first = [run() for run in runs]
    np.testing.assert_allclose(first[0].mean("A"), first[1].mean("A"), atol=1e-4)
    times = []
    for _ in range(repeats):
        times.append([])
        for run in runs:
            start = time.perf_counter()
            run()
            times[-1].append(1e3 * (time.perf_counter() - start) / sweeps)
    return np.array(times)


def main() -> None:
    warnings.simplefilter("ignore", jp.ConvergenceWarning)
    print("  d      T  conditioned, ms a sweep  input, ms a sweep  ratio")
    for d, T in SIZES:
        times = compare(d, T)
        a, b = np.median(times, axis=0)
        print(f"{d:3}{T:7}{a:25.2f}{b:19.2f}{np.median(times[:, 1] / times[:, 0]):7.2f}",
              flush=True)


if __name__ == "__main__":
    main()
