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

import jax.numpy as jnp
from jax import Array, lax, random

from jopa_ppl.linalg.chain import Marginals
from jopa_ppl.linalg.lanes import (
    UNROLL,
    eliminate,
    from_lanes,
    multiplied,
    symmetrised,
    to_lanes,
    transposed,
)


class Rules(NamedTuple):
    """How groups follow: before F and within S, (G, *b, D, D); F of the first group is zero."""

    before: Array
    within: Array


class Gains(NamedTuple):
    """z_g = step z_{g-1} + shift + root e, e ~ N(0, 1), once w_g has its conditional; (G, *b, ..).
    logdet: log|precision of w_g given z_{g-1}|, (G, *b)."""

    step: Array
    shift: Array
    root: Array
    logdet: Array


def backward(diag: Array, off: Array, vector: Array, rules: Rules, free: Array) -> Gains:
    """How every group follows the one before it. diag (G, *b, D, D) and off (G - 1, *b, D, D) of J,
    vector b (G, *b, D), free (G, *b, D) of w."""
    d, off = diag.shape[-1], jnp.concatenate([jnp.zeros_like(diag[:1]), off])
    within = rules.within * free[..., None, :]
    fixed = (1 - free)[..., None] * jnp.eye(d, dtype=diag.dtype)
    numbers = diag, off, vector[..., None], rules.before, within, fixed
    lanes = tuple(to_lanes(x, 1) for x in numbers)

    def step(later: tuple[Array, Array], here: tuple[Array, ...]) -> tuple[tuple, tuple]:
        V, u = later
        J, C, b, F, S, unit = here
        J, b = J + V, b + u
        St = transposed(S)
        linked = _times(J, F) + C
        y, logdet = eliminate(symmetrised(_times(St, _times(J, S))) + unit, _times(St, linked),
                               _times(St, b))
        back = transposed(y[:, -d:])
        solved, root = _times(back, y[:, :d + 1]), _times(S, back)
        # Of z as it follows once w does: sums that an error of the gain enters in the second order.
        closed = F - _times(S, solved[:, :d])
        across = _times(transposed(C), closed)
        V = symmetrised(_times(transposed(closed), _times(J, closed)) + across + transposed(across))
        return (V, _times(transposed(closed), b)), (closed, _times(S, solved[:, d:]), root, logdet)

    start = jnp.zeros_like(lanes[0][0]), jnp.zeros_like(lanes[2][0])
    _, (closed, shift, root, logdet) = lax.scan(step, start, lanes, reverse=True)
    return Gains(from_lanes(closed, 1), from_lanes(shift, 1)[..., 0], from_lanes(root, 1), logdet)


def marginals(diag: Array, off: Array, vector: Array, rules: Rules, free: Array) -> Marginals:
    """Means, covariances, those of neighbours, and log|precision of all w| (*b)."""
    gains = backward(diag, off, vector, rules, free)
    spread = gains.root @ jnp.swapaxes(gains.root, -1, -2)
    lanes = tuple(to_lanes(x, 1) for x in (gains.step, spread, gains.shift[..., None]))

    def step(last: tuple[Array, Array], here: tuple[Array, ...]) -> tuple[tuple, tuple]:
        mean, cov = last
        A, spread, shift = here
        cross = _times(A, cov)
        mean, cov = _times(A, mean) + shift, symmetrised(_times(cross, transposed(A)) + spread)
        return (mean, cov), (mean, cov, cross)

    start = jnp.zeros_like(lanes[2][0]), jnp.zeros_like(lanes[0][0])
    _, found = lax.scan(step, start, lanes)
    mean, cov, cross = (from_lanes(x, 1) for x in found)
    return Marginals(mean[..., 0], cov, cross[1:], gains.logdet.sum(0))


def sample(key: Array, diag: Array, off: Array, rules: Rules, free: Array) -> Array:
    """A draw of z less its mean, (G, *b, D)."""
    noise = random.normal(key, diag.shape[:-1], diag.dtype)
    gains = backward(diag, off, jnp.zeros_like(noise), rules, free)
    return follow(noise, jnp.zeros_like(noise), Rules(gains.step, gains.root))


def _times(a: Array, b: Array) -> Array:
    """a @ b in every lane; one product where there is much to add up and one lane alone."""
    if a.shape[1] > UNROLL:
        return to_lanes(from_lanes(a) @ from_lanes(b))
    return multiplied(a, b)


def follow(mean: Array, constant: Array, rules: Rules) -> Array:
    """z_g = c_g + F_g z_{g-1} + S_g w_g with w where `mean` (G, *b, D) has it."""
    def step(last: Array, here: tuple[Array, ...]) -> tuple[Array, Array]:
        c, F, S, w = here
        z = c + (F @ last[..., None] + S @ w[..., None])[..., 0]
        return z, z

    return lax.scan(step, jnp.zeros_like(mean[0]), (constant, *rules, mean))[1]
