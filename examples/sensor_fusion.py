"""A camera and a tachometer that both drop out, fused: where is Pendulum-v1's arm (2 N m)?

    python -m examples.sensor_fusion

Frames tell of poses through an encoder (principal components), speeds of the area between two,
and poses lie on a ring. Missing is NaN; one sensor alone is this program without data of the other,
but for 3 frames. Mean, sd over episodes: error, width of the 90 % band (degrees), share inside.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist

import jopa_ppl as jp
from examples import _arm_env as arm
from examples._command import parse, save
from jopa_ppl.models.vae import VAE, covering

T, NONE, RULES = 100, np.full(100, np.nan), {"w": "linearise", "ring": "linearise"}


def motion(y: np.ndarray, w: np.ndarray, ring: np.ndarray, vae: VAE, unit: float) -> None:
    """Frames (T, H, W, 1); speeds (T,), areas in `unit`; the ring's squared radius (T,)."""
    vae = jp.module("vae", vae)
    last = jp.latent("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    x = jp.latent("x1", dist.Normal(last, 0.4).to_event(1))
    def step(carry: tuple, seen: tuple) -> tuple:
        (last, x), (y, w, ring) = carry, seen
        jp.observe("y", vae.likelihood(x), y)
        jp.observe("w", dist.Normal(unit * (last[0] * x[1] - last[1] * x[0]), 0.5), w)
        jp.observe("ring", dist.Normal(x @ x, 0.3), ring)
        return (x, jp.latent("x", dist.Normal(2 * x - last, 0.2).to_event(1))), None
    jp.scan(step, (last, x), (y, w, ring))


def record(seed: int, starts: int, steps: int) -> list[np.ndarray]:
    """Frames, speeds and true angles (starts, steps, ..) under random torques."""
    env, rng, rows = arm.make(), np.random.default_rng(seed), []
    for n in range(starts * steps):
        _ = n % steps or env.reset(seed=10_000 * seed + n)
        rows.append((env.step(rng.uniform(-2, 2, 1))[0], *env.unwrapped.state[::-1]))
    return [np.reshape(x, (starts, steps, *np.shape(x[0]))) for x in zip(*rows)]


def main(argv: list[str] | None = None) -> dict:
    """Calibrate, lose data, fuse, draw; returns what is written to summary.json."""
    args = parse("sensor_fusion", __doc__, argv, {"episodes": 1}, seed=(0, "S"), episodes=(10, "E"))
    y, w, angle = record(2 * args.seed, 100, 10)
    vae = covering(y.reshape(-1, *y.shape[2:]), jax.random.key(args.seed))
    z = np.asarray(vae.encode(y)[0]) @ [1, 1j]
    area, ring = (z[:, :-1].conj() * z[:, 1:]).imag, np.full(T, (abs(z)**2).mean())
    unit = (w[:, 1:] * area).sum() / (area**2).sum()
    M = np.linalg.lstsq(np.stack([z, z.conj()], -1).reshape(-1, 2), np.exp(1j * angle).ravel())[0]
    fig, axes = plt.subplots(3, 1, figsize=(7, 6), sharex=True, sharey=True, layout="tight")
    scores, late = {"camera": [], "tachometer": [], "both": []}, np.arange(T) > 2
    for n, (y, w, angle) in enumerate(zip(*record(2 * args.seed + 1, args.episodes, T))):
        rng = np.random.default_rng([args.seed, n])
        lost = late & ((rng.random(T) < 0.3) | (np.arange(T) % 25 >= 15))
        w = np.where(rng.random(T) < 0.2, np.nan, w + 0.3 * rng.normal(size=T))
        for ax, name, gone, speeds in zip(axes, scores, (lost, late, lost), (NONE, w, w)):
            q = jp.VMP(motion, messages=RULES, progress=False).run(
                np.where(gone[:, None, None, None], np.nan, y), speeds, ring, vae, unit)
            z = np.asarray(q.sample(n, 500)["x"])[:, :-1] @ [1, 1j]
            off = (M[0] * z + M[1] * z.conj()) * np.exp(-1j * angle[1:])
            low, mid, high = np.quantile(np.angle(off, deg=True), [0.05, 0.5, 0.95], axis=0)
            scores[name].append((abs(mid).mean(), (high - low).mean(), np.mean(low * high < 0)))
            if n == 0:
                ax.errorbar(range(1, T), mid, (mid - low, high - mid), elinewidth=0.6)
                ax.plot(np.flatnonzero(gone), -55 + 0 * np.flatnonzero(gone), "k|", ms=4)
                ax.set(ylabel=f"{name} (deg, 90 %)", ylim=(-60, 60), xlabel="step (|: no frame)")
    return save(args, fig, {k: (np.mean(v, 0), np.std(v, 0)) for k, v in scores.items()})


if __name__ == "__main__":
    main()
