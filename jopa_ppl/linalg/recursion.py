"""Chains in which a part of every group follows from the rest with certainty.

    z_g = F_g z_{g-1} + S_g w_g,    density of all w  ~  exp(-1/2 z' J z + b' z),

J block tridiagonal. No covariance of a group is ever inverted, so that it may be singular, as that
of a smooth trend or of a companion form is: backward in information over z_{g-1} with w_g
integrated out, then forward in moments. What is not free of w stays at zero. Batch axes stand
behind that of the groups. Source: the two passes of the linear-quadratic regulator (Anderson and
Moore, "Optimal Control: Linear Quadratic Methods", 1990), read as sums over w.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, random
from jax.scipy.linalg import cho_solve, solve_triangular

from jopa_ppl.linalg.chain import Marginals
from jopa_ppl.linalg.families import symmetric


class Rules(NamedTuple):
    """How groups follow: before F and within S, (G, *b, D, D); F of the first group is zero."""

    before: Array
    within: Array


class Gains(NamedTuple):
    """w_g given z_{g-1}: N(gain z_{g-1} + shift, (chol chol')^-1); (G, *b, ..)."""

    gain: Array
    shift: Array
    chol: Array


def backward(diag: Array, off: Array, vector: Array, rules: Rules, free: Array) -> Gains:
    """Every w given what is before it. diag (G, *b, D, D) and off (G - 1, *b, D, D) of J, vector b
    (G, *b, D), free (G, *b, D) of w."""
    eye = jnp.eye(diag.shape[-1], dtype=diag.dtype)
    off = jnp.concatenate([jnp.zeros_like(off[:1]) if len(off) else jnp.zeros_like(diag), off])

    def step(later: tuple[Array, Array], here: tuple[Array, ...]) -> tuple[tuple, Gains]:
        V, u = later
        J, C, b, F, S, f = here
        J, b = J + V, b + u
        S = S * f[..., None, :]
        St = jnp.swapaxes(S, -1, -2)
        chol = jnp.linalg.cholesky(symmetric(St @ J @ S) + (1 - f)[..., None] * eye)
        linked = J @ F + C
        seen = jnp.concatenate([St @ linked, (St @ b[..., None])], -1)
        solved = cho_solve((chol, True), seen)
        gain, shift = -solved[..., :-1], solved[..., -1]
        # Of z as it follows once w does: sums that an error of the gain enters in the second order.
        closed = F + S @ gain
        across = jnp.swapaxes(C, -1, -2) @ closed
        V = symmetric(jnp.swapaxes(closed, -1, -2) @ J @ closed
                      + across + jnp.swapaxes(across, -1, -2))
        u = (jnp.swapaxes(closed, -1, -2) @ b[..., None])[..., 0]
        return (V, u), Gains(gain, shift, chol)

    start = jnp.zeros_like(diag[0]), jnp.zeros_like(vector[0])
    return jax.lax.scan(step, start, (diag, off, vector, *rules, free), reverse=True)[1]


def marginals(diag: Array, off: Array, vector: Array, rules: Rules, free: Array) -> Marginals:
    """Means, covariances, those of neighbours, and log|precision of all w| (*b)."""
    gains = backward(diag, off, vector, rules, free)
    before, within = _closed(rules, gains, free)

    def step(last: tuple[Array, Array], here: tuple[Array, ...]) -> tuple[tuple, tuple]:
        mean, cov = last
        A, root, shift = here
        cross = A @ cov
        mean = (A @ mean[..., None])[..., 0] + shift
        cov = symmetric(cross @ jnp.swapaxes(A, -1, -2) + root @ jnp.swapaxes(root, -1, -2))
        return (mean, cov), (mean, cov, cross)

    start = jnp.zeros_like(vector[0]), jnp.zeros_like(diag[0])
    shift = (rules.within @ (gains.shift * free)[..., None])[..., 0]
    _, (mean, cov, cross) = jax.lax.scan(step, start, (before, within, shift))
    logdet = 2 * jnp.log(jnp.diagonal(gains.chol, axis1=-2, axis2=-1)).sum((0, -1))
    return Marginals(mean, cov, cross[1:], logdet)


def sample(key: Array, diag: Array, off: Array, rules: Rules, free: Array) -> Array:
    """A draw of z less its mean, (G, *b, D)."""
    shape = diag.shape[:-1]
    gains = backward(diag, off, jnp.zeros(shape, diag.dtype), rules, free)
    before, within = _closed(rules, gains, free)
    noise = random.normal(key, shape, diag.dtype)

    def step(last: Array, here: tuple[Array, ...]) -> tuple[Array, Array]:
        A, root, eps = here
        z = (A @ last[..., None] + root @ eps[..., None])[..., 0]
        return z, z

    return jax.lax.scan(step, jnp.zeros_like(noise[0]), (before, within, noise))[1]


def follow(mean: Array, constant: Array, rules: Rules) -> Array:
    """z_g = c_g + F_g z_{g-1} + S_g w_g with w where `mean` (G, *b, D) has it."""
    def step(last: Array, here: tuple[Array, ...]) -> tuple[Array, Array]:
        c, F, S, w = here
        z = c + (F @ last[..., None] + S @ w[..., None])[..., 0]
        return z, z

    return jax.lax.scan(step, jnp.zeros_like(mean[0]), (constant, *rules, mean))[1]


def _closed(rules: Rules, gains: Gains, free: Array) -> tuple[Array, Array]:
    """How z follows z_{g-1} once w follows it too, and the root of what is left."""
    within = rules.within * free[..., None, :]
    eye = jnp.broadcast_to(jnp.eye(free.shape[-1], dtype=free.dtype), gains.chol.shape)
    root = jnp.swapaxes(solve_triangular(gains.chol, eye, lower=True), -1, -2)
    return rules.before + within @ gains.gain, within @ root
