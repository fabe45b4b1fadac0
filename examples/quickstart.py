"""The program of the README on a small synthetic system: learn it, then plan with it. Seconds.

    python -m examples.quickstart
"""

from __future__ import annotations

import argparse

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import jopa_ppl as jp


def controlled_lds(y=None, *, T, d=2, du=1):
    A = jp.latent("A", dist.Normal(jnp.eye(d), 0.7).to_event(2))
    B = jp.latent("B", dist.Normal(jnp.zeros((d, du)), 3.0).to_event(2))
    W = jp.latent("W", dist.Wishart(d + 2.0, rate_matrix=0.01 * jnp.eye(d)))
    x0 = jp.latent("x0", dist.MultivariateNormal(jnp.zeros(d), jnp.eye(d)))

    def step(x, y):
        jp.observe("y", dist.Normal(x, 0.05).to_event(1), y)                         # sense
        u = jp.latent("u", dist.Normal(jnp.zeros(du), 2.0).to_event(1))              # act
        x = jp.latent("x", dist.MultivariateNormal(A @ x + B @ u, precision_matrix=W))
        return x, None

    jp.scan(step, x0, y, length=T)


def simulate(actions: np.ndarray, rng: np.random.Generator | None = None, x: float = 0.0
             ) -> np.ndarray:
    """A damped mass on a table (position, velocity) pushed by `actions`; (T, 2) observations."""
    A, B = np.array([[1.0, 0.1], [0.0, 0.95]]), np.array([0.0, 0.3])
    state, seen = np.array([x, 0.0]), []
    for u in actions[:, 0]:
        noise = (lambda s: 0.0) if rng is None else (lambda s: s * rng.normal(size=2))
        seen.append(state + noise(0.05))
        state = A @ state + B * u + noise(0.02)
    return np.array([*seen, state])


def main(argv: list[str] | None = None) -> float:
    """Learn, plan, act on the true system; returns the distance to the goal."""
    parser = argparse.ArgumentParser(prog="python -m examples.quickstart", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the simulated data (0)")
    rng = np.random.default_rng(parser.parse_args(argv).seed)

    T = 200
    actions = rng.normal(size=(T, 1)).astype(np.float32)
    y = simulate(actions, rng)[:T].astype(np.float32)
    y[rng.random(T) < 0.1] = np.nan                            # a missing frame is just NaN

    # learn: the actions that were taken are data
    learned = jp.VMP(jp.condition(controlled_lds, {"u": actions})).run(y, T=T)
    print(learned.summary())

    # plan: the same program, the actions now latent, only the first and the last frame seen
    goal = jp.sparse(20, {0: np.zeros(2), -1: np.array([1.0, 0.0])})
    plan = jp.VMP(jp.given(controlled_lds, learned), decide="u").run(goal, T=20)
    reached = simulate(np.asarray(plan.mean("u"))[:19])[-1]
    distance = float(np.abs(reached - [1.0, 0.0]).max())
    print(f"asked for (1, 0), the true system reached ({reached[0]:.3f}, {reached[1]:.3f})")
    assert distance < 0.1, distance
    return distance


if __name__ == "__main__":
    main()
