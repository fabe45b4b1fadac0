"""Exponential families: natural parameters to expected statistics, entropies and divergences.

A belief is updated by its message, the gradient of the energy U in its expected statistics:
    Gaussian  J = -2 dU/dS,  m <- m + J^-1 dU/dm          (a Newton step: exact, U is quadratic)
    Gamma     a = 1 + dU/dE[log t],  b = -dU/dE[t]
    Wishart   nu = n + 1 + 2 dU/dE[log|W|],  V = -2 dU/dE[W]
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import cho_solve, solve_triangular
from jax.scipy.special import digamma, gammaln, multigammaln


class Gaussian(NamedTuple):
    """Mean (..., n) and covariance (..., n, n) of a vector, and the log-determinant of J."""

    mean: Array
    cov: Array
    logdet: Array


class Gamma(NamedTuple):
    """Expected statistics of Gamma(a, b), elementwise: E[t] = a/b, E[log t] = psi(a) - log b."""

    mean: Array
    log: Array
    a: Array
    b: Array


class Wishart(NamedTuple):
    """Expected statistics of W(nu, V^-1): E[W] = nu V^-1, E[log|W|]; V is the rate matrix."""

    mean: Array
    log: Array
    dof: Array
    rate: Array


def symmetric(x: Array) -> Array:
    """(x + x') / 2, where asymmetry can enter."""
    return 0.5 * (x + jnp.swapaxes(x, -1, -2))


def diagonal(matrix: Array) -> Array:
    """The diagonals of matrices (.., n, n)."""
    return jnp.diagonal(matrix, axis1=-2, axis2=-1)


def inverse_and_logdet(x: Array) -> tuple[Array, Array]:
    """Inverse and log-determinant of symmetric positive definite (..., n, n) by Cholesky."""
    chol = jnp.linalg.cholesky(x)
    eye = jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=x.dtype), x.shape)
    logdet = 2 * jnp.log(jnp.diagonal(chol, axis1=-2, axis2=-1)).sum(-1)
    return cho_solve((chol, True), eye), logdet


def factored(x: Array) -> tuple[Array, Array]:
    """Positive definite matrices (.., n, n) in numbers without bounds, and what to measure them in:
    log L_jj, and L_ij / L_jj below the diagonal, where L L' = x."""
    chol = jnp.linalg.cholesky(x)
    pivots, (i, j) = diagonal(chol), np.tril_indices(x.shape[-1], -1)
    form = jnp.concatenate([jnp.log(pivots), (chol / pivots[..., None, :])[..., i, j]], -1).ravel()
    return form, jnp.ones_like(form)


