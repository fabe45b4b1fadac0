"""Programs whose carry holds two poses, so that velocity is inferred and not encoded.

    x_{t+1} | x_t, x_{t-1}, u_t ~ N(A (x_{t-1}, x_t) + B u_t + c, W^-1),    y_t | x_t ~ decoder
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array

import jopa_ppl as jp
from jopa_ppl.models.vae import VAE


def constant_velocity(d: int) -> np.ndarray:
    """(-I, I + I): the next pose if the last difference repeats itself, (d, 2 d)."""
    return np.concatenate([-np.eye(d), 2 * np.eye(d)], 1, dtype=np.float32)


def dynamics(frames: Array | None = None, *, T: int, trajectories: int, vae: VAE, du: int = 1,
             action_scale: float = 10.0, start: float = 1.0) -> None:
    """One linear model for all trajectories: A, B, c, W are learned where u is data.

    Args:
        frames: (T, trajectories, H, W, C), NaN where missing (shorter trajectories).
        action_scale: standard deviation of the actions; start: of the first two poses.
    """
    vae = jp.module("vae", vae)
    d = vae.d
    A = jp.latent("A", dist.Normal(constant_velocity(d), 0.5).to_event(2))
    B = jp.latent("B", dist.Normal(jnp.zeros((d, du)), 0.1).to_event(2))
    c = jp.latent("c", dist.Normal(jnp.zeros(d), 0.1).to_event(1))
    W = jp.latent("W", dist.Wishart(d + 2.0, rate_matrix=0.01 * jnp.eye(d)))
    with jp.plate("trajectory", trajectories):
        x0 = jp.latent("x0", dist.Normal(jnp.zeros(d), start).to_event(1))
        x1 = jp.latent("x1", dist.Normal(jnp.zeros(d), start).to_event(1))

    def step(carry: tuple[Array, Array], frame: Array | None) -> tuple:
        last, pose = carry
        with jp.plate("trajectory", trajectories):
            jp.observe("y", vae.likelihood(pose), frame)
            u = jp.latent("u", dist.Normal(jnp.zeros(du), action_scale).to_event(1))
            mean = jnp.concatenate([last, pose], -1) @ A.T + u @ B.T + c
            new = jp.latent("x", dist.MultivariateNormal(mean, precision_matrix=W))
        return (pose, new), None

    jp.scan(step, (x0, x1), frames, length=T)
