"""A car too weak for its hill, from its state: learn how it moves, plan by conditioning on the top.

    python -m examples.mountain_car

Gymnasium's MountainCarContinuous-v0 as it ships: it has to swing to and fro, and the plan finds
that. One program learns from ten drives of 80 random pushes, and then drives; nothing says how.
"""

from __future__ import annotations

import gymnasium as gym
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from jax import Array

import jopa_ppl as jp
from examples._command import parse, save

CARS, STEPS = 10, 80                # of random pushes
SCALE = np.array([1.0, 0.07])       # of position and speed, so that both are numbers about 1
TOP = 0.6                           # where to be, at any speed; the flag stands at 0.45
RULE = {"x": "linearise"}


def car(y: Array | None = None, *, T: int, cars: int, seen: float = 0.003) -> None:
    """x_{t+1} ~ N(x_t + A phi(x_t, tanh u_t), W^-1), phi three waves of position, the speed and the
    push; y_t ~ N(x_t, seen), (T, cars, 2)."""
    A = jp.latent("A", dist.Normal(jnp.zeros((2, 9)), 0.3).to_event(2))
    W = jp.latent("W", dist.Wishart(4.0, rate_matrix=1e-3 * jnp.eye(2)))
    with jp.plate("car", cars):
        x0 = jp.latent("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

    def step(x: Array, y: Array | None) -> tuple[Array, None]:
        with jp.plate("car", cars):
            jp.observe("y", dist.Normal(x, seen).to_event(1), y)
            u = jp.latent("u", dist.Normal(0.0, 1.0).expand((1,)).to_event(1))
            p, v, push = x[..., 0], x[..., 1], jnp.tanh(u[..., 0])
            waves = [f(k * p) for k in (1, 2, 3) for f in (jnp.cos, jnp.sin)]
            phi = jnp.stack([jnp.ones_like(p), *waves, v, push], -1)
            return jp.latent("x", dist.MultivariateNormal(x + phi @ A.T, precision_matrix=W)), None

    jp.scan(step, x0, y, length=T)


def explore(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """States (STEPS, CARS, 2) under random pushes (STEPS, CARS, 1), held for up to 12 steps."""
    rng, env = np.random.default_rng(seed), gym.make_vec("MountainCarContinuous-v0", CARS)
    pushes = np.stack([np.repeat(rng.uniform(-2.0, 2.0, STEPS), rng.integers(1, 13, STEPS))[:STEPS]
                       for _ in range(CARS)], 1)[..., None]
    frames = [env.reset(seed=seed)[0], *(env.step(np.tanh(u).astype("f"))[0] for u in pushes[:-1])]
    return np.array(frames) / SCALE, pushes


def main(argv: list[str] | None = None) -> dict:
    """Learn, drive, draw; returns what is written to summary.json."""
    args = parse("mountain_car", __doc__, argv, {"drives": 1, "steps": 130}, seed=(0, "S"),
                 drives=(10, "side by side"), steps=(999, "of a drive at most"))
    (y, u), seed = explore(1000 * args.seed), 1000 * args.seed
    learned = jp.VMP(jp.condition(car, {"u": u}), messages=RULE).run(y, T=STEPS, cars=CARS)
    # At its means: a plan that minds what is left open about the far side does not go there.
    model = jp.condition(car, {n: np.asarray(learned.mean(n)) for n in ("A", "W")})
    env = gym.make_vec("MountainCarContinuous-v0", args.drives, vectorization_mode="sync")
    agent = jp.Agent(model, {}, horizon=100, copies=args.drives, space=env.action_space,
                     to_action=np.tanh, to_frame=lambda y: np.asarray(y) / SCALE, messages=RULE,
                     arguments={"cars": args.drives}, planning={"seen": 0.3})
    agent.goal([TOP, np.nan])
    found = jp.rollout(env, agent, episodes=args.drives, steps=args.steps, seed=seed + CARS)
    fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
    ax.plot(found.frames[..., 0].T)
    ax.axhline(0.45, ls="--", color="0.4")
    ax.set(xlabel="step", ylabel="position (--: the flag)")
    return save(args, fig, {"reached": int(found.ended.sum()), "lengths": found.lengths,
                            "returns": found.returns})


if __name__ == "__main__":
    main()
