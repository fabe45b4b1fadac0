"""What the examples of the arm have in common: they collect, imagine, act and are scored.

The program and how it learns are `jopa_ppl.models.control`'s: polynomial dynamics of poses, learned
jointly with the networks by variational EM on one free energy, from frames and torques alone.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

import jopa_ppl as jp
from examples import _arm_env as arm
from jopa_ppl.models import control
from jopa_ppl.models.control import World

SEEN, AHEAD = 20, (1, 5, 10, 20, 40)        # frames that are seen, and steps that are predicted


class Episodes(NamedTuple):
    """`frames[e, t]` is seen, then `torques[e, t]` acts: (E, T, 24, 24, 1), (E, T, 1) in N m."""

    frames: np.ndarray
    torques: np.ndarray


@contextmanager
def timed(clock: dict[str, float], name: str) -> Iterator[None]:
    """Put the seconds that the block takes into clock[name]."""
    start = time.perf_counter()
    yield
    clock[name] = clock.get(name, 0.0) + time.perf_counter() - start


@contextmanager
def on_one_core() -> Iterator[None]:
    """This process, with all its threads, on one core of the CPU, where the system can do that."""
    tasks = Path("/proc/self/task")
    before = {}
    if hasattr(os, "sched_setaffinity") and tasks.exists():
        before = {int(t.name): os.sched_getaffinity(int(t.name)) for t in tasks.iterdir()}
    try:
        for task, cores in before.items():
            with suppress(ProcessLookupError):          # a thread that has ended
                os.sched_setaffinity(task, {min(cores)})
        yield
    finally:
        for task, cores in before.items():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(task, cores)


def collect(episodes: int, seed: int, torque: float = arm.TORQUE, processes: bool = True
            ) -> Episodes:
    """Episodes of torques that are uniform, and held for 1 to 8 steps."""
    envs, rng = arm.Watched(episodes, torque, processes), np.random.default_rng(seed)
    torques = np.stack([np.repeat(rng.uniform(-torque, torque, arm.STEPS),
                                  rng.integers(1, 9, arm.STEPS))[:arm.STEPS]
                        for _ in range(episodes)]).astype(np.float32)[..., None]
    y, _ = envs.reset(seed=[1000 * seed + e for e in range(episodes)])
    frames = []
    for u in tqdm(torques.swapaxes(0, 1), desc=f"random torques, {episodes} episodes", unit="step"):
        frames.append(y)
        y, *_ = envs.step(u)
    envs.close()
    return Episodes(np.stack(frames, 1), torques)


class Imagined(NamedTuple):
    """What follows SEEN frames by the torques alone, max(AHEAD) steps of N windows, one of which
    begins every SEEN steps, of all episodes in turn: poses (steps, N, d), and the frames and poses
    that came."""

    poses: np.ndarray
    frames: np.ndarray
    came: np.ndarray

    def open_loop(self, world: World, data: Episodes) -> dict[str, list[float]]:
        """Root mean square errors AHEAD steps on: of frames over those of the mean frame, and of
        poses over those of the mean pose, both means of what was learned from."""
        def ratio(predicted: np.ndarray, came: np.ndarray, mean: np.ndarray) -> list[float]:
            size = lambda gap: np.sqrt((gap**2).reshape(len(gap), -1).mean(1))
            return [float((size(predicted - came) / size(mean - came))[h - 1]) for h in AHEAD]

        drawn = np.stack([np.asarray(world.vae.decode(poses)) for poses in self.poses])
        poses = control.encode(world.vae, data.frames).mean((0, 1))
        return {"open_loop_ratio": ratio(drawn, self.frames, data.frames.mean((0, 1))),
                "open_loop_ratio_poses": ratio(self.poses, self.came, poses)}


def imagine(world: World, data: Episodes) -> Imagined:
    """What the program makes of held-out episodes."""
    length = SEEN + max(AHEAD)
    every = range(0, data.frames.shape[1] - length + 1, SEEN)
    frames, torques = (np.concatenate([x[:, t:t + length] for t in every]).swapaxes(0, 1)
                       for x in data)
    poses = control.imagine(world, frames[:SEEN], torques)
    return Imagined(poses, frames[SEEN:], control.encode(world.vae, frames[SEEN:]))


def side_by_side(driver: jp.Agent, envs: arm.Watched, episodes: int, steps: int, seed: int
                 ) -> tuple[jp.Rollout, np.ndarray]:
    """What happens in all copies at once, as many times as `episodes` takes, and the true angles
    before every step (episodes, steps)."""
    before = len(envs.angles)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jp.ConvergenceWarning)       # plans have a step's time
        # Starts that no seed shares with another one, nor with what it learns from.
        found = jp.rollout(envs, driver, episodes=episodes, steps=steps,
                           seed=10_000_000 + 10_000 * seed)
    angles = np.reshape(envs.angles[before:], (-1, steps, envs.num_envs)).swapaxes(1, 2)
    return found, angles.reshape(-1, steps)


def write(out: Path, summary: Mapping[str, Any], left_out: Sequence[str] = ()) -> None:
    """summary.json into a folder; and on the screen, but for what is long."""
    (out / "summary.json").write_text(json.dumps(summary, indent=2))
    print(json.dumps({k: v for k, v in summary.items() if k not in left_out}, indent=2))
