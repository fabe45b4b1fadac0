"""Gymnasium's Pendulum-v1 with torques up to 10 N m, as small greyscale frames and torques.

The state is never handed on. Angles are in radians, 0 upright; one step is 0.05 s; torques are
clipped to `max_torque`: Pendulum-v1 ships with 2 N m, and gravity takes up to 5.
"""

from __future__ import annotations

import os
import tempfile
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

# Without a desktop SDL complains that it has no such folder; nothing is written to it.
os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())

_SCREEN = 4.4  # width of the rendered scene in arm lengths (Pendulum-v1 draws [-2.2, 2.2])
_VIEW = 2.4  # width that is kept: the arm, its round end, and a margin
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


class Episodes(NamedTuple):
    """`frames[e, t]` is seen, then `torques[e, t]` acts; (E, T, size, size, 1), (E, T, 1)."""

    frames: Array
    torques: Array


class Pendulum:
    """Pendulum-v1 seen through frames of shape (size, size, 1) in [0, 1], dark arm on white.

    The scene is rendered `oversample` times finer and averaged, so the arm's edges carry its angle.
    Pygame draws corners at whole pixels: of the arm of size * oversample / 2.4 pixels the angle
    moves in steps of 0.025 rad at 24 x 4, which no controller can hold upright, 0.0125 at 24 x 8.
    """

    def __init__(self, size: int = 24, max_torque: float = 10.0, oversample: int = 8):
        self.env = gym.make("Pendulum-v1", render_mode="rgb_array", max_episode_steps=-1,
                            disable_env_checker=True)
        self.max_torque = max_torque
        self.size, self.oversample = size, oversample
        physics = self.env.unwrapped
        physics.max_torque = max_torque
        physics.screen_dim = round(size * oversample * _SCREEN / _VIEW)
        self._margin = (physics.screen_dim - size * oversample) // 2
        self.env.reset(seed=0)

    @property
    def angle(self) -> float:
        """The true angle in (-pi, pi], for scoring only."""
        return float(np.angle(np.exp(1j * self.env.unwrapped.state[0])))

    def set(self, angle: float, velocity: float = 0.0) -> Array:
        """Put the arm at `angle` (rad) with `velocity` (rad/s); return the frame."""
        self.env.unwrapped.state = np.array([angle, velocity])
        return self.frame()

    def step(self, torque: float | Array) -> Array:
        """Apply one torque for 0.05 s; return the next frame."""
        self.env.step(np.clip(np.reshape(torque, 1), -self.max_torque, self.max_torque))
        return self.frame()

    def frame(self) -> Array:
        """The present frame, (size, size, 1) in [0, 1]; the torque arrow is not drawn."""
        self.env.unwrapped.last_u = None  # the renderer draws its arrow from this
        rgb, m, n = self.env.render(), self._margin, self.size * self.oversample
        grey = rgb[m : m + n, m : m + n] @ (_LUMA / 255)
        k = self.oversample
        return grey.reshape(self.size, k, self.size, k).mean((1, 3))[..., None].astype(np.float32)

    def close(self) -> None:
        """Release the renderer."""
        self.env.close()


def collect(pendulum: Pendulum, episodes: int, steps: int, seed: int) -> Episodes:
    """Episodes from uniform angles and speeds under random torques held for 1 to 8 steps."""
    rng = np.random.default_rng(seed)
    frames, torques = [], []
    for _ in range(episodes):
        holds = np.repeat(rng.uniform(-1, 1, steps), rng.integers(1, 9, steps))[:steps]
        torque = (pendulum.max_torque * holds).astype(np.float32)
        frame = pendulum.set(rng.uniform(-np.pi, np.pi), rng.uniform(-4, 4))
        for u in torque:
            frames.append(frame)
            frame = pendulum.step(u)
        torques.append(torque)
    shape = (episodes, steps, pendulum.size, pendulum.size, 1)
    return Episodes(np.stack(frames).reshape(shape), np.stack(torques)[..., None])
