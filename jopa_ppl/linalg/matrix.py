"""Gaussians over matrices M (n, p) whose precision is W (x) S + U (x) V, in O(n^3 + p^3).

The pencils (W, U) and (S, V) are diagonalised, R' U R = I, R' W R = diag(l), T' V T = I,
T' S T = diag(s): with vec row by row,

    (R (x) T)' J (R (x) T) = diag(l_i s_j + 1),     Cov(vec M) = (R (x) T) diag(D) (R (x) T)',
    D_ij = 1 / (l_i s_j + 1),     log|J| = p log|U| + n log|V| + sum_ij log(l_i s_j + 1)

and what factors ask of it are contractions, E[dM G dM'] = R diag_i(sum_j D_ij (T' G T)_jj) R'.
No array of (n p)^2 numbers is formed. Source: Golub & Van Loan 2013, "Matrix Computations", 12.3.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular

from jopa_ppl.linalg.families import diagonal


class Pencils(NamedTuple):
    """R (n, n), T (p, p), D (n, p) and log|J| of W (x) S + U (x) V."""

    left: Array
    right: Array
    spread: Array
    logdet: Array


def solve(W: Array, S: Array, U: Array, V: Array) -> Pencils:
    """The pencils of W (x) S + U (x) V; U and V positive definite, W and S semi-definite."""
    left, l, logdet_u = _pencil(W, U)
    right, s, logdet_v = _pencil(S, V)
    own = 1 + l[:, None] * s[None, :]
    n, p = own.shape
    return Pencils(left, right, 1 / own, p * logdet_u + n * logdet_v + jnp.log(own).sum())


def _pencil(A: Array, B: Array) -> tuple[Array, Array, Array]:
    """X with X' B X = I and X' A X = diag(a); a, log|B|."""
    root = jnp.linalg.cholesky(B)
    half = solve_triangular(root, A, lower=True)
    white = solve_triangular(root, half.T, lower=True)
    a, Q = jnp.linalg.eigh(0.5 * (white + white.T))
    X = solve_triangular(root, Q, lower=True, trans=1)
    return X, jnp.maximum(a, 0.0), 2 * jnp.log(jnp.diagonal(root)).sum()


def apply_covariance(q: Pencils, gradient: Array) -> Array:
    """Cov vec(gradient), as a matrix."""
    return q.left @ ((q.left.T @ gradient @ q.right) * q.spread) @ q.right.T


def variances(left: Array, right: Array, spread: Array) -> Array:
    """The variance of every element of M, (*batch, n, p), from the factors of its covariance.

    Args:
        left: R, (*batch, n, i).
        right: T, (*batch, p, j).
        spread: D, (*batch, i, j).
    """
    return jnp.einsum("...ia,...ab,...jb->...ij", left**2, spread, right**2)


class MatrixMoments(NamedTuple):
    """Mean (*batch, n, p) of M and Cov(vec M) = (R (x) T) diag(D) (R (x) T)' + X (x) I + I (x) Y.

    X (n, n) and Y (p, p) are zero: the slopes of an energy in them tell the two sides of the
    precision that a factor gives, -1/2 W tr(G) and -1/2 tr(W) G for W (x) G.
    """

    mean: Array
    left: Array
    right: Array
    spread: Array
    rows: Array
    columns: Array

    @property
    def variance(self) -> Array:
        """Of every element, (*batch, n, p)."""
        own = variances(self.left, self.right, self.spread)
        return own + diagonal(self.rows)[..., :, None] + diagonal(self.columns)[..., None, :]

    def across(self, G: Array) -> Array:
        """E[dM G dM'] (*batch, n, n) for G (*batch, p, p)."""
        g = jnp.einsum("...ja,...jk,...ka->...a", self.right, G, self.right)
        weights = jnp.einsum("...ij,...j->...i", self.spread, g)
        total = jnp.einsum("...ia,...a,...ka->...ik", self.left, weights, self.left)
        trace = jnp.trace(G, axis1=-2, axis2=-1)[..., None, None]
        other = jnp.einsum("...jk,...kj->...", self.columns, G)[..., None, None]
        return total + self.rows * trace + other * jnp.eye(self.left.shape[-2], dtype=G.dtype)

    def along(self, P: Array) -> Array:
        """E[dM' P dM] (*batch, p, p) for P (*batch, n, n)."""
        w = jnp.einsum("...ia,...ik,...ka->...a", self.left, P, self.left)
        weights = jnp.einsum("...ij,...i->...j", self.spread, w)
        return jnp.einsum("...ja,...a,...ka->...jk", self.right, weights, self.right)


class MatrixProduct(NamedTuple):
    """Coefficients of a residual r = constant h + rows M carried h, h = (1, main, known).

    Axes: (*batch|1, n, L), (*batch|1, n, n), (*batch|1, p, L). It stands where `linalg.factors` has
    a tensor (*batch, n, 1 + n p, L) with one slot, and answers the same.
    """

    constant: Array
    rows: Array
    carried: Array

    @property
    def shape(self) -> tuple[int, ...]:
        *batch, n, size = self.constant.shape
        return (*batch, n, 1 + n * self.carried.shape[-2], size)

    @property
    def ndim(self) -> int:
        return self.constant.ndim + 1

    def at_mean(self, M: MatrixMoments) -> Array:
        """E of the map on h, (*batch, n, L)."""
        return self.constant + self.rows @ M.mean @ self.carried

    def spread_of(self, M: MatrixMoments, second: Array) -> Array:
        """Covariance of r that is due to M, for E[h h'] = second: (*batch, n, n)."""
        return self.along_carried(M, self.carried @ second @ jnp.swapaxes(self.carried, -1, -2))

    def along_carried(self, M: MatrixMoments, second: Array) -> Array:
        """`spread_of`, for E[f f'] = second (*batch, p, p) of f = carried h."""
        return self.rows @ M.across(second) @ jnp.swapaxes(self.rows, -1, -2)

    def excess(self, M: MatrixMoments, precision: Array) -> Array:
        """E[r' P r] less what it is at the mean of M, a form in h (*batch, L, L); P (n, n)."""
        inner = M.along(jnp.swapaxes(self.rows, -1, -2) @ precision @ self.rows)
        return jnp.swapaxes(self.carried, -1, -2) @ inner @ self.carried

    def after(self, L: Array) -> MatrixProduct:
        """The coefficients of L r."""
        return MatrixProduct(L @ self.constant, L @ self.rows, self.carried)


class MatrixEntries(NamedTuple):
    """Coefficients of the residual vec(rows (M + constant) columns'), every element for itself.

    constant (n, p); rows R (n, n) and columns C (p, p) whiten a prior whose precision is
    R' R (x) C' C.
    """

    constant: Array
    rows: Array
    columns: Array

    def square(self, M: MatrixMoments) -> Array:
        """E[r_i^2], (n p,)."""
        R, C = self.rows, self.columns
        mean = R @ (M.mean + self.constant) @ C.T
        own = variances(R @ M.left, C @ M.right, M.spread)
        rows, columns = diagonal(R @ M.rows @ R.T), diagonal(C @ M.columns @ C.T)
        probed = rows[:, None] * (C**2).sum(1) + (R**2).sum(1)[:, None] * columns
        return (mean**2 + own + probed).reshape(-1)

