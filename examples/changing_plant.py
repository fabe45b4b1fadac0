"""A cart whose motor is rewired as it drives: agents that forget, that adapt, that do neither.

    python -m examples.changing_plant

x_{t+1} ~ N(A x_t + B u_t, 0.02^2), position and speed; A, B are learned from 60 random steps.
Half-way the true gain changes. `cost`: squared distance to the goal before, 40 steps after, later;
`gain`: what is believed of it at the end: mean and sd over seeds (and of the belief).
"""

from __future__ import annotations

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from gymnasium.spaces import Box

import jopa_ppl as jp
from examples._command import parse, save

AGENTS = {"fixed": {}, "adapts": {"adapt": 2}, "adapts, forgets": {"adapt": 2, "forget": 0.9}}
HALF, PUSH, BOX = 80, np.array([0.0, 0.3]), Box(-1.0, 1.0, (1,))
GOALS = np.tile(np.repeat([0.5, -0.5], HALF // 2), 2)


def cart(y: jnp.ndarray | None = None, *, T: int, seen: float = 0.02) -> None:
    """The program; y (T, 2) position and speed, u (T, 1) the push."""
    A = jp.latent("A", dist.Normal(jnp.eye(2), 0.5).to_event(2))
    B = jp.latent("B", dist.Normal(jnp.zeros((2, 1)), 0.5).to_event(2))
    x0 = jp.latent("x0", dist.Normal(jnp.zeros(2), 2.0).to_event(1))
    def step(x: jnp.ndarray, y: jnp.ndarray | None) -> tuple:
        jp.observe("y", dist.Normal(x, seen).to_event(1), y)
        u = jp.latent("u", dist.Normal(jnp.zeros(1), 1.0).to_event(1))
        return jp.latent("x", dist.Normal(A @ x + B @ u, 0.02).to_event(1)), None
    jp.scan(step, x0, y, length=T)


def drive(gains: np.ndarray, seed: int, agent: jp.Agent | None = None) -> np.ndarray:
    """(T, 5): what is seen, the push (random without an agent), the gain believed and its sd."""
    rng, x, mean, sd, rows = np.random.default_rng(seed), np.zeros(2), 0.0, 0.0, []
    for gain, goal in zip(gains, GOALS):
        y, push = x + 0.02 * rng.normal(size=2), rng.uniform(-1, 1)
        if agent is not None:
            agent.goal([goal, np.nan])                                  # at any speed
            push, B = agent.act(y)[0], agent.learned
            mean, sd = B.mean("B")[1, 0] / PUSH[1], B.variance("B")[1, 0]**0.5 / PUSH[1]
        rows.append([*y, push, mean, sd])
        x = [[1.0, 0.1], [0.0, 0.95]] @ x + PUSH * gain * push + 0.02 * rng.normal(size=2)
    return np.array(rows)


def main(argv: list[str] | None = None) -> dict:
    """Learn, drive, draw; returns what is written to summary.json."""
    args = parse("changing_plant", __doc__, argv, {"seeds": 1}, seed=(0, "the first of --seeds"),
                 seeds=(10, "how many"), gain=(-0.5, "of the push, that was 1"))
    gains, runs, summary = np.repeat([1.0, args.gain], HALF), {name: [] for name in AGENTS}, {}
    for seed in range(args.seed, args.seed + args.seeds):
        y, u = np.split(drive(np.ones(60), seed)[:, :3], [2], axis=1)
        learned = jp.VMP(jp.condition(cart, {"u": u}), progress=False).run(y, T=60)
        for name, how in AGENTS.items():
            agent = jp.Agent(cart, learned, horizon=15, space=BOX, planning={"seen": 0.2}, **how)
            runs[name].append(drive(gains, 1000 + seed, agent))
    fig, axes = plt.subplots(2, 1, figsize=(7, 4.5), sharex=True, layout="constrained")
    for name, found in runs.items():
        y, _, _, mean, sd = np.moveaxis(np.array(found), -1, 0)         # (seeds, T) each
        cost = [c.mean(1) for c in np.split((y - GOALS)**2, [HALF, HALF + 40], axis=1)]
        summary[name] = {"cost": [(c.mean(), c.std()) for c in cost],
                         "gain": (mean[:, -1].mean(), mean[:, -1].std(), sd[:, -1].mean())}
        axes[0].plot(y[0], label=name, lw=4 - len(summary))
        axes[1].errorbar(range(2 * HALF), mean[0], 2 * sd[0], elinewidth=0.6)
    for ax, truth, label in zip(axes, (GOALS, gains), ("position", "gain, 2 sd")):
        ax.plot(truth, "k:", label="goal, true gain")
        ax.set(ylabel=label, ylim=(-2, 2), xlabel="step")
    axes[0].legend(frameon=False, ncols=4, fontsize=8)
    return save(args, fig, summary)


if __name__ == "__main__":
    main()
