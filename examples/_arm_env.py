"""Gymnasium's Pendulum-v1 seen through small grey frames: as it ships, or with a stronger motor.

Torques of up to 2 N m unless another limit is given (gravity takes up to 5), steps of 0.05 s,
episodes of 200 steps, starts of `env.reset()`, its own renderer. Two things are done to what it
draws: the arrow that shows the torque is left out, and the middle of the picture is averaged to
24 x 24 pixels. (Gymnasium's ResizeObservation would do that as well; it needs OpenCV, and keeps
the empty border.)
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import AddRenderObservation, GrayscaleObservation, TransformObservation

# Without a desktop SDL complains that it has no such folder; nothing is written to it.
os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())

SIZE = 24               # pixels a side
TORQUE = 2.0            # N m, as the environment ships
STEPS = 200             # of an episode
_SCREEN = 500           # pixels a side of what Pendulum-v1 draws, 4.4 lengths of the arm
_BLOCK = 11             # pixels a side that make one of ours: the arm, 1.1 long, and a margin
_FIRST = (_SCREEN - SIZE * _BLOCK) // 2


class WithoutArrow(gym.Wrapper):
    """The renderer draws the last torque as an arrow over the arm: nobody drives by that. The true
    angle is told beside what is seen, for scoring alone."""

    def reset(self, **options: Any) -> tuple:
        seen, info = self.env.reset(**options)
        return seen, info | {"angle": self.unwrapped.state[0]}

    def step(self, action: Any) -> tuple:
        *found, info = self.env.step(action)
        self.unwrapped.last_u = None
        return *found, info | {"angle": self.unwrapped.state[0]}


def shrink(screen: np.ndarray) -> np.ndarray:
    """The middle of the screen in blocks of 11 x 11 pixels, (24, 24, 3) of bytes."""
    last = _FIRST + SIZE * _BLOCK
    middle = screen[_FIRST:last, _FIRST:last].reshape(SIZE, _BLOCK, SIZE * _BLOCK * 3)
    rows = middle.sum(1, dtype=np.uint16).reshape(SIZE, SIZE, _BLOCK, 3)
    return np.rint(rows.sum(2, dtype=np.uint32) / np.float32(_BLOCK**2)).astype(np.uint8)


def make(torque: float = TORQUE) -> gym.Env:
    """Pendulum-v1 whose observations are frames (24, 24, 1) in [0, 1], a dark arm on white; its
    largest torque in N m."""
    env = gym.make("Pendulum-v1", render_mode="rgb_array")
    env.unwrapped.max_torque = torque
    env.unwrapped.action_space = gym.spaces.Box(-torque, torque, (1,), np.float32)
    env = WithoutArrow(env)
    env = AddRenderObservation(env)
    colours = gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
    env = GrayscaleObservation(TransformObservation(env, shrink, colours), keep_dim=True)
    grey = gym.spaces.Box(0.0, 1.0, (SIZE, SIZE, 1), np.float32)
    return TransformObservation(env, lambda y: (y / 255).astype(np.float32), grey)


class Watched(gym.vector.VectorWrapper):
    """Copies side by side whose true angles are noted before every step, in (-pi, pi], 0 upright:
    for scoring alone. With `processes` each is drawn by a process of its own, forked before JAX has
    anything to do, as it has threads from then on."""

    def __init__(self, copies: int, torque: float = TORQUE, processes: bool = True) -> None:
        vector = gym.vector.AsyncVectorEnv if processes else gym.vector.SyncVectorEnv
        super().__init__(vector([partial(make, torque)] * copies))
        self.angles: list[np.ndarray] = []

    def reset(self, **options: Any) -> tuple:
        """As the environments do."""
        seen, info = self.env.reset(**options)
        self._at = info["angle"]
        return seen, info

    def step(self, actions: Any) -> tuple:
        """As the environments do."""
        self.angles.append(wrap(self._at))
        *found, info = self.env.step(actions)
        self._at = info["angle"]
        return *found, info


def wrap(angle: Any) -> np.ndarray:
    """Angles in (-pi, pi]."""
    return np.angle(np.exp(1j * np.asarray(angle)))


def at_rest(env: gym.Env, angle: float = 0.0) -> np.ndarray:
    """A goal: a picture of the arm at rest at an angle (rad, 0 upright), (24, 24, 1)."""
    env.reset()
    inner = env.unwrapped
    inner.state, gravity = np.array([angle, 0.0]), inner.g
    inner.g = 0.0                     # so that it stays there for the step that draws it
    frame = env.step(np.zeros(1, np.float32))[0]
    inner.g = gravity
    return frame
