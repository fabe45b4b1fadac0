"""Gymnasium's Pendulum-v1 from pixels and torques alone: one program learns, imagines and acts.

    python -m examples.swing_up --seed 0

The arm is the environment's own: 2 N m at most, where gravity takes up to 5, so that it has to be
swung up. No state and no reward is used; the true angle and the rewards serve for scoring.

1. collects ten episodes of random torques, 2,000 steps;
2. learns the program of `jopa_ppl.models.swing` by variational EM: encoder, decoder and the
   polynomial dynamics of the poses on one free energy, from a VAE that only knows the principal
   components of a cover of the frames;
3. imagines: predicts held-out episodes 40 steps ahead, from 20 frames and the torques alone;
4. acts: filters, plans 30 steps with the image of the upright arm for a goal, and takes the first
   torque, in episodes of 200 steps. *held* counts those whose last 50 steps stay within 0.3 rad.

The folder --out gets summary.json: `open_loop_ratio` are errors of predicted poses 1, 5, 10, 20 and
40 steps ahead (root mean square), over those of the mean pose; swing_up.png: returns, these errors
and the angles of all starts; imagined.gif: what happens in a held-out episode, and beside it what
the program imagines, 20 steps from 20 frames each.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from examples import _swing_up_env as arm
from examples._swing_up_pictures import animate, draw
from jopa_ppl.models.swing import following, swing
from jopa_ppl.models.vae import VAE, covering

EPISODES = 10              # of random torques, 200 steps each
WINDOW = 50                # steps of a trajectory that is learned from: four of an episode
SWEEPS, STEPS = 2, 80      # of message passing, and of Adam, a round
ROUNDS, RATE = 15, 3e-3    # of variational EM; Adam's rate at first, by a cosine to a 20th
BATCH = 2                  # trajectories of an Adam step: 100 frames
SEEN, AHEAD = 20, (1, 5, 10, 20, 40)        # frames that are seen, and steps that are predicted
SATURATED = 0.999          # of the largest torque, as a draw of the program has to be finite
HORIZON, POLICIES = 30, 2     # of a plan: steps, and policies tried at most
TOGETHER, THREADS = 25, 2     # episodes that one agent acts in side by side, and agents
TIMED = 50                 # control steps of one arm
TOLERANCE = 0.45           # of the goal's pose, a third of the radius of the ring of poses
LINEARISE = {"x": "linearise"}


class Episodes(NamedTuple):
    """`frames[e, t]` is seen, then `actions[e, t]` acts: (E, T, 24, 24, 1), (E, T, 1).

    Actions are as the program draws them: the torque is 2 tanh(action) N m.
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


def to_torque(action: np.ndarray) -> np.ndarray:
    """The torque of an action of the program, N m."""
    return arm.TORQUE * np.tanh(action)


def collect(episodes: int, seed: int) -> Episodes:
    """Episodes of torques that are uniform, and held for 1 to 8 steps."""
    env, rng = arm.make(), np.random.default_rng(seed)
    frames, parts = [], []
    for e in tqdm(range(episodes), desc="random torques", unit="episode"):
        y, _ = env.reset(seed=1000 * seed + e)
        part = np.repeat(rng.uniform(-1, 1, arm.STEPS), rng.integers(1, 9, arm.STEPS))[:arm.STEPS]
        for p in part:
            frames.append(y)
            y, *_ = env.step(np.array([arm.TORQUE * p], np.float32))
        parts.append(part)
    env.close()
    shape = (episodes, arm.STEPS)
    actions = np.arctanh(np.clip(parts, -SATURATED, SATURATED)).astype(np.float32)
    return Episodes(np.reshape(frames, (*shape, *frames[0].shape)), actions.reshape(*shape, 1))


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


def imagine(world: World, data: Episodes) -> tuple[np.ndarray, np.ndarray]:
    """Poses that follow SEEN frames by the torques alone, and those of the frames that came:
    (max(AHEAD), windows, d) both."""
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


def open_loop(world: World, data: Episodes, held: Episodes) -> list[float]:
    """Errors of predicted poses AHEAD steps on, over those of the mean pose."""
    predicted, came = imagine(world, held)
    mean = encode(world.vae, data.frames).mean((0, 1))
    size = lambda gap: np.sqrt((gap**2).sum(-1).mean(1))
    return [float((size(predicted - came) / size(mean - came))[h - 1]) for h in AHEAD]


