"""A pendulum of 10 N m from pixels and torques alone: learn, see, plan, act.

    python -m examples.pendulum --goal 0 1.5708 --seed 0

The arm is that of Gymnasium's Pendulum-v1 with a stronger motor: up to 10 N m in place of the 2 it
ships with. Gravity takes up to 5, so that this arm can be lifted to any angle, and held there.

1. collects episodes of random torques and trains a convolutional VAE on single frames;
2. learns one linear model of the motion by message passing, for all episodes at once; with --em
   the VAE is then trained further on the free energy of that model, by variational EM, and steps 3
   and 4 are of both, the frozen VAE first: its figures are "frozen" in summary.json;
3. controls in a receding horizon: refits local models along the last plan, filters the last
   frames and plans with the goal image held at every future step, all of it in programs;
4. writes to the folder --out: control.gif (the start farthest from the first goal), frames.png,
   free_energy.png, posterior.nc (for ArviZ) and summary.json.

No state and no reward is used; the true angle serves for scoring only. Over --starts random
angles at rest and 80 steps of 0.05 s, *reach* counts the runs that come within 0.15 rad of the
goal, *hold* those whose last 20 steps all stay within 0.3 rad of it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from tqdm.auto import tqdm

import jopa_ppl as jp
from examples import _pendulum_pictures as pictures
from examples._pendulum_env import Episodes, Pendulum, collect, goal_frame
from jopa_ppl.models.vae import VAE, train
from models.second_order import constant_velocity, dynamics, local_dynamics, local_plan

SIZE = 24              # pixels a side
HORIZON = 20           # steps of a plan, 1 s
SEEN = 3               # frames that are filtered before a plan
RELINEARISE = 2        # plans a control step, each with models along the one before
STEPS = 80             # steps of control, 4 s
NEAR = 15              # the distance to the 15th nearest transition is the width of "near"
REPLAY = 128           # transitions replayed for a state; farther ones weigh next to nothing
ACTION_SCALE = 20.0    # standard deviation of the torque's prior, N m
GOAL_WEIGHT = 0.1      # of a goal frame's likelihood: a few hundredths of a radian do not matter
NOISE = 0.02           # of the local models, in latent units
EM_STEPS, EM_RATE = 20, 3e-4     # of variational EM, and the rate of its Adam


class World(NamedTuple):
    """What was learned: the VAE, the posterior of the global model, and transitions to replay."""

    vae: VAE
    learned: jp.Posterior
    features: np.ndarray   # (transitions, 2 d + du + 1): x_{t-1}, x_t, u_t, 1
    following: np.ndarray  # (transitions, d): x_{t+1}
    losses: np.ndarray
    frames: np.ndarray
    torques: np.ndarray


@contextmanager
def timed(clock: dict[str, float], name: str) -> Iterator[None]:
    """Put the seconds that the block takes into clock[name]."""
    start = time.perf_counter()
    yield
    clock[name] = time.perf_counter() - start


def learn(pendulum: Pendulum, seed: int, episodes: int, vae_steps: int, clock: dict[str, float],
          length: int = 60) -> World:
    """Collect episodes, train the VAE, learn the dynamics."""
    data = collect(pendulum, episodes, length, seed)
    with timed(clock, "seconds_vae"):
        vae, losses = train(data.frames, jax.random.key(seed), steps=vae_steps)
    with timed(clock, "seconds_vmp"):
        learned = identify(data, vae)
    return World(vae, learned, *transitions(learned, data.torques), np.asarray(losses), *data)


def identify(data: Episodes, vae: VAE) -> jp.Posterior:
    """Beliefs about one linear model for all episodes, and about their poses."""
    program, frames, sizes = question(data)
    return jp.VMP(program, max_iters=100, tol=1e-5).run(frames, vae=vae, **sizes)


def refine(world: World, key: Array, steps: int) -> World:
    """Both networks trained on the free energy of the whole model, from where the VAE stands."""
    vae = world.vae
    program, frames, sizes = question(Episodes(world.frames, world.torques))
    optim = optax.chain(optax.clip_by_global_norm(1e5), optax.adam(EM_RATE))
    em = jp.VariationalEM(program, optim, e_sweeps=2, m_steps=10, batch=5)
    learned, weights = em.run(key, steps, frames, vae=vae, **sizes)
    graph, state = nnx.split(vae)
    nnx.replace_by_pure_dict(state, weights["vae"])
    features, following = transitions(learned, world.torques)
    return world._replace(vae=nnx.merge(graph, state), learned=learned, features=features,
                          following=following)


def question(data: Episodes) -> tuple[Callable, np.ndarray, dict[str, Any]]:
    """The program with its torques known, and its arguments: frames (T, N, ..) and sizes."""
    program = jp.condition(dynamics, {"u": data.torques.swapaxes(0, 1)})
    return program, data.frames.swapaxes(0, 1), {
        "T": data.frames.shape[1], "trajectories": len(data.frames), "action_scale": ACTION_SCALE}


def transitions(learned: jp.Posterior, torques: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features and following poses of local models, from smoothed poses, not raw encodings."""
    first = np.stack([learned.mean("x0"), learned.mean("x1")])
    poses = np.concatenate([first, np.asarray(learned.mean("x"))[:-1]])
    steps, episodes, d = len(poses) - 2, *poses.shape[1:]
    features = np.concatenate([poses[:-2], poses[1:-1], torques.swapaxes(0, 1)[:steps],
                               np.ones((steps, episodes, 1))], -1, dtype=np.float32)
    return features.reshape(steps * episodes, -1), poses[2:].reshape(-1, d)


