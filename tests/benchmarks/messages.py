"""The encoder's message against the decoder's own, on frames of the pendulum of 10 N m.

    python -m tests.benchmarks.messages

A VAE is trained and the dynamics are learned on random episodes. On episodes not seen before, the
last frame of every window is filtered: the error of the pose (its angle, read from the latent by a
regression on the training episodes), the free energy with the decoder's log p at draws of the
state (nats a frame; the same quantity whatever message shaped q) and the time of a warm run.
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np

import jopa_ppl as jp
from examples import _arm_env as arm
from jopa_ppl.infer.em_steps import objective, scored
from jopa_ppl.models.vae import train
from models.second_order import dynamics

KINDS = {"amortised": {}, "linearise": {"damping": 0.3}, "cubature": {"damping": 0.3}}


def episodes(count: int, steps: int, seed: int) -> tuple[np.ndarray, ...]:
    """Frames (T, N, H, W, C), torques (T, N, 1) and true angles (T, N) of random episodes."""
    envs, rng = arm.Watched(count, 10.0, processes=False), np.random.default_rng(seed)
    torques = np.repeat(rng.uniform(-10, 10, (steps, count, 1)), 4, 0)[:steps].astype(np.float32)
    frames = [envs.reset(seed=seed)[0]]
    frames += [envs.step(torque)[0] for torque in torques]
    envs.close()
    return np.stack(frames[:-1]), torques, np.stack(envs.angles)


def read_angle(weights: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """The angle of poses (.., d), by a linear regression to (cos, sin, 1)."""
    cos, sin = np.moveaxis(_features(pose) @ weights, -1, 0)
    return np.arctan2(sin, cos)


def _features(pose: np.ndarray) -> np.ndarray:
    a, b = pose[..., 0], pose[..., 1]
    return np.stack([np.ones_like(a), a, b, a * b, a**2, b**2, a**3, b**3, a**2 * b, a * b**2], -1)


def main(argv: list[str] | None = None) -> dict[str, tuple[float, ...]]:
    """Print one line a message; returns {message: (error in rad, nats a frame, ms, sweeps)}."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.messages",
                                     description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of data and training (0)")
    parser.add_argument("--steps", type=int, default=500, help="training steps of the VAE (500)")
    parser.add_argument("--window", type=int, default=10, help="frames a window (10)")
    args = parser.parse_args(argv)
    frames, torques, angles = episodes(20, 60, args.seed)
    vae, _ = train(frames.swapaxes(0, 1), jax.random.key(args.seed), steps=args.steps)
    learned = jp.VMP(jp.condition(dynamics, {"u": torques}), max_iters=100).run(
        frames, T=len(frames), trajectories=20, vae=vae)
    pose = np.asarray(vae.encode(frames)[0])
    target = np.stack([np.cos(angles), np.sin(angles)], -1)
    weights = np.linalg.lstsq(_features(pose).reshape(-1, 10), target.reshape(-1, 2), rcond=None)[0]

    T = args.window
    frames, torques, angles = episodes(40, T, args.seed + 1)
    model = jp.given(jp.condition(dynamics, {"u": torques}), learned)
    found = {}
    print("message       median error      90 %  nats a frame      ms  sweeps")
    for kind, options in KINDS.items():
        vmp = jp.VMP(model, messages={"y": kind}, progress=False, max_iters=200, **options)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            posterior = vmp.run(frames, T=T, trajectories=40, vae=vae)
            jax.block_until_ready(posterior.state)
            times.append(time.perf_counter() - start)
        last = np.asarray(posterior.mean("x")[T - 2])
        error = np.abs(np.angle(np.exp(1j * (read_angle(weights, last) - angles[-1]))))
        engine = posterior.compiled.engine
        with jax.enable_x64(True):
            nats, _ = jax.jit(lambda m, b, e=engine: objective(
                e, scored(e), m, b, jax.random.key(0), 8))(posterior.state.moments, posterior.bound)
        found[kind] = (float(np.median(error)), float(nats) / (40 * T),
                       1e3 * float(np.median(times[1:])), posterior.num_iters)
        print(f"{kind:<12}{found[kind][0]:>9.4f} rad{np.quantile(error, 0.9):>10.4f}"
              f"{found[kind][1]:>14.2f}{found[kind][2]:>8.1f}{found[kind][3]:>8}")
    return found


if __name__ == "__main__":
    main()
