"""What the examples of the arm have in common: they collect, learn, imagine and act.

The program is `jopa_ppl.models.swing`: polynomial dynamics of poses, learned jointly with the
networks by variational EM on one free energy, from frames and torques alone.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm.auto import tqdm

import jopa_ppl as jp
from examples import _arm_env as arm
from jopa_ppl.models.swing import following, swing
from jopa_ppl.models.vae import VAE, covering

WINDOW = 50                # steps of a trajectory that is learned from: four of an episode
SWEEPS, STEPS = 2, 80      # of message passing, and of Adam, a round
ROUNDS, RATE = 15, 3e-3    # of variational EM; Adam's rate at first, by a cosine to a 20th
BATCH = 2                  # trajectories of an Adam step: 100 frames
SEEN, AHEAD = 20, (1, 5, 10, 20, 40)        # frames that are seen, and steps that are predicted
SATURATED = 0.999          # of the largest torque, as a draw of the program has to be finite
POLICIES = 2               # tried at most in a plan
TOLERANCE = 0.45           # of the goal's pose, a third of the radius of the ring of poses
LINEARISE = {"x": "linearise"}


class Episodes(NamedTuple):
    """`frames[e, t]` is seen, then `actions[e, t]` acts: (E, T, 24, 24, 1), (E, T, 1).

    Actions are as the program draws them: the torque is the largest one times tanh(action).
    """

    frames: np.ndarray
    actions: np.ndarray


class World(NamedTuple):
    """What was learned: the networks, the beliefs about the dynamics, the unit of velocities."""

    vae: VAE
    learned: jp.Posterior
    speed: float


@contextmanager
def timed(clock: dict[str, float], name: str) -> Iterator[None]:
    """Put the seconds that the block takes into clock[name]."""
    start = time.perf_counter()
    yield
    clock[name] = clock.get(name, 0.0) + time.perf_counter() - start


def collect(episodes: int, seed: int, torque: float = arm.TORQUE, processes: bool = True
            ) -> Episodes:
    """Episodes of torques that are uniform, and held for 1 to 8 steps."""
    envs, rng = arm.Watched(episodes, torque, processes), np.random.default_rng(seed)
    parts = np.stack([np.repeat(rng.uniform(-1, 1, arm.STEPS), rng.integers(1, 9, arm.STEPS))
                      [:arm.STEPS] for _ in range(episodes)])
    y, _ = envs.reset(seed=[1000 * seed + e for e in range(episodes)])
    frames = []
    for p in tqdm(parts.T, desc=f"random torques, {episodes} episodes", unit="step"):
        frames.append(y)
        y, *_ = envs.step((torque * p[:, None]).astype(np.float32))
    envs.close()
    actions = np.arctanh(np.clip(parts, -SATURATED, SATURATED)).astype(np.float32)
    return Episodes(np.stack(frames, 1), actions[..., None])


def cut(array: np.ndarray, length: int) -> np.ndarray:
    """Episodes (E, T, ..) in trajectories, time first: (length, E T / length, ..)."""
    parts = array.shape[0] * (array.shape[1] // length)
    return array.reshape(parts, length, *array.shape[2:]).swapaxes(0, 1)


def learn(data: Episodes, seed: int, rounds: int = ROUNDS) -> World:
    """The networks and the beliefs, on one free energy."""
    key = jax.random.key(seed)
    vae = covering(data.frames.reshape(-1, *data.frames.shape[2:]), key)
    speed = float(np.diff(encode(vae, data.frames), axis=1).std())
    frames = cut(data.frames, WINDOW)
    model = jp.condition(swing, {"u": cut(data.actions, WINDOW)})
    optim = optax.adam(optax.cosine_decay_schedule(RATE, rounds * STEPS, 0.05))
    em = jp.VariationalEM(model, optim, e_sweeps=SWEEPS, m_steps=STEPS, batch=BATCH,
                          messages=LINEARISE)
    learned, weights = em.run(key, rounds, frames, T=WINDOW, trajectories=frames.shape[1], vae=vae,
                              speed=speed)
    graph, state = nnx.split(vae)
    nnx.replace_by_pure_dict(state, weights["vae"])
    return World(nnx.merge(graph, state), learned, speed)


@jax.jit
def _encode(vae: VAE, frames: jax.Array) -> jax.Array:
    return vae.encode(frames)[0]


def encode(vae: VAE, frames: np.ndarray) -> np.ndarray:
    """Mean poses of frames, (.., d)."""
    return np.asarray(_encode(vae, jnp.asarray(frames)))


def believing(world: World) -> Callable:
    """The program with what was learned of the dynamics, at its means: a plan a step has no time
    for what is left open about 140 numbers."""
    return jp.condition(swing, {n: np.asarray(world.learned.mean(n)) for n in ("A", "W")})


# -- imagining -------------------------------------------------------------------------------------


def imagine(world: World, data: Episodes) -> tuple[np.ndarray, np.ndarray]:
    """Poses that follow SEEN frames by the torques alone, and those of the frames that came:
    (max(AHEAD), windows, d) both; a window begins every SEEN steps, of all episodes in turn."""
    length = SEEN + max(AHEAD)
    every = range(0, data.frames.shape[1] - length + 1, SEEN)
    frames, actions = (np.concatenate([x[:, t:t + length] for t in every]).swapaxes(0, 1)
                       for x in data)
    seen = jp.VMP(jp.condition(believing(world), {"u": actions[:SEEN]}), messages=LINEARISE,
                  tol=1e-4).run(frames[:SEEN], T=SEEN, trajectories=frames.shape[1], vae=world.vae,
                                speed=world.speed)
    last, pose = seen.mean("x")[-2:]           # of the last frame that is seen, and of the next
    path, A = [], jnp.asarray(world.learned.mean("A"))
    for action in actions[SEEN:]:
        path.append(np.asarray(pose))
        last, pose = pose, following(A, last, pose, action, world.speed)
    return np.stack(path), encode(world.vae, frames[SEEN:])


def open_loop(world: World, data: Episodes, imagined: tuple[np.ndarray, np.ndarray]
              ) -> list[float]:
    """Errors of poses predicted AHEAD steps on, over those of the mean pose."""
    predicted, came = imagined
    mean = encode(world.vae, data.frames).mean((0, 1))
    size = lambda gap: np.sqrt((gap**2).sum(-1).mean(1))
    return [float((size(predicted - came) / size(mean - came))[h - 1]) for h in AHEAD]


# -- acting ----------------------------------------------------------------------------------------


def agent(world: World, env: Any, horizon: int, **options: Any) -> jp.Agent:
    """An agent that plans `horizon` steps in this environment, or in all copies of a vector."""
    copies, largest = getattr(env, "num_envs", None), float(np.max(env.action_space.high))
    arguments = {"vae": world.vae, "speed": world.speed}
    return jp.Agent(believing(world), {}, horizon=horizon, space=env.action_space, copies=copies,
                    to_action=lambda drawn: largest * np.tanh(drawn), max_iters=POLICIES,
                    messages=LINEARISE, planning={"tolerance": TOLERANCE},
                    arguments=arguments | ({"trajectories": copies} if copies else {}), **options)


def side_by_side(driver: jp.Agent, envs: arm.Watched, episodes: int, steps: int, seed: int
                 ) -> tuple[jp.Rollout, np.ndarray]:
    """What happens in all copies at once, as many times as `episodes` takes, and the true angles
    before every step (episodes, steps)."""
    before = len(envs.angles)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jp.ConvergenceWarning)       # plans have a step's time
        found = jp.rollout(envs, driver, episodes=episodes, steps=steps, seed=seed)
    angles = np.reshape(envs.angles[before:], (-1, steps, envs.num_envs)).swapaxes(1, 2)
    return found, angles.reshape(-1, steps)


def write(out: Path, summary: Mapping[str, Any], left_out: Sequence[str] = ()) -> None:
    """summary.json into a folder; and on the screen, but for what is long."""
    (out / "summary.json").write_text(json.dumps(summary, indent=2))
    print(json.dumps({k: v for k, v in summary.items() if k not in left_out}, indent=2))
