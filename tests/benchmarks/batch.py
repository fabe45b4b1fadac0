"""A hundred plans in one compiled program beside a loop: `python -m tests.benchmarks.batch`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import jax
import numpy as np
import numpyro.distributions as dist

import jopa_ppl as jp


def push(y=None, *, T):
    """A point mass of two axes, pushed."""
    A = np.kron([[1.0, 0.1], [0.0, 1.0]], np.eye(2))
    B = np.kron([[0.005], [0.1]], np.eye(2))
    x0 = jp.latent("x0", dist.Normal(np.zeros(4), 1.0).to_event(1))

    def step(x, y):
        jp.observe("y", dist.Normal(x, 0.05).to_event(1), y)
        u = jp.latent("u", dist.Normal(np.zeros(2), 3.0).to_event(1))
        return jp.latent("x", dist.Normal(A @ x + B @ u, 0.01).to_event(1)), None

    jp.scan(step, x0, y, length=T)


def median(run: Callable, repeats: int) -> float:
    """In ms, once it is warm."""
    run()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return 1e3 * float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.batch", description=__doc__)
    parser.add_argument("--plans", type=int, default=100, help="goals")
    parser.add_argument("--steps", type=int, default=20, help="of a plan")
    parser.add_argument("--repeats", type=int, default=9, help="runs that are timed")
    args = parser.parse_args()
    rng, T = np.random.default_rng(0), args.steps
    goals = np.stack([np.asarray(jp.sparse(T, {0: np.zeros(4), T - 1: [*g, 0, 0]}))
                      for g in rng.normal(size=(args.plans, 2))])
    vmp = jp.VMP(push, decide="u", progress=False)
    batch = median(lambda: vmp.run_batch(goals, T=T, over="y").mean("u"), args.repeats)
    loop = median(lambda: [vmp.run(goal, T=T).mean("u") for goal in goals], args.repeats)
    print(f"{args.plans} plans of {T} steps: {batch:.1f} ms in a batch, {loop:.0f} ms in a loop "
          f"(on {jax.devices()[0].platform})")


if __name__ == "__main__":
    main()
