"""Smoothing with known parameters beside dynamax's sequential smoother, in one run, float64:
`taskset -c 0 python -m tests.benchmarks.smoother` (dynamax is optional: `pip install dynamax`).

Ours is `VMP.run` with the mean and variance of the states, from NumPy to NumPy; dynamax's is its
jitted `lgssm_smoother`, the same way. A ratio above 1 says that ours is faster. *Compiled* is our
compiled program alone, arrays on the device before and after it; the rest of a run is *Python and
transfers*.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import jax
import numpy as np
import numpyro.distributions as dist

import jopa_ppl as jp
from jopa_ppl.engine.compiled import CHUNK, compiled_for
from jopa_ppl.language.keys import as_key
from jopa_ppl.settings import ours as our_settings

SIZES = ((2, 100), (2, 10_000), (4, 1_000), (16, 1_000))


def walk(y, A, Q, R):
    """x_0 ~ N(0, I), y_t ~ N(x_t, R), x_t+1 ~ N(A x_t, Q)."""
    d = len(A)
    x0 = jp.latent("x0", dist.MultivariateNormal(np.zeros(d), np.eye(d)))

    def step(x, y):
        jp.observe("y", dist.MultivariateNormal(x, R), y)
        return jp.latent("x", dist.MultivariateNormal(A @ x, Q)), None

    jp.scan(step, x0, y)


def problem(d: int, T: int) -> tuple[np.ndarray, ...]:
    """Data drawn from the model, and its matrices."""
    rng = np.random.default_rng(0)
    A = 0.97 * np.linalg.qr(rng.normal(size=(d, d)))[0]
    Q, R = 0.1 * np.eye(d) + 0.02, 0.5 * np.eye(d) + 0.05
    x, y = rng.normal(size=d), []
    for _ in range(T):
        y.append(rng.multivariate_normal(x, R))
        x = rng.multivariate_normal(A @ x, Q)
    return np.array(y), A, Q, R


def ours(y, A, Q, R) -> Callable:
    vmp = jp.VMP(walk, progress=False)

    def run():
        posterior = vmp.run(y, A, Q, R)
        return np.asarray(posterior.mean("x")), np.asarray(posterior.variance("x"))
    return run


def alone(y, A, Q, R) -> Callable:
    """What `VMP.run` has compiled, and nothing else of it."""
    vmp = jp.VMP(walk, progress=False)
    compiled, call = compiled_for(vmp.model, vmp.options, (y, A, Q, R), {})
    with our_settings():
        arrays, key = jax.device_put((call.dynamic, as_key(None)))
        until = jax.device_put(CHUNK)

    def run():
        with our_settings():
            jax.block_until_ready(compiled.first(arrays, key, until))
    return run


def theirs(y, A, Q, R) -> Callable | None:
    try:
        from dynamax.linear_gaussian_ssm import lgssm_smoother
        from dynamax.linear_gaussian_ssm.inference import make_lgssm_params
    except ImportError:
        return None
    d = len(A)
    params = make_lgssm_params(np.zeros(d), np.eye(d), A, Q, np.eye(d), R)
    smooth = jax.jit(lgssm_smoother)

    def run():
        found = smooth(params, y)
        cov = np.asarray(found.smoothed_covariances)
        return np.asarray(found.smoothed_means), np.diagonal(cov, axis1=-2, axis2=-1)
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=50, help="timed calls of each")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print("    d       T  ours, ms  compiled, ms  Python and transfers, ms  dynamax, ms  ratio")
    for d, T in SIZES:
        data = problem(d, T)
        runs = [f for f in (ours(*data), theirs(*data)) if f is not None]
        found = [f() for f in runs]
        if len(runs) == 2:      # ours has x_1 .. x_T, theirs x_0 .. x_T-1
            np.testing.assert_allclose(found[0][0][:-1], found[1][0][1:], atol=1e-8)
            np.testing.assert_allclose(found[0][1][:-1], found[1][1][1:], atol=1e-8)
        runs.insert(1, alone(*data))
        runs[1]()
        times = np.zeros((options.repeats, len(runs)))
        for row in times:
            for i, f in enumerate(runs):
                start = time.perf_counter()
                f()
                row[i] = 1e3 * (time.perf_counter() - start)
        # Of calls that other work disturbed least: the difference is small beside what it adds.
        middle, best = np.median(times, 0), np.quantile(times, 0.1, 0)
        ratio = "" if len(runs) < 3 else (
            f"{middle[2]:13.2f}{np.median(times[:, 2] / times[:, 0]):7.2f}")
        print(f"{d:5}{T:8}{middle[0]:10.2f}{middle[1]:14.2f}{best[0] - best[1]:26.2f}{ratio}",
              flush=True)


if __name__ == "__main__":
    main()
