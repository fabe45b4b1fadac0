"""A state that actions turn: the mean is a sum of products of unknown matrices, state and action.

    x_{t+1} | x_t, u_t ~ N((M_0 + u_t M_1 + u_t^2 M_2 + ..) x_t, W^-1),    y_t | x_t ~ decoder

An additive B u cannot turn a point on a circle: which way is along the circle depends on x.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

import jopa_ppl as jp
from jopa_ppl.models.vae import VAE


def bilinear(frames: Array | None = None, *, T: int, trajectories: int, vae: VAE, degree: int = 3,
             action_scale: float = 1.0, rate: float = 0.1) -> None:
    """Learn M_0 .. M_degree and W where u is data: then every message is exact.

    Sites: "M" (degree + 1, d, d), "W", "x0" (N, d), "u" (T, N, 1), "x" (T, N, d), "y".

    Args:
        frames: (T, trajectories, H, W, C), NaN where missing.
        vae: has `d` and `likelihood`.
        degree: of the polynomial in u; a turn by a u radians is off by (a u)^(degree + 1) / (..)!.
        action_scale: standard deviation of the actions; rate: of W ~ Wishart(d + 2, rate I).
    """
    d, powers = vae.d, jnp.arange(degree + 1)
    M = jp.latent("M", dist.Normal(
        jnp.zeros((degree + 1, d, d)).at[0].set(jnp.eye(d)), 0.5).to_event(3))
    W = jp.latent("W", dist.Wishart(d + 2.0, rate_matrix=rate * jnp.eye(d)))
    with jp.plate("trajectory", trajectories):
        x0 = jp.latent("x0", dist.Normal(jnp.zeros(d), 1.0).to_event(1))

    def step(x: Array, frame: Array | None) -> tuple[Array, None]:
        with jp.plate("trajectory", trajectories):
            jp.observe("y", vae.likelihood(x), frame)                                # sense
            u = jp.latent("u", dist.Normal(jnp.zeros(1), action_scale).to_event(1))  # act
            mean = jnp.einsum("nk,kij,nj->ni", u ** powers, M, x)
            x = jp.latent("x", dist.MultivariateNormal(mean, precision_matrix=W))    # move
        return x, None

    jp.scan(step, x0, frames, length=T)


def linearise(M: Array, x: Array, u: Array) -> tuple[Array, Array, Array]:
    """A (.., d, d), B (.., d, 1), c (.., d) of the mean near states (.., d) and actions (.., 1)."""
    powers = jnp.arange(len(M))
    A = jnp.einsum("...k,kij->...ij", u ** powers, M)
    slope = powers[1:] * u ** powers[:-1]
    B = jnp.einsum("...k,kij,...j->...i", slope, M[1:], x)[..., None]
    return A, B, -(B @ u[..., None])[..., 0]


def local_plan(frames: Array, models: tuple[Array, Array, Array], plan: Array, *,
               trajectories: int, vae: VAE, noise: float, trust: float) -> None:
    """`bilinear` near a plan: x_{t+1} | x_t, u_t ~ N(A_t x_t + B_t u_t + c_t, noise^2).

    Actions keep to where the model is linear, u_t ~ N(plan_t, trust^2): run again from the plan
    it finds, this is a proximal Gauss-Newton method (Levenberg-Marquardt).

    Args:
        frames: (T, trajectories, H, W, C): what is seen, then the goal where it is wanted.
        models: A (T, N, d, d), B (T, N, d, 1), c (T, N, d) of `linearise`; plan: (T, N, 1).
    """
    d = vae.d
    with jp.plate("trajectory", trajectories):
        x0 = jp.latent("x0", dist.Normal(jnp.zeros(d), 1.0).to_event(1))

    def step(x: Array, inputs: tuple) -> tuple[Array, None]:
        frame, (A, B, c), near = inputs
        with jp.plate("trajectory", trajectories):
            jp.observe("y", vae.likelihood(x), frame)
            u = jp.latent("u", dist.Normal(near, trust).to_event(1))
            mean = jnp.einsum("nij,nj->ni", A, x) + jnp.einsum("nij,nj->ni", B, u) + c
            x = jp.latent("x", dist.Normal(mean, noise).to_event(1))
        return x, None

    jp.scan(step, x0, (frames, models, plan))
