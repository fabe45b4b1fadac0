"""Programs whose carry holds two poses, so that velocity is inferred and not encoded.

    x_{t+1} | x_t, x_{t-1}, u_t ~ N(A (x_{t-1}, x_t) + B u_t + c, W^-1),    y_t | x_t ~ decoder
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
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


def local_dynamics(following: Array, *, features: Array, weights: Array, prior: Array,
                   noise: float) -> None:
    """A linear model of its own near each of H states, from N replayed transitions each.

        following_hn ~ N(features_hn M_h, noise^2)^weights_hn,    M_h ~ N(prior, 1)

    Args:
        following: (H, N, d); features: (H, N, k) = (x_{t-1}, x_t, u_t, 1); weights: (H, N), how
            near transition n is to state h: its likelihood is tempered by it.
    """
    H, N = weights.shape
    planned, replay = jp.plate("planned", H, dim=-2), jp.plate("replay", N, dim=-1)
    with planned:
        M = jp.latent("M", dist.Normal(prior, 1.0).to_event(2))
    with planned, replay, numpyro.handlers.scale(scale=weights):
        mean = jnp.einsum("hnk,hkd->hnd", features, M[:, 0])
        jp.observe("following", dist.Normal(mean, noise).to_event(1), following)


def local_plan(frames: Array, weights: Array, models: tuple[Array, Array, Array], *, vae: VAE,
               noise: float,
               action_scale: float = 10.0, start: float = 1.0) -> None:
    """The step of `dynamics` with a known local model (A_t, B_t, c_t) at every step.

    Args:
        frames: (T, H, W, C): the last frames seen, then the goal wherever it is wanted.
        weights: (T,), 1 for what was seen, less for a goal that may be missed a little.
        models: A (T, d, 2 d), B (T, d, du), c (T, d).
    """
    d, du = vae.d, models[1].shape[-1]
    x0 = jp.latent("x0", dist.Normal(jnp.zeros(d), start).to_event(1))
    x1 = jp.latent("x1", dist.Normal(jnp.zeros(d), start).to_event(1))

    def step(carry: tuple[Array, Array], inputs: tuple) -> tuple:
        (last, pose), (frame, weight, (A, B, c)) = carry, inputs
        with numpyro.handlers.scale(scale=weight):
            jp.observe("y", vae.likelihood(pose), frame)
        u = jp.latent("u", dist.Normal(jnp.zeros(du), action_scale).to_event(1))
        new = jp.latent("x", dist.Normal(A @ jnp.concatenate([last, pose]) + B @ u + c,
                                         noise).to_event(1))
        return (pose, new), None

    jp.scan(step, (x0, x1), (frames, weights, models))