@jax.jit
def encode(vae: VAE, frame: Array) -> Array:
    """The mean pose of a frame, (d,)."""
    return vae.encode(frame)[0]


def replay(states: np.ndarray, features: np.ndarray, following: np.ndarray
           ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The transitions nearest to each planned state (H, 2 d): following, features and weights."""
    at = features[:, :states.shape[1]]
    gap = (at**2).sum(1) - 2 * states @ at.T + (states**2).sum(1, keepdims=True)
    index = np.argpartition(gap, REPLAY, 1)[:, :REPLAY]
    gap = np.maximum(np.take_along_axis(gap, index, 1), 0)
    # An arm at rest is seen as one pose again and again: nothing is nearer than the noise.
    near = np.maximum(np.partition(gap, NEAR, 1)[:, NEAR:NEAR + 1], NOISE**2)
    return following[index], features[index], np.exp(-gap / near)


@partial(jax.jit, static_argnums=1)
def unpack(M: Array, past: int) -> tuple[Array, Array, Array]:
    """A, B, c of every step from local models (H, 2 d + 2, d); the first ones serve the past."""
    M = jnp.swapaxes(jnp.concatenate([jnp.repeat(M[:1], past, 0), M, M[-1:]]), 1, 2)
    d = M.shape[1]
    return M[..., :2 * d], M[..., 2 * d:2 * d + 1], M[..., 2 * d + 1]


@cache
def local_prior(d: int) -> np.ndarray:
    """The mean of local models before transitions are seen, (2 d + du + 1, d): inertia alone."""
    return np.concatenate([constant_velocity(d).T, np.zeros((2, d), np.float32)])


def local_models(states: np.ndarray, features: np.ndarray, following: np.ndarray) -> np.ndarray:
    """Mean local models (H, 2 d + du + 1, d) near H states, by VMP on replayed transitions."""
    following, features, weights = replay(states, features, following)
    local = jp.VMP(local_dynamics, max_iters=1).run(
        following, features=features, weights=weights, prior=local_prior(following.shape[-1]),
        noise=NOISE)
    return np.asarray(local.mean("M"))[:, 0]


def predict(world: World, start: np.ndarray, torques: np.ndarray) -> np.ndarray:
    """Poses that follow two poses `start` (2, d) under torques (T, 1) without frames, (T, d)."""
    path = list(start)
    for u in torques:
        near = np.tile(np.concatenate(path[-2:], dtype=np.float32), (HORIZON, 1))   # as in control
        M = local_models(near, world.features, world.following)[0]
        path.append(np.concatenate([*path[-2:], u, [1.0]]) @ M)
    return np.stack(path[2:])


class Controller:
    """A receding-horizon controller made of programs."""

    def __init__(self, world: World, goal: np.ndarray, max_torque: float) -> None:
        self.world, self.max_torque = world, max_torque
        self.goals = [goal] * HORIZON
        self.weights = np.repeat([1.0, GOAL_WEIGHT], [SEEN, HORIZON])
        self.features, self.following = world.features, world.following
        self.poses: list[np.ndarray] = []
        self.frames: list[np.ndarray] = []
        self.torques = [np.zeros(1, np.float32)] * (SEEN - 1)   # at rest before the first frame
        self.states: np.ndarray | None = None

    def remember(self, frame: np.ndarray) -> None:
        """Add what has just been seen to the transitions that are replayed."""
        pose = np.asarray(encode(self.world.vae, frame))
        if not self.frames:
            self.frames = [frame] * (SEEN - 1)
            self.states = np.tile(pose, (HORIZON, 2))
        self.frames.append(frame)
        self.poses.append(pose)
        if len(self.poses) > 2:
            row = np.concatenate([*self.poses[-3:-1], self.torques[-1], np.ones(1, np.float32)])
            self.features = np.concatenate([self.features, row[None]])
            self.following = np.concatenate([self.following, pose[None]])

    def act(self, frame: np.ndarray) -> tuple[float, jp.Posterior]:
        """The torque for this frame, and the plan it is the first action of."""
        self.remember(frame)
        past = SEEN - 1
        seen = np.stack([*self.frames[-SEEN:], *self.goals])
        known = np.full((len(seen), 1), np.nan, np.float32)
        known[:past] = self.torques[-past:]
        planner = jp.VMP(jp.condition(local_plan, {"u": known}), decide="u")
        states = self.states
        for _ in range(RELINEARISE):
            models = unpack(local_models(states, self.features, self.following), past)
            plan = planner.run(seen, self.weights, models, vae=self.world.vae, noise=NOISE,
                               action_scale=ACTION_SCALE)
            x = np.asarray(plan.mean("x"))[past - 2:past + HORIZON]
            states = np.concatenate([x[:-2], x[1:-1]], -1)
        self.states = np.concatenate([states[1:], states[-1:]])
        torque = np.clip(np.asarray(plan.mean("u"))[past], -self.max_torque, self.max_torque)
        self.torques.append(torque.astype(np.float32))
        return float(torque[0]), plan


def wrap(angle: Any) -> Any:
    """An angle in (-pi, pi]."""
    return np.angle(np.exp(1j * np.asarray(angle)))


def control(pendulum: Pendulum, world: World, angle: float, goal: float, target: np.ndarray
            ) -> dict[str, Any]:
    """One run of STEPS steps from rest at `angle`: errors, frames, torques and times."""
    controller = Controller(world, target, pendulum.max_torque)
    frame = pendulum.set(angle)
    run: dict[str, Any] = {"error": [], "frame": [], "torque": [], "sd": [], "angle": [], "ms": []}
    for _ in range(STEPS):
        start = time.perf_counter()
        torque, plan = controller.act(frame)
        run["ms"].append(1e3 * (time.perf_counter() - start))
        run["frame"].append(frame)
        run["torque"].append(torque)
        run["sd"].append(float(np.sqrt(np.asarray(plan.variance("u"))[SEEN - 1, 0])))
        frame = pendulum.step(torque)
        run["angle"].append(pendulum.angle)
        run["error"].append(float(abs(wrap(pendulum.angle - goal))))
    return run


def judge(goal: float, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How runs towards one goal went."""
    errors = np.array([r["error"] for r in runs])
    return {"goal": goal, "ms_per_control_step": float(np.median([r["ms"] for r in runs])),
            "reach": int((errors.min(1) < 0.15).sum()),
            "hold": int((errors[:, -20:].max(1) < 0.3).sum()),
            "starts": len(runs), "median_final_error": float(np.median(errors[:, -1]))}


def steer(pendulum: Pendulum, world: World, angles: Sequence[float], goals: Sequence[float]
          ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Control from all `angles` to every goal: how it went, goal by goal; runs to the first."""
    runs = {}
    for goal in goals:
        target = goal_frame(pendulum, goal)
        runs[goal] = [control(pendulum, world, a, goal, target)
                      for a in tqdm(angles, desc=f"control to {goal:g} rad", unit="run")]
    return [judge(goal, r) for goal, r in runs.items()], runs[goals[0]]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.pendulum", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of data, training and starts (0)")
    parser.add_argument("--goal", type=float, nargs="+", default=[0.0], metavar="RAD",
                        help="angles to reach and hold, 0 is upright and positive is "
                             "anticlockwise; several share one training (0)")
    parser.add_argument("--starts", type=int, default=20, help="runs for each goal (20)")
    parser.add_argument("--episodes", type=int, default=50, help="of 60 random steps each (50)")
    parser.add_argument("--em", type=int, nargs="?", const=EM_STEPS, default=0, metavar="STEPS",
                        help="refine the VAE by variational EM on the free energy of the whole "
                             f"model ({EM_STEPS} steps where no number is given)")
    parser.add_argument("--fast", action="store_true",
                        help="a smoke test: 1 start, 36 episodes, 400 steps of training in place "
                             "of 500, 1 of variational EM")
    parser.add_argument("--out", type=Path, default=Path("outputs/pendulum"),
                        help="folder of the results (outputs/pendulum)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the job; returns the summary that is written to summary.json.

    Its top level is about the first goal; with several, "goals" lists all of them.
    """
    args = parse(argv)
    starts, episodes, vae_steps = (1, 36, 400) if args.fast else (args.starts, args.episodes, 500)
    em_steps = min(args.em, 1) if args.fast else args.em
    clock: dict[str, float] = {}
    with timed(clock, "seconds_total"):
        pendulum = Pendulum(SIZE)
        world = learn(pendulum, args.seed, episodes, vae_steps, clock)
        angles = np.random.default_rng(1000 + args.seed).uniform(-np.pi, np.pi, starts)
        extra = {}
        if em_steps:
            extra["frozen"] = steer(pendulum, world, angles, args.goal)[0]
            with timed(clock, "seconds_em"):
                world = refine(world, jax.random.key(args.seed), em_steps)
        results, runs = steer(pendulum, world, angles, args.goal)
        pictures.write_all(args.out, world, runs, args.goal[0], goal_frame(pendulum, args.goal[0]),
                           partial(predict, world))
    if len(results) > 1:
        extra["goals"] = results
    summary = {**clock, **results[0], "seed": args.seed, "max_torque": pendulum.max_torque, **extra}
    (args.out / "summary.json").write_text(json.dumps(summary, indent=2))
    print(json.dumps(summary, indent=2))
    return summary


if __name__ == "__main__":
    main()
