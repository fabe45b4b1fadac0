"""Linear dynamics with unknown parameters, seen through any likelihood, with or without actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike

import jopa_ppl as jp


def lds(y: ArrayLike | None = None, *, T: int, d: int = 4,
        likelihood: Callable[[jax.Array], dist.Distribution]) -> None:
    """A state that moves linearly, with unknown dynamics and noise.

        A ~ N(I, 0.7^2) elementwise     W ~ Wishart(d + 2, rate 0.1 I)     x_0 ~ N(0, I)
        y_t | x_t ~ likelihood(x_t)     x_t+1 | x_t ~ N(A x_t, W^-1)       t = 0 .. T-1

    Sites: "A" (d, d), "W" (d, d), "x0" (d,), "x" (T, d), which holds x_1 .. x_T, and "y" (T, ...).

    Args:
        y: (T, ...), NaN where missing; None to have it predicted. Steps after the last one seen are
            predicted and change no belief.
        T: steps.
        d: dimensions of the state.
        likelihood: x (d,) -> p(y | x). As a pytree (`jax.tree_util.Partial` over a network) its
            arrays are data, and other weights of the same shapes need no new compilation.

    Source: Beal 2003, "Variational algorithms for approximate Bayesian inference", chapter 5.
    """
    A = jp.latent("A", dist.Normal(jnp.eye(d), 0.7).to_event(2))
    W = jp.latent("W", dist.Wishart(d + 2.0, rate_matrix=0.1 * jnp.eye(d)))
    x0 = jp.latent("x0", dist.MultivariateNormal(jnp.zeros(d), jnp.eye(d)))

    def step(x: jax.Array, y: jax.Array | None) -> tuple[jax.Array, None]:
        jp.observe("y", likelihood(x), y)                                            # sense
        x = jp.latent("x", dist.MultivariateNormal(A @ x, precision_matrix=W))       # move
        return x, None

    jp.scan(step, x0, y, length=T)


def controlled_lds(frames: ArrayLike | None = None, *, T: int, d: int = 4, du: int = 1,
                   vae: Any) -> None:
    """A state moved by actions and seen through a VAE: learn its dynamics, or plan its actions.

        A ~ N(I, 0.7^2)   B ~ N(0, 3^2) elementwise   W ~ Wishart(d + 2, rate I)   x_0 ~ N(0, I)
        y_t | x_t ~ vae.likelihood(x_t)       u_t ~ N(0, 2^2 I)
        x_t+1 | x_t, u_t ~ N(A x_t + B u_t, W^-1)                                  t = 0 .. T-1

    Sites: "A" (d, d), "B" (d, du), "W" (d, d), "x0" (d,), "y" (T, ...), "u" (T, du), which is
    taken after y_t is seen, and "x" (T, d), which holds x_1 .. x_T.

    Args:
        frames: (T, ...), NaN where missing; None to have them predicted.
        T: steps.
        d, du: dimensions of the state and of an action.
        vae: `vae.likelihood(x)` is p(y | x), usually a `jp.Amortized`.
    """
    A = jp.latent("A", dist.Normal(jnp.eye(d), 0.7).to_event(2))
    B = jp.latent("B", dist.Normal(jnp.zeros((d, du)), 3.0).to_event(2))
    W = jp.latent("W", dist.Wishart(d + 2.0, rate_matrix=jnp.eye(d)))
    x0 = jp.latent("x0", dist.MultivariateNormal(jnp.zeros(d), jnp.eye(d)))

    def step(x: jax.Array, frame: jax.Array | None) -> tuple[jax.Array, None]:
        jp.observe("y", vae.likelihood(x), frame)                                    # sense
        u = jp.latent("u", dist.Normal(jnp.zeros(du), 2.0).to_event(1))              # act
        x = jp.latent("x", dist.MultivariateNormal(A @ x + B @ u, precision_matrix=W))
        return x, None

    jp.scan(step, x0, frames, length=T)
