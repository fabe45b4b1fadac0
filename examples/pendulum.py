"""Gymnasium's Pendulum-v1 from pixels and torques alone: learn, see, plan, act.

    python -m examples.pendulum --goal 0 --seed 0

1. collects episodes of random torques and trains a convolutional VAE on single frames;
2. learns one linear model of the motion by message passing, for all episodes at once;
3. controls in a receding horizon: refits local models along the last plan, filters the last
   frames and plans with the goal image held at every future step, in one program;
4. writes a GIF, pictures, the posterior and summary.json to outputs/pendulum/.

No state and no reward is used; the true angle serves for scoring only.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm.auto import tqdm

import jopa_ppl as jp
from examples import _pendulum_pictures as pictures
from examples._pendulum_env import Pendulum, collect, goal_frame
from models.second_order import constant_velocity, dynamics, local_dynamics, local_plan
from models.vae import VAE, train

SIZE = 24              # pixels a side
HORIZON = 20           # steps of a plan, 1 s
SEEN = 3               # frames that are filtered before a plan
STEPS = 80             # steps of control, 4 s
NEAR = 30              # the distance to the 30th nearest transition is the width of "near"
REPLAY = 128           # transitions replayed for a state; farther ones weigh next to nothing
ACTION_SCALE = 20.0    # standard deviation of the torque's prior, N m
GOAL_WEIGHT = 0.1      # of a goal frame's likelihood: a few hundredths of a radian do not matter
NOISE = 0.02           # of the local models, in latent units


class World(NamedTuple):
    """What was learned: the VAE, the posterior of the global model, and transitions to replay."""

    vae: VAE
    learned: jp.Posterior
    features: np.ndarray   # (transitions, 2 d + du + 1): x_{t-1}, x_t, u_t, 1
    following: np.ndarray  # (transitions, d): x_{t+1}
    losses: np.ndarray
    frames: np.ndarray
    torques: np.ndarray


def learn(pendulum: Pendulum, seed: int, episodes: int, vae_steps: int, clock: dict[str, float],
          length: int = 60) -> World:
    """Collect episodes, train the VAE, learn the dynamics."""
    data = collect(pendulum, episodes, length, seed)
    start = time.perf_counter()
    vae, losses = train(data.frames, jax.random.key(seed), steps=vae_steps)
    clock["seconds_vae"] = time.perf_counter() - start
    start = time.perf_counter()
    frames, torques = data.frames.swapaxes(0, 1), data.torques.swapaxes(0, 1)
    program = jp.condition(dynamics, {"u": torques})
    learned = jp.VMP(program, max_iters=100, tol=1e-5).run(
        frames, T=length, trajectories=episodes, vae=vae, action_scale=ACTION_SCALE)
    clock["seconds_vmp"] = time.perf_counter() - start
    # Smoothed poses, not raw encodings, are what local models are fitted to.
    poses = jnp.concatenate([learned.mean("x0")[None], learned.mean("x1")[None],
                             learned.mean("x")[:-1]])
    d = vae.d
    features = jnp.concatenate([poses[:-2], poses[1:-1], torques[:len(poses) - 2],
                                jnp.ones((len(poses) - 2, episodes, 1))], -1)
    flat, following = features.reshape(-1, features.shape[-1]), poses[2:].reshape(-1, d)
    return World(vae, learned, np.asarray(flat), np.asarray(following), np.asarray(losses),
                 data.frames, data.torques)


@jax.jit
def encode(vae: VAE, frame: Array) -> Array:
    """The mean pose of a frame, (d,)."""
    return vae.encode(frame)[0]


def replay(states: np.ndarray, features: np.ndarray, following: np.ndarray
           ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The transitions nearest to each planned state (H, 2 d): following, features and weights."""
    at = features[:, :states.shape[1]]
    gap = ((states[:, None] - at[None])**2).sum(-1)
    index = np.argpartition(gap, REPLAY, 1)[:, :REPLAY]
    gap = np.take_along_axis(gap, index, 1)
    near = np.partition(gap, NEAR, 1)[:, NEAR:NEAR + 1]
    return following[index], features[index], np.exp(-gap / near)


@partial(jax.jit, static_argnums=1)
def unpack(M: Array, past: int) -> tuple[Array, Array, Array]:
    """A, B, c of every step from local models (H, 2 d + 2, d); the first ones serve the past."""
    M = jnp.swapaxes(jnp.concatenate([jnp.repeat(M[:1], past, 0), M, M[-1:]]), 1, 2)
    d = M.shape[1]
    return M[..., :2 * d], M[..., 2 * d:2 * d + 1], M[..., 2 * d + 1]


