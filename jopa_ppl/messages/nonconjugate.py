"""Gaussian messages of likelihoods that are not conjugate.

For q = N(m, S) the complete message of a likelihood p(y | x) is the gradient of U = E_q[log p]:

    dU/dm = E_q[d log p / dx],      dU/dS = 1/2 E_q[d^2 log p / dx^2]      (Bonnet, Price)

with the second derivative taken by Gauss-Newton, G' H G: H that of log p in the parameters of p
(a mean image, logits), G their slope in x; a message then never has negative precision. The
expectations are sums over points: the mean alone ("linearise": an iterated extended Kalman
smoother), or the 2 n points of the cubature rule ("cubature").

Source: Khan & Lin 2017, "Conjugate-computation variational inference"; Opper & Archambeau 2009;
Arasaratnam & Haykin 2009 (cubature).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jopa_ppl.messages.factors import Moments

Leaves = list[Array]


class Score(NamedTuple):
    """A likelihood: `parameters`, x (*batch, n) -> its parameters, and `log_prob` of these, one
    value for every element of the factor's batch (an axis of x may have size 1)."""

    parameters: Callable[[Array], Leaves]
    log_prob: Callable[[Leaves], Array]


def expected_score(score: Score, at: Moments, rule: str) -> Array:
    """sum of E_q[log p], whose gradients in mean and covariance are the message.

    Args:
        at: the belief, mean (*batch, n) and covariance (*batch, n, n).
        rule: "linearise" or "cubature".
    """
    mean, cov = lax.stop_gradient(at)
    points, weight = _points(mean, cov, rule)
    values, slopes, curvatures = zip(*(_expand(score, x) for x in points))
    value, slope, curvature = (weight * sum(x) for x in (values, slopes, curvatures))
    if rule == "linearise":     # E of the second-order term, that a single point does not see
        value = value - 0.5 * jnp.sum(curvature * cov)
    value, slope, curvature = lax.stop_gradient((value, slope, curvature))
    return (value + jnp.sum(slope * (at.mean - mean))
            - 0.5 * jnp.sum(curvature * (at.cov - cov)))


def drawn_score(score: Score, at: Moments, noise: Array) -> Array:
    """log p at draws of x, x = m + L noise with S = L L' (differentiable in all), by element of
    the batch. `noise`: standard normal, of the shape of the mean."""
    return score.log_prob(score.parameters(draw(at, noise)))


def draw(at: Moments, noise: Array) -> Array:
    """m + L noise; elements of no spread (data, or barren) stay at m."""
    fixed = jnp.diagonal(at.cov, axis1=-2, axis2=-1) <= 0
    chol = jnp.linalg.cholesky(at.cov + fixed[..., None] * jnp.eye(at.cov.shape[-1]))
    return at.mean + jnp.einsum("...ij,...j->...i", chol, jnp.where(fixed, 0.0, noise))


def _points(mean: Array, cov: Array, rule: str) -> tuple[list[Array], float]:
    if rule == "linearise":
        return [mean], 1.0
    n = mean.shape[-1]
    values, vectors = jnp.linalg.eigh(cov)       # a root that serves S = 0 as well
    root = vectors * jnp.sqrt(n * jnp.maximum(values, 0.0))[..., None, :]
    columns = [root[..., i] for i in range(n)]
    return [mean + c for c in columns] + [mean - c for c in columns], 0.5 / n


def _expand(score: Score, x: Array) -> tuple[Array, Array, Array]:
    """log p, its slope (*batch, n) and the Gauss-Newton precision (*batch, n, n) at x."""
    n = x.shape[-1]
    leaves, pull = jax.vjp(score.parameters, x)
    value, back = jax.vjp(score.log_prob, leaves)
    (slope,) = pull(back(jnp.ones_like(value))[0])
    tangents = jnp.broadcast_to(jnp.eye(n).reshape((n, *(1,) * (x.ndim - 1), n)), (n, *x.shape))
    # One element of the batch never moves another, so one tangent serves all of them.
    G = jax.vmap(lambda t: jax.jvp(score.parameters, (x,), (t,))[1])(tangents)

    def second(a: Leaves, b: Leaves) -> Array:
        first = lambda at: jax.jvp(score.log_prob, (at,), (a,))[1]
        return -jax.jvp(first, (leaves,), (b,))[1]

    rows = jax.vmap(jax.vmap(second, (None, 0)), (0, None))(G, G)
    curvature = jnp.moveaxis(rows, (0, 1), (-2, -1))
    for axis, size in enumerate(x.shape[:-1]):   # latents that several elements share
        if size == 1 and curvature.shape[axis] > 1:
            curvature = curvature.sum(axis, keepdims=True)
    values, vectors = jnp.linalg.eigh(0.5 * (curvature + jnp.swapaxes(curvature, -1, -2)))
    kept = jnp.einsum("...ij,...j,...kj->...ik", vectors, jnp.maximum(values, 0.0), vectors)
    return jnp.sum(value), slope, kept
