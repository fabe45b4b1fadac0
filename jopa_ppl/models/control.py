"""Control from pixels, of any system: learn from frames and actions, imagine, act.

    world = learn(frames, actions, 2.0)             # of random actions, up to 2 either way
    driver = agent(world, env, horizon=30)          # a jp.Agent
    driver.goal(frame)
    found = jp.rollout(env, driver, episodes=3)

The program is `jopa_ppl.models.swing`. Its encoder, its decoder and the beliefs about its dynamics
are learned by `jp.VariationalEM` on one free energy, from a VAE that only knows the principal
components of a cover of the frames. No state and no reward is asked for. Constants are those of
`examples.swing_up`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from numpy.typing import ArrayLike

import jopa_ppl as jp
from jopa_ppl.errors import DataError, JopaError, ShapeError
from jopa_ppl.infer.inputs import real
from jopa_ppl.language.keys import as_key
from jopa_ppl.models.swing import following, swing
from jopa_ppl.models.vae import VAE, covering

SATURATED = 0.999          # of the largest action, as a draw of the program has to be finite
LINEARISE = {"x": "linearise"}


class World(NamedTuple):
    """What was learned: the networks, the beliefs about the dynamics, the unit of velocities, and
    the largest actions (du,), in the environment's units."""

    vae: VAE
    learned: jp.Posterior
    speed: float
    largest: np.ndarray

    def drawn(self, actions: ArrayLike) -> np.ndarray:
        """What the program draws for actions (.., du): action = largest tanh(drawn)."""
        return drawn_for(actions, self.largest)

    def taken(self, drawn: ArrayLike) -> np.ndarray:
        """The actions (.., du) for what the program draws."""
        return self.largest * np.tanh(drawn)

    @property
    def program(self) -> Callable:
        """With what was learned of the dynamics, at its means: a plan a step has no time for what
        is left open about 140 numbers."""
        return jp.condition(swing, {n: np.asarray(self.learned.mean(n)) for n in ("A", "W")})


def drawn_for(actions: ArrayLike, largest: ArrayLike) -> np.ndarray:
    """As `World.drawn`."""
    share = np.asarray(actions) / largest
    return np.arctanh(np.clip(share, -SATURATED, SATURATED)).astype(np.float32)


def learn(frames: np.ndarray, actions: np.ndarray, largest: ArrayLike, *, rng_key: Any = 0,
          d: int = 2, rounds: int = 15, window: int = 50, sweeps: int = 2, steps: int = 80,
          batch: int = 2, rate: float = 3e-3, progress: bool = True) -> World:
    """The networks and the beliefs, on one free energy.

    Args:
        frames: (episodes, T, H, W, C) in [0, 1], or of bytes; actions: (episodes, T, du), those
            that follow each frame, in the environment's units, `largest` (du,) or one for all
            either way.
        rng_key: of the networks and of training: a key or a whole number.
        d: numbers that a pose has.
        rounds: of variational EM: `sweeps` of message passing, and `steps` of Adam on minibatches
            of `batch` trajectories of `window` steps each; its rate falls from `rate` to a 20th.
        progress: show a bar.

    Raises:
        ShapeError: frames and actions do not fit, or episodes are shorter than a window.
        DataError: frames are not in [0, 1], or actions larger than the largest.
    """
    frames, actions = np.asarray(frames), np.asarray(actions)
    if frames.ndim != 5 or actions.ndim != 3 or frames.shape[:2] != actions.shape[:2]:
        fix = ("frames[..., None]: the channel is an axis too" if frames.ndim == 4
               else "stack episodes of one length")
        raise ShapeError("frames and actions of episodes", found=(frames.shape, actions.shape),
                         expected="(episodes, T, H, W, C) and (episodes, T, du)", fix=fix)
    if frames.shape[1] < window:
        raise ShapeError("episodes shorter than a window", found=f"{frames.shape[1]} steps",
                         expected=f"{window} or more", fix="pass a smaller window=")
    frames, key = scaled(frames), as_key(rng_key)
    if (np.abs(actions) > 1.001 * np.asarray(largest)).any():
        raise DataError("actions are larger than the largest", found=np.abs(actions).max((0, 1)),
                        expected=f"{largest} at most", fix="pass largest=env.action_space.high")
    vae = covering(frames.reshape(-1, *frames.shape[2:]), key, d=d)
    speed = float(np.diff(encode(vae, frames), axis=1).std())
    largest = np.broadcast_to(largest, actions.shape[-1:])
    y, u = cut(frames, window), cut(drawn_for(actions, largest), window)
    optim = optax.adam(optax.cosine_decay_schedule(rate, rounds * steps, 0.05))
    em = jp.VariationalEM(jp.condition(swing, {"u": u}), optim, e_sweeps=sweeps, m_steps=steps,
                          batch=batch, messages=LINEARISE, progress=progress)
    learned, weights = em.run(key, rounds, y, T=window, trajectories=y.shape[1], vae=vae,
                              speed=speed, du=u.shape[-1])
    graph, state = nnx.split(vae)
    nnx.replace_by_pure_dict(state, weights["vae"])
    return World(nnx.merge(graph, state), learned, speed, largest)


