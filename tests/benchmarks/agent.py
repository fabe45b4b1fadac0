"""Times of an agent whose program is linear: a control step, filtered and planned.

    taskset -c 0 python -m tests.benchmarks.agent

A plant of d = 4 seen through noise, actions of one axis, plans of 20 steps. Its matrices are known,
or are beliefs learned from 200 random steps, which plans weigh in. Milliseconds of a step, warm:
the median of 300, on the clock and of the processor.
"""

from __future__ import annotations

import time

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import jopa_ppl as jp

D, HORIZON, STEPS, WARM = 4, 20, 300, 10
A, B = np.eye(D) + 0.1 * np.eye(D, k=1), 0.1 * np.eye(D)[:, -1:]      # a chain of integrators


def plant(y: np.ndarray | None = None, *, T: int) -> None:
    """x' = A x + B u + noise, y = x + noise."""
    M = jp.latent("A", dist.Normal(jnp.eye(D), 0.7).to_event(2))
    N = jp.latent("B", dist.Normal(jnp.zeros((D, 1)), 3.0).to_event(2))
    x0 = jp.latent("x0", dist.Normal(jnp.zeros(D), 3.0).to_event(1))

    def step(x: jnp.ndarray, y: jnp.ndarray | None) -> tuple:
        jp.observe("y", dist.Normal(x, 0.05).to_event(1), y)
        u = jp.latent("u", dist.Normal(jnp.zeros(1), 2.0).to_event(1))
        return jp.latent("x", dist.Normal(M @ x + N @ u, 0.02).to_event(1)), None

    jp.scan(step, x0, y, length=T)


def moved(x: np.ndarray, u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return A @ x + B @ u + 0.02 * rng.normal(size=D)


def drive(agent: jp.Agent, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Milliseconds (wall, processor) of a step, and how far off the goal the last 50 end."""
    agent.goal(np.zeros(D))
    x, clocks, off = np.ones(D), [], []
    for _ in range(STEPS):
        y = x + 0.05 * rng.normal(size=D)
        begun = time.perf_counter(), time.process_time()
        u = agent.act(y)
        clocks.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
        x = moved(x, u, rng)
        off.append(np.linalg.norm(x))
    return 1e3 * np.median(clocks[WARM:], 0), float(np.mean(off[-50:]))


def main() -> None:
    rng = np.random.default_rng(0)
    actions, states = rng.normal(size=(200, 1)), [np.zeros(D)]
    for u in actions[:-1]:
        states.append(moved(states[-1], u, rng))
    seen = np.array(states) + 0.05 * rng.normal(size=(200, D))
    learned = jp.VMP(jp.condition(plant, {"u": actions}), progress=False).run(seen, T=200)
    for name, agent in (
            ("known matrices", jp.Agent(jp.condition(plant, {"A": A, "B": B}), {},
                                        horizon=HORIZON)),
            ("learned ones", jp.Agent(plant, learned, horizon=HORIZON))):
        (wall, cpu), off = drive(agent, rng)
        print(f"{name}: {wall:.1f} ms a step ({1e3 / wall:.0f} Hz), {cpu:.1f} ms of processor; "
              f"{off:.2f} off the goal")


if __name__ == "__main__":
    main()
