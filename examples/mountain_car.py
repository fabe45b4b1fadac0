"""A car too weak for its hill, from its state: learn how it moves, plan by conditioning on the top.

    python -m examples.mountain_car

Gymnasium's MountainCarContinuous-v0 as it ships: it has to swing to and fro, and the plan finds
that. One program learns from a few hundred random steps and then drives; nothing in it says how.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from jax import Array

import jopa_ppl as jp

SCALE = np.array([1.0, 0.07])       # of position and speed, so that both are numbers about 1
TOP = 0.6                           # where to be, at any speed; the flag stands at 0.45


def car(y: Array | None = None, *, T: int, seen: float = 0.01) -> None:
    """x_{t+1} ~ N(x_t + A phi(x_t, tanh u_t), W^-1), phi cubic in position; y_t ~ N(x_t, seen)."""
    A = jp.latent("A", dist.Normal(jnp.zeros((2, 6)), 0.3).to_event(2))
    W = jp.latent("W", dist.Wishart(4.0, rate_matrix=1e-4 * jnp.eye(2)))
    x0 = jp.latent("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

    def step(x: Array, y: Array | None) -> tuple[Array, None]:
        jp.observe("y", dist.Normal(x, seen).to_event(1), y)
        u = jp.latent("u", dist.Normal(0.0, 1.0).expand((1,)).to_event(1))
        p, v = x[0], x[1]
        phi = jnp.stack([jnp.ones(()), p, p**2, p**3, v, jnp.tanh(u[0])])
        return jp.latent("x", dist.MultivariateNormal(x + A @ phi, precision_matrix=W)), None

    jp.scan(step, x0, y, length=T)


def explore(env: gym.Env, steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """States (steps, 2) under random pushes (steps, 1), each held for up to 12 steps."""
    rng, found = np.random.default_rng(seed), []
    pushes = np.repeat(rng.uniform(-2.0, 2.0, steps), rng.integers(1, 13, steps))[:steps, None]
    y, _ = env.reset(seed=seed)
    for push in pushes:
        found.append(y / SCALE)
        y, *_ = env.step(np.tanh(push).astype(np.float32))
    return np.array(found), pushes


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Learn, drive, draw; returns what is written to summary.json."""
    parser = argparse.ArgumentParser(prog="python -m examples.mountain_car", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of data and starts (0)")
    parser.add_argument("--starts", type=int, default=5, help="drives (5)")
    parser.add_argument("--fast", action="store_true", help="60 steps of one drive")
    parser.add_argument("--out", type=Path, default=Path("outputs/mountain_car"), help="folder")
    args = parser.parse_args(argv)
    env = gym.make("MountainCarContinuous-v0")
    y, u = explore(env.unwrapped, 400, args.seed)
    rule = {"x": "linearise"}
    learned = jp.VMP(jp.condition(car, {"u": u}), messages=rule).run(y, T=len(y))
    agent = jp.Agent(car, learned, horizon=80, space=env.action_space, to_action=np.tanh,
                     to_frame=lambda y: np.asarray(y) / SCALE, planning={"seen": 0.3},
                     adapt=10, forget=0.995, messages=rule)      # what it has not seen it learns
    agent.goal([TOP, np.nan])
    most, drives = (60, 1) if args.fast else (None, args.starts)
    found = jp.rollout(env, agent, episodes=drives, steps=most, seed=args.seed)
    summary = {"reached": int(found.ended.sum()), "starts": drives, "seed": args.seed,
               "steps": found.lengths.tolist(), "returns": found.returns.round(1).tolist()}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "summary.json").write_text(json.dumps(summary, indent=1))
    fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
    for i, frames in enumerate(found.frames):
        ax.plot(frames[:, 0], label=f"drive {i + 1}")
    ax.axhline(0.45, ls="--", color="0.4", label="flag")
    ax.set(xlabel="step", ylabel="position")
    ax.legend(frameon=False, fontsize=8)
    fig.savefig(args.out / "drives.png", dpi=110)
    print(f"{summary['reached']} of {drives} reached; {args.out}/drives.png, summary.json")
    return summary


if __name__ == "__main__":
    main()