def scaled(frames: ArrayLike) -> np.ndarray:
    """Frames in [0, 1], which the networks are made for: bytes over 255, others as they are.

    Raises:
        DataError: they are neither.
    """
    found = np.asarray(frames)
    if found.dtype == np.uint8:
        return found.astype(np.float32) / 255
    lowest, highest = np.nanmin(found, initial=0.0), np.nanmax(found, initial=0.0)
    if not (np.issubdtype(found.dtype, np.floating) and lowest >= -0.01 and highest <= 1.01):
        raise DataError("frames are pictures", found=f"{found.dtype}, {lowest:.3g} to "
                        f"{highest:.3g}", expected="bytes, or numbers in [0, 1]",
                        fix="gymnasium.wrappers.TransformObservation(env, lambda x: x / 255, ..)")
    return found


def cut(array: np.ndarray, length: int) -> np.ndarray:
    """Episodes (E, T, ..) in trajectories, time first: (length, E (T // length), ..)."""
    parts = array.shape[1] // length
    whole = array[:, :parts * length]
    return whole.reshape(len(array) * parts, length, *array.shape[2:]).swapaxes(0, 1)


@jax.jit
def _encode(vae: VAE, frames: jax.Array) -> jax.Array:
    return vae.encode(frames)[0]


def encode(vae: VAE, frames: np.ndarray) -> np.ndarray:
    """Mean poses of frames, (.., d)."""
    return np.asarray(_encode(vae, jnp.asarray(frames)))


def imagine(world: World, frames: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Poses (ahead, N, d) of the steps that follow frames (seen, N, H, W, C), by the actions
    (seen + ahead, N, du) alone; `world.vae.decode` draws them.

    Raises:
        ShapeError: fewer than two frames are seen, or no action follows them.
    """
    seen, N, drawn = len(frames), frames.shape[1], world.drawn(actions)
    if seen < 2 or len(drawn) <= seen:
        raise ShapeError("what follows frames that are seen", found=f"{seen} frames, {len(drawn)} "
                         "actions", expected="two frames or more, and more actions than these",
                         fix="pass the actions between the frames, then those to imagine")
    model = jp.condition(world.program, {"u": drawn[:seen]})
    found = jp.VMP(model, messages=LINEARISE, tol=1e-4).run(
        frames, T=seen, trajectories=N, vae=world.vae, speed=world.speed, du=drawn.shape[-1])
    last, pose = found.mean("x")[-2:]          # of the last frame that is seen, and of the next
    path, A = [], jnp.asarray(world.learned.mean("A"))
    for u in drawn[seen:]:
        path.append(np.asarray(pose))
        last, pose = pose, following(A, last, pose, u, world.speed)
    return np.stack(path)


def agent(world: World, env: Any, horizon: int, *, tolerance: float = 0.45, max_iters: int = 2,
          **options: Any) -> jp.Agent:
    """An agent that plans `horizon` steps in this environment, or in all copies of a vector.

    Args:
        env: its observations are frames as `learn` had them, in [0, 1] or of bytes, its actions a
            Box that is as wide either way.
        tolerance: of the goal's pose, a third of the radius of a ring of poses.
        max_iters: policies tried at most in a plan.
        options: of `jp.Agent`.

    Raises:
        JopaError: the Box is another one than that of the actions that were learned from.
        DataError (when it acts): a frame or a goal is not in [0, 1].
    """
    copies = getattr(env, "num_envs", None)
    box = real(getattr(env, "single_action_space", env.action_space))
    if box.shape != world.largest.shape or not (np.allclose(box.high, world.largest)
                                                and np.allclose(box.low, -world.largest)):
        raise JopaError("these are other actions than were learned from", found=box,
                        expected=f"a Box from -{world.largest} to {world.largest}",
                        fix="rescale them: gymnasium.wrappers.RescaleAction")
    arguments = {"vae": world.vae, "speed": world.speed, "du": len(world.largest)}
    return jp.Agent(world.program, {}, horizon=horizon, space=env.action_space, copies=copies,
                    to_action=world.taken, to_frame=scaled, max_iters=max_iters, messages=LINEARISE,
                    planning={"tolerance": tolerance},
                    arguments=arguments | ({"trajectories": copies} if copies else {}), **options)
