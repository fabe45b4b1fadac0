"""A program whose dynamics are polynomials of two poses: it learns, imagines and acts.

    x_{t+1} | x_t, x_{t-1}, a_t ~ N(2 x_t - x_{t-1} + A phi(x_t, x_t - x_{t-1}, tanh a_t), W^-1)
    y_t | x_t ~ decoder,    A ~ N,    W ~ Wishart

phi: all monomials of degree 3 or less of a pose and a velocity, these times (1, tanh a). Velocity
belongs here, in a carry of two poses, and not in the encoder; saturation as well, so that a plan
knows of it: the torque is tanh a of what there is at most.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from itertools import combinations_with_replacement

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array

import jopa_ppl as jp
from jopa_ppl.models.vae import VAE

DEGREE = 3


def polynomials(z: Array, degree: int = DEGREE) -> Array:
    """All monomials of this degree or less: z (.., n) -> (.., (n + degree)! / n! / degree!)."""
    one = jnp.concatenate([jnp.ones_like(z[..., :1]), z], -1)
    picks = combinations_with_replacement(range(one.shape[-1]), degree)
    # Factors by products with ones and zeros: few operations, whose derivatives are products too.
    chosen = [jnp.matmul(one, np.eye(one.shape[-1], dtype=one.dtype)[:, list(p)],
                         precision="highest") for p in zip(*picks)]
    return reduce(jnp.multiply, chosen)


def features(pose: Array, velocity: Array, action: Array) -> Array:
    """phi (.., 70 for d = 2 and one action): polynomials of pose and velocity (.., d), these times
    (1, tanh action (.., du))."""
    state = polynomials(jnp.concatenate([pose, velocity], -1))
    part = jnp.concatenate([jnp.ones_like(action[..., :1]), jnp.tanh(action)], -1)
    return (part[..., :, None] * state[..., None, :]).reshape(*state.shape[:-1], -1)


def following(A: Array, last: Array, pose: Array, action: Array, speed: float) -> Array:
    """The mean of the pose after `pose`, (.., d).

    Args:
        A: (d, features).
        last, pose: the last two, (.., d).
        action: (.., du), without bounds; speed: as of `swing`.
    """
    velocity = pose - last
    return pose + velocity + features(pose, velocity / speed, action) @ A.T


def swing(frames: Array | None = None, *, T: int, vae: VAE, speed: float,
          trajectories: int | None = None, du: int = 1, effect: float = 0.1, noise: float = 0.03,
          tolerance: float | None = None) -> None:
    """One polynomial model of all trajectories, or (`trajectories` None) of one.

    Args:
        frames: (T, trajectories, H, W, C), NaN where missing; without that axis for one.
        vae: its poses are of unit variance, about (`jopa_ppl.models.vae.covering`).
        speed: standard deviation of the difference of two poses: phi is of differences in this
            unit, so that its elements are of the order of 1.
        effect: standard deviation of the elements of A, in units of `speed`.
        noise: of the process a priori, in units of the pose.
        tolerance: of what frames tell of a pose, in place of the encoder's: for a goal, which may
            be missed a little.
    """
    vae = jp.module("vae", vae)
    d = vae.d

    def plate() -> AbstractContextManager:
        return jp.plate("trajectory", trajectories) if trajectories else nullcontext()

    def likelihood(pose: Array) -> jp.Amortized:
        if tolerance is None:
            return vae.likelihood(pose)
        return jp.Amortized(vae.pixels(pose), on=pose, message=lambda y: dist.Normal(
            vae.encode(y)[0], tolerance).to_event(1))

    size = features(jnp.zeros(d), jnp.zeros(d), jnp.zeros(du)).size
    A = jp.latent("A", dist.Normal(jnp.zeros((d, size)), effect * speed).to_event(2))
    W = jp.latent("W", dist.Wishart(d + 2.0, rate_matrix=(d + 2) * noise**2 * jnp.eye(d)))
    with plate():
        x0 = jp.latent("x0", dist.Normal(jnp.zeros(d), 1.0).to_event(1))
        x1 = jp.latent("x1", dist.Normal(x0, 2 * speed).to_event(1))

    def step(carry: tuple[Array, Array], frame: Array | None) -> tuple:
        last, pose = carry
        with plate():
            jp.observe("y", likelihood(pose), frame)
            u = jp.latent("u", dist.Normal(jnp.zeros(du), 2.0).to_event(1))
            mean = following(A, last, pose, u, speed)
            new = jp.latent("x", dist.MultivariateNormal(mean, precision_matrix=W))
        return (pose, new), None

    jp.scan(step, (x0, x1), frames, length=T)