def unfactored(form: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The matrices of this shape whose numbers these are, and their log-determinants."""
    *batch, n, _ = shape
    form, (i, j) = form.reshape((*batch, -1)), np.tril_indices(n, -1)
    chol = jnp.broadcast_to(jnp.eye(n, dtype=form.dtype), shape).at[..., i, j].set(form[..., n:])
    chol = chol * jnp.exp(form[..., None, :n])
    return chol @ jnp.swapaxes(chol, -1, -2), 2 * form[..., :n].sum(-1)


def gaussian_update(mean: Array, gradient: Array, precision: Array) -> Gaussian:
    """The exact update of a Gaussian belief from the gradient of the energy at its mean.

    Args:
        mean: where the belief was, (..., n).
        gradient: dU/dm there, (..., n).
        precision: J = -2 dU/dS, (..., n, n); its symmetric part is taken.
    """
    cov, logdet = inverse_and_logdet(symmetric(precision))
    return Gaussian(mean + jnp.einsum("...ij,...j->...i", cov, gradient), symmetric(cov), logdet)


def gaussian_entropy(logdet: Array, dims: Array | int) -> Array:
    """1/2 (n log 2 pi e - log|J|).

    Args:
        logdet: log|J|, (...); dims: n.
    """
    return 0.5 * (dims * (jnp.log(2 * jnp.pi) + 1) - logdet)


def gamma(a: Array, b: Array) -> Gamma:
    """Expected statistics of Gamma(a, b)."""
    return Gamma(a / b, digamma(a) - jnp.log(b), a, b)


def log_gamma_divergence(x: Array, y: Array) -> Array:
    """log Gamma(x) - log Gamma(y) - (x - y) psi(y), by Stirling's series where both are large."""
    e = (x - y) / y
    log = jnp.log1p(e)
    rest = lambda z: 1 / (12 * z) - 1 / (360 * z**3)
    slope = -1 / (12 * y**2) + 1 / (120 * y**4)
    series = (y * ((1 + e) * log - e) - 0.5 * (log - e) + rest(x) - rest(y) - (x - y) * slope)
    direct = gammaln(x) - gammaln(y) - (x - y) * digamma(y)
    return jnp.where(jnp.minimum(x, y) > 1e3, series, direct)


def gamma_divergence(q: Gamma, shape: Array, rate: Array, log_rate: Array) -> Array:
    """KL(q || Gamma(shape, rate)), with E[rate] and E[log rate] of a rate that is latent.

    The divergence itself: of two terms of the size of `shape` its digits would not be left.

    Args:
        q: the belief, arrays of any shape.
        shape, rate, log_rate: the other's a, E[rate] and E[log rate], which broadcast with them.

    Returns:
        one number an element.
    """
    gap = (q.b - rate) / q.b
    log = jnp.where(gap < 0.5, -jnp.log1p(-jnp.minimum(gap, 0.5)), jnp.log(q.b) - jnp.log(rate))
    return (log_gamma_divergence(shape, q.a) + shape * (jnp.log(rate) - log_rate + log)
            - q.a * gap)


def gamma_log_density(shape: Array, rate: Array, log_rate: Array, mean: Array, log: Array) -> Array:
    """E[log Gamma(t; a, b)] = a E[log b] - log Gamma(a) + (a - 1) E[log t] - E[b] E[t].

    Args:
        shape: a, known.
        rate, log_rate: E[b] and E[log b].
        mean, log: E[t] and E[log t].

    Returns:
        one number an element; all arguments broadcast.
    """
    return shape * log_rate - gammaln(shape) + (shape - 1) * log - rate * mean


def wishart(dof: Array, rate: Array) -> Wishart:
    """Expected statistics of the Wishart with `dof` degrees of freedom and rate matrix V."""
    n = rate.shape[-1]
    inverse, logdet = inverse_and_logdet(symmetric(rate))
    steps = (dof[..., None] - jnp.arange(n)) / 2
    log = digamma(steps).sum(-1) + n * jnp.log(2.0) - logdet
    return Wishart(dof[..., None, None] * symmetric(inverse), log, dof, rate)


def wishart_variance(q: Wishart) -> Array:
    """Var(W_ij) = nu (S_ij^2 + S_ii S_jj), S = V^-1."""
    dof = q.dof[..., None, None]
    diag = jnp.diagonal(q.mean, axis1=-2, axis2=-1)
    return (q.mean**2 + diag[..., :, None] * diag[..., None, :]) / dof


def wishart_log_density(dof: Array, rate: Array, mean: Array, log: Array) -> Array:
    """E[log W(W; nu, V)] with V the rate matrix (Bishop 2006, B.78).

    Args:
        dof: nu, (...).
        rate: V, (..., n, n), known and positive definite.
        mean, log: E[W] (..., n, n) and E[log|W|] (...).

    Returns:
        one number a matrix, (...).
    """
    n = rate.shape[-1]
    logdet = 2 * jnp.log(jnp.diagonal(jnp.linalg.cholesky(rate), axis1=-2, axis2=-1)).sum(-1)
    normaliser = 0.5 * dof * (logdet - n * jnp.log(2.0)) - multigammaln(dof / 2, n)
    return normaliser + 0.5 * (dof - n - 1) * log - 0.5 * (rate * mean).sum((-1, -2))


def wishart_divergence(q: Wishart, dof: Array, rate: Array) -> Array:
    """KL(q || W(dof, rate^-1)), as that of Gammas.

    Args:
        q: the belief about matrices (..., n, n).
        dof, rate: of the other, (...) and (..., n, n).

    Returns:
        one number a matrix, (...).
    """
    n = rate.shape[-1]
    root = jnp.linalg.cholesky(symmetric(q.rate))
    logdets = [2 * jnp.log(jnp.diagonal(c, axis1=-2, axis2=-1)).sum(-1)
               for c in (root, jnp.linalg.cholesky(rate))]
    half = solve_triangular(root, q.rate - rate, lower=True)
    white = solve_triangular(root, jnp.swapaxes(half, -1, -2), lower=True)
    gaps = jnp.linalg.eigvalsh(symmetric(white))
    log = jnp.where(gaps.max(-1) < 0.5, -jnp.log1p(-jnp.minimum(gaps, 0.5)).sum(-1),
                    logdets[0] - logdets[1])
    steps = jnp.arange(n)
    gammas = log_gamma_divergence((dof[..., None] - steps) / 2, (q.dof[..., None] - steps) / 2)
    return gammas.sum(-1) + 0.5 * dof * log - 0.5 * q.dof * gaps.sum(-1)