class Controller:
    """A receding-horizon controller made of programs."""

    def __init__(self, world: World, goal: np.ndarray) -> None:
        self.world, self.goal = world, goal
        d = world.vae.d
        self.prior = jnp.concatenate([constant_velocity(d).T, jnp.zeros((2, d))])
        self.refit = jp.VMP(local_dynamics, max_iters=1)
        self.goals = np.broadcast_to(goal, (HORIZON, *goal.shape))
        self.features, self.following = world.features, world.following
        self.poses: list[np.ndarray] = []
        self.frames: list[np.ndarray] = []
        self.torques: list[np.ndarray] = []
        self.states: Array | None = None

    def models(self, states: Array) -> tuple[Array, Array, Array]:
        """Local beliefs near every planned state, as the known A_t, B_t, c_t of a plan."""
        following, features, weights = replay(np.asarray(states), self.features, self.following)
        local = self.refit.run(following, features=features, weights=weights, prior=self.prior,
                               noise=NOISE)
        return unpack(local.mean("M")[:, 0], SEEN - 1)

    def remember(self, frame: np.ndarray) -> None:
        """Add what has just been seen to the transitions that are replayed."""
        self.poses.append(np.asarray(encode(self.world.vae, frame)))
        if len(self.poses) > 2:
            a, b, c = self.poses[-3:]
            row = np.concatenate([a, b, self.torques[-1], np.ones(1)]).astype(np.float32)
            self.features = np.concatenate([self.features, row[None]])
            self.following = np.concatenate([self.following, c[None]])

    def act(self, frame: np.ndarray, relinearise: int = 3) -> tuple[float, jp.Posterior]:
        """The torque for this frame, and the plan it is the first action of."""
        self.frames.append(frame)
        self.remember(frame)
        while len(self.frames) < SEEN:                     # at rest before the first frame
            self.frames.insert(0, frame)
            self.torques.insert(0, np.full(1, np.nan, np.float32))
        past = SEEN - 1
        seen = np.stack([*self.frames[-SEEN:], *self.goals])
        known = np.full((len(seen), 1), np.nan, np.float32)
        known[:past] = np.nan_to_num(np.stack(self.torques[-past:]))
        weights = np.where(np.arange(len(seen)) < SEEN, 1.0, GOAL_WEIGHT)
        planner = jp.VMP(jp.condition(local_plan, {"u": known}), decide="u")
        if self.states is None:
            mean = jnp.asarray(self.poses[-1])
            self.states = jnp.broadcast_to(jnp.concatenate([mean, mean]), (HORIZON, 2 * len(mean)))
        states = self.states
        for _ in range(relinearise):
            plan = planner.run(seen, weights, self.models(states), vae=self.world.vae, noise=NOISE,
                               action_scale=ACTION_SCALE)
            x = plan.mean("x")[past - 2:past + HORIZON]
            states = jnp.concatenate([x[:-2], x[1:-1]], -1)
        self.states = jnp.concatenate([states[1:], states[-1:]])
        torque = plan.mean("u")[past]
        self.torques.append(np.asarray(torque, np.float32))
        return float(np.clip(torque[0], -10, 10)), plan


def wrap(angle: Any) -> Any:
    """An angle in (-pi, pi]."""
    return np.angle(np.exp(1j * np.asarray(angle)))


def control(pendulum: Pendulum, world: World, angle: float, goal: float, target: np.ndarray
            ) -> dict[str, Any]:
    """One run of STEPS steps from rest at `angle`: errors, frames, torques and times."""
    controller, frame = Controller(world, target), pendulum.set(angle)
    run: dict[str, Any] = {"error": [], "frame": [], "torque": [], "sd": [], "angle": [], "ms": []}
    for _ in range(STEPS):
        start = time.perf_counter()
        torque, plan = controller.act(frame)
        run["ms"].append(1e3 * (time.perf_counter() - start))
        run["frame"].append(frame)
        run["torque"].append(torque)
        run["sd"].append(float(np.sqrt(plan.variance("u")[SEEN - 1, 0])))
        controller.torques[-1] = np.full(1, torque, np.float32)
        frame = pendulum.step(torque)
        run["angle"].append(pendulum.angle)
        run["error"].append(float(abs(wrap(pendulum.angle - goal))))
    return run


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the job; returns the summary that is written to summary.json."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of data, training and starts")
    parser.add_argument("--goal", type=float, default=0.0, help="angle in rad, 0 is upright")
    parser.add_argument("--starts", type=int, default=20, help="runs from random angles, at rest")
    parser.add_argument("--episodes", type=int, default=50, help="episodes of 60 random steps")
    parser.add_argument("--fast", action="store_true", help="2 starts, a briefly trained VAE")
    parser.add_argument("--out", type=Path, default=Path("outputs/pendulum"), help="folder")
    args = parser.parse_args(argv)
    starts, vae_steps = (2, 250) if args.fast else (args.starts, 500)
    args.out.mkdir(parents=True, exist_ok=True)
    began, clock = time.perf_counter(), {}

    pendulum = Pendulum(SIZE)
    target = goal_frame(pendulum, args.goal)
    world = learn(pendulum, args.seed, args.episodes, vae_steps, clock)
    angles = np.random.default_rng(1000 + args.seed).uniform(-np.pi, np.pi, starts)
    control(pendulum, world, 0.0, args.goal, target) if not args.fast else None  # compiles
    runs = [control(pendulum, world, a, args.goal, target) for a in tqdm(angles, desc="control")]
    errors = np.array([r["error"] for r in runs])
    summary = {
        "seconds_total": time.perf_counter() - began, **clock,
        "ms_per_control_step": float(np.median([r["ms"] for r in runs])),
        "reach": int((errors.min(1) < 0.15).sum()),
        "hold": int((errors[:, -20:].max(1) < 0.3).sum()),
        "starts": starts, "median_final_error": float(np.median(errors[:, -1])),
        "seed": args.seed, "goal": args.goal,
    }
    (args.out / "summary.json").write_text(json.dumps(summary, indent=2))
    pictures.write_all(args.out, world, runs, args.goal, target)
    print(json.dumps(summary, indent=2))
    return summary


if __name__ == "__main__":
    main()
