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

DOUBTFUL = 1e-10    # of a spread: errors of means that are worth another look


class Rules(NamedTuple):
    """How groups follow: before F and within S, (G, *b, D, D); F of the first group is zero."""

    before: Array
    within: Array


class Gains(NamedTuple):
    """z_g = step z_{g-1} + shift + root e, e ~ N(0, 1), once w_g has its conditional; (G, *b, ..).
    logdet: log|P| of the precision P of w_g given z_{g-1}, (G, *b); tied: P_ii (P^-1)_ii, (G, *b,
    D), of which rounding takes as many digits; terms: of the precisions that later groups give to
    z_{g-1}, the sums of their terms without signs, (G, *b, D)."""

    step: Array
    shift: Array
    root: Array
    logdet: Array
    tied: Array
    terms: Array


def backward(diag: Array, off: Array, vector: Array, rules: Rules, free: Array) -> Gains:
    """How every group follows the one before it.

    Args:
        diag, off: the blocks of J, (G, *b, D, D) and (G - 1, *b, D, D), as `chain` has them.
        vector: b, (G, *b, D).
        rules: F and S of every group.
        free: (G, *b, D), 1 where w is drawn, else 0.
    """
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
        P = symmetrised(_times(St, _times(J, S))) + unit
        y, logdet = eliminate(P, _times(St, linked), _times(St, b))
        back = transposed(y[:, -d:])
        tied = jnp.stack([P[i, i] for i in range(d)]) * (back**2).sum(1)
        solved, root = _times(back, y[:, :d + 1]), _times(S, back)
        # Of z as it follows once w does: sums that an error of the gain enters in the second order.
        closed = F - _times(S, solved[:, :d])
        across = _times(transposed(C), closed)
        own = _times(transposed(closed), _times(J, closed))
        terms = jnp.stack([own[i, i] + 2 * jnp.abs(across[i, i]) for i in range(d)])
        V = symmetrised(own + across + transposed(across))
        return (V, _times(transposed(closed), b)), (closed, _times(S, solved[:, d:]), root, logdet,
                                                  tied, terms)

    start = jnp.zeros_like(lanes[0][0]), jnp.zeros_like(lanes[2][0])
    _, (closed, shift, root, logdet, tied, terms) = lax.scan(step, start, lanes, reverse=True)
    return Gains(from_lanes(closed, 1), from_lanes(shift, 1)[..., 0], from_lanes(root, 1), logdet,
                 jnp.moveaxis(tied, 1, -1), jnp.moveaxis(terms, 1, -1))


def marginals(diag: Array, off: Array, vector: Array, rules: Rules, free: Array
              ) -> tuple[Marginals, Array]:
    """Means, covariances, those of neighbours, and log|precision of all w| (*b).

    Args:
        diag, off, vector, rules, free: as in `backward`.

    Returns:
        the moments of z, as `chain.marginals` gives them; and how the elements of a group are tied,
        (G, *b, D): as `Gains` says, or by what cancels between neighbours where that is more.
    """
    gains = backward(diag, off, vector, rules, free)
    spread = gains.root @ _flipped(gains.root)
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
    sd = jnp.sqrt(jnp.maximum(jnp.diagonal(cov, axis1=-2, axis2=-1), 0.0))
    mean, before = mean[..., 0], jnp.abs(rules.before[1:])
    # What a precise datum tells of the step before it is a small rest of two large numbers. By the
    # gradient that is left at these means, which are right where data are precise, it is none.
    lost = (_flipped(before) @ jnp.abs(vector[1:])[..., None])[..., 0] * sd[:-1]
    doubtful = jnp.finfo(sd.dtype).eps * jnp.max(lost, initial=0.0) > DOUBTFUL
    mean = lax.cond(doubtful, lambda: mean + _means(
        gains, spread, vector - product(diag, off, mean)), lambda: mean)
    # And where it leaves nothing of what comes from there, what it leaves is rounding: of a gain,
    # and of a covariance that is a sum of larger terms.
    wide, sums = ((A @ sd[:-1][..., None])[..., 0] for A in (before, jnp.abs(gains.step[1:])))
    unit = jnp.where(sd[1:] > 0, sd[1:], jnp.inf)
    tied = gains.tied.at[1:].max(jnp.maximum(wide / unit, (sums / unit)**2))
    # Or of a precision, whose terms are larger than what is left of them.
    tied = tied.at[:-1].max(gains.terms[1:] * sd[:-1]**2)
    return Marginals(mean, cov, cross[1:], gains.logdet.sum(0)), tied


def _means(gains: Gains, spread: Array, vector: Array) -> Array:
    """Means (G, *b, D) of another vector, once the gains are known."""
    def back(u: Array, here: tuple[Array, Array]) -> tuple[Array, Array]:
        step, b = here
        return (_flipped(step) @ (b + u)[..., None])[..., 0], b + u

    _, total = lax.scan(back, jnp.zeros_like(vector[0]), (gains.step, vector), reverse=True)
    return follow(total, jnp.zeros_like(total), Rules(gains.step, spread))


def product(diag: Array, off: Array, z: Array) -> Array:
    """J z, (G, *b, D).

    Args:
        diag, off: the blocks of J, (G, *b, D, D) and (G - 1, *b, D, D).
        z: (G, *b, D).
    """
    found = (diag @ z[..., None])[..., 0]
    found = found.at[1:].add((off @ z[:-1][..., None])[..., 0])
    return found.at[:-1].add((_flipped(off) @ z[1:][..., None])[..., 0])


def _flipped(a: Array) -> Array:
    """a' of matrices that come last."""
    return jnp.swapaxes(a, -1, -2)


def sample(key: Array, diag: Array, off: Array, rules: Rules, free: Array) -> Array:
    """A draw of z less its mean, (G, *b, D).

    Args:
        diag, off, rules, free: as in `backward`.
    """
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
