"""Unknown dynamics of many dimensions: `python -m tests.benchmarks.matrices` (`--dense` for the
dense belief as well; `--d 48 64 128` for other sizes).

A sweep of an LDS with unknown A, B and W (T = 200, B of 2 columns, float64), and the peak memory of
the process.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import numpyro.distributions as dist

import jopa_ppl as jp
from jopa_ppl.graph import matrices
from tests.caches import forget

SWEEPS = 5


def lds(y, u, W_rate):
    d, du = y.shape[1], u.shape[1]
    A = jp.latent("A", dist.Normal(np.eye(d), 0.7).to_event(2))
    B = jp.latent("B", dist.Normal(np.zeros((d, du)), 1.0).to_event(2))
    W = jp.latent("W", dist.Wishart(d + 2.0, rate_matrix=W_rate))
    x0 = jp.latent("x0", dist.MultivariateNormal(np.zeros(d), np.eye(d)))

    def step(x, now):
        y, u = now
        jp.observe("y", dist.Normal(x, 0.3).to_event(1), y)
        return jp.latent("x", dist.MultivariateNormal(A @ x + B @ u, precision_matrix=W)), None

    jp.scan(step, x0, (y, u))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d", type=int, nargs="*", default=[8, 16, 32, 48, 64, 128],
                        help="dimensions of the state")
    parser.add_argument("--steps", type=int, default=200, help="T")
    parser.add_argument("--dense", action="store_true", help="the dense belief as well")
    options = parser.parse_args()
    print("    d  belief   first, s  sweep, s  peak of the process, GiB")
    for d in options.d:
        rng = np.random.default_rng(0)
        A, B = 0.95 * np.linalg.qr(rng.normal(size=(d, d)))[0], rng.normal(size=(d, 2))
        u, x, y = rng.normal(size=(options.steps, 2)), rng.normal(size=d), []
        for t in range(options.steps):
            y.append(x + 0.3 * rng.normal(size=d))
            x = A @ x + B @ u[t] + 0.3 * rng.normal(size=d)
        for least in (1, 10**9)[:1 + options.dense]:
            matrices.LEAST = least
            forget()
            vmp = jp.VMP(lds, progress=False, max_iters=SWEEPS, tol=0.0)
            times = []
            for _ in range(2):
                begun = time.perf_counter()
                posterior = vmp.run(np.array(y), u, 0.1 * np.eye(d))
                times.append(time.perf_counter() - begun)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            kind = posterior.compiled.graph.block_of("A").kind
            print(f"{d:5d}  {kind:7s}  {times[0]:8.2f}  {times[1] / SWEEPS:8.4f}  {memory:8.2f}",
                  flush=True)


if __name__ == "__main__":
    main()