def act(world: World, data: Episodes, starts: int, seed: int
        ) -> tuple[np.ndarray, np.ndarray, float]:
    """Episodes towards the image of the upright arm, side by side: returns (starts,), angles
    (starts, steps) in radians; and milliseconds that a control step takes of one arm alone."""
    single, options = arm.make(), {"horizon": HORIZON, "max_iters": POLICIES, "messages": LINEARISE,
                                   "to_action": to_torque, "planning": {"tolerance": TOLERANCE}}
    goal, arguments = arm.upright(single), {"vae": world.vae, "speed": world.speed}
    one = jp.Agent(believing(world), {}, space=single.action_space, arguments=arguments,
                   seen=data.frames.reshape(-1, *data.frames.shape[2:]), **options)
    one.goal(goal)          # warns where nothing like it was seen: for all agents
    groups = -(-starts // TOGETHER)
    copies = -(-starts // groups)

    def episodes(first: int, steps: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        envs = arm.Watched(copies)
        agent = jp.Agent(believing(world), {}, copies=copies, space=envs.action_space,
                         arguments={**arguments, "trajectories": copies}, **options)
        agent.goal(goal)
        found = jp.rollout(envs, agent, episodes=copies, steps=steps, progress=False,
                           seed=10_000 + seed + first)
        envs.close()
        return found.returns, np.array(envs.angles).T, found.frames[0]

    warnings.simplefilter("ignore", jp.ConvergenceWarning)       # plans have a step's time alone
    episodes(0, steps=2)                # compiled here, and not by every thread
    with ThreadPoolExecutor(THREADS) as pool:       # one plans while the other one is drawn
        parts = list(tqdm(pool.map(episodes, range(0, starts, copies)), desc="acting",
                          unit=f"{copies} episodes", total=groups))
    returns, angles = (np.concatenate(x)[:starts] for x in list(zip(*parts))[:2])
    clocks = []
    for frame in parts[0][2][:TIMED]:
        one.act(frame)
        clocks.append(time.perf_counter())
    single.close()
    return returns, angles, 1e3 * float(np.median(np.diff(clocks)))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.swing_up", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of data, training and starts (0)")
    parser.add_argument("--starts", type=int, default=100, help="episodes that are scored (100)")
    parser.add_argument("--steps", type=int, nargs="+", default=[EPISODES * arm.STEPS],
                        help="random steps that are learned from, each number by itself "
                             f"({EPISODES * arm.STEPS})")
    parser.add_argument("--fast", action="store_true",
                        help="a smoke test: 2 episodes, 2 rounds of variational EM")
    parser.add_argument("--out", type=Path, default=Path("outputs/swing_up"),
                        help="folder of the results (outputs/swing_up)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the job; returns the summary that is written to summary.json."""
    args = parse(argv)
    counts, rounds = ([400], 2) if args.fast else (sorted(args.steps), ROUNDS)
    clock: dict[str, float] = {}
    with timed(clock, "seconds_total"):
        with timed(clock, "seconds_collecting"):
            data = collect(counts[-1] // arm.STEPS, args.seed)
            held = collect(1 if args.fast else 4, args.seed + 1000)
        curve = []
        for count in counts:
            seen = Episodes(*(x[:count // arm.STEPS] for x in data))
            with timed(clock, "seconds_learning"):
                world = learn(seen, args.seed, rounds)
            with timed(clock, "seconds_imagining"):
                ratio = open_loop(world, seen, held)
            with timed(clock, "seconds_acting"):
                returns, angles, ms = act(world, seen, 2 if args.fast else args.starts,
                                          args.seed)
            up = (np.abs(angles[:, -50:]) < 0.3).all(1)
            curve.append({"environment_steps": count, "mean_return": float(returns.mean()),
                          "returns": returns.tolist(), "held": int(up.sum()),
                          "open_loop_ratio": ratio})
        with timed(clock, "seconds_drawing"):
            args.out.mkdir(parents=True, exist_ok=True)
            draw(args.out / "swing_up.png", curve, AHEAD, angles)
            poses = imagine(world, Episodes(*(x[:1] for x in held)))[0][:SEEN].swapaxes(0, 1)
            animate(args.out / "imagined.gif", held.frames[0, SEEN:],
                    np.concatenate(np.asarray(world.vae.decode(poses))))
    summary = {**clock, **{k: v for k, v in curve[-1].items() if k != "returns"},
               "seed": args.seed, "starts": len(up), "ms_per_control_step": ms,
               "ahead": list(AHEAD),
               "free_energy": float(world.learned.free_energy[-1]), "curve": curve}
    (args.out / "summary.json").write_text(json.dumps(summary, indent=2))
    print(json.dumps({k: v for k, v in summary.items() if k != "curve"}, indent=2))
    return summary


if __name__ == "__main__":
    main()
