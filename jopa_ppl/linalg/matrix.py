"""Gaussians over matrices M (n, p) whose precision is W (x) S + U (x) V, in O(n^3 + p^3).

The pencils (W, U) and (S, V) are diagonalised, R' U R = I, R' W R = diag(l), T' V T = I,
T' S T = diag(s): with vec row by row,

    (R (x) T)' J (R (x) T) = diag(l_i s_j + 1),     Cov(vec M) = (R (x) T) diag(D) (R (x) T)',
    D_ij = 1 / (l_i s_j + 1),     log|J| = p log|U| + n log|V| + sum_ij log(l_i s_j + 1)

and what factors ask of it are contractions, E[dM G dM'] = R diag_i(sum_j D_ij (T' G T)_jj) R'.
No array of (n p)^2 numbers is formed. Source: Golub & Van Loan 2013, "Matrix Computations", 12.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, random
from jax.scipy.linalg import solve_triangular

from jopa_ppl.linalg import families
from jopa_ppl.linalg.coefficients import Coefficients, Second, with_constant
from jopa_ppl.linalg.factors import batch_einsum
from jopa_ppl.linalg.slopes import expand


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
        rows, columns = families.diagonal(self.rows), families.diagonal(self.columns)
        return own + rows[..., :, None] + columns[..., None, :]

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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MatrixProduct(Coefficients):
    """Coefficients of a residual r = constant h + rows M carried h, with one slot, M (n, p).

    Axes: (*batch|1, n, L), (*batch|1, n, n), (*batch|1, p, L).
    """

    constant: Array
    rows: Array
    carried: Array

    @property
    def shape(self) -> tuple[int, ...]:
        *batch, n, size = self.constant.shape
        return (*batch, n, 1 + n * self.carried.shape[-2], size)

    def at_mean(self, slots: Sequence[MatrixMoments]) -> Array:
        (M,) = slots
        return self.constant + self.rows @ M.mean @ self.carried

    def moving(self, slots: Sequence[MatrixMoments], seconds: Sequence[Second],
               keep: Sequence[bool], diagonal: bool) -> Array:
        carried = jnp.zeros(())
        for operands, piece in seconds:
            part = self.carried[..., piece]
            carried += batch_einsum([(part, "pl"), (part, "qk"), *operands], "pq", keep)
        spread = self._along(slots, carried)
        return jnp.diagonal(spread, axis1=-2, axis2=-1) if diagonal else spread

    def excess(self, slots: Sequence[MatrixMoments], precision: Array) -> Array:
        (M,) = slots
        if precision.ndim == self.ndim - 2:
            precision = precision[..., None] * jnp.eye(precision.shape[-1], dtype=precision.dtype)
        inner = M.along(jnp.swapaxes(self.rows, -1, -2) @ precision @ self.rows)
        return jnp.swapaxes(self.carried, -1, -2) @ inner @ self.carried

    def spread_of(self, slots: Sequence[MatrixMoments], second: Array) -> Array:
        return self._along(slots, self.carried @ second @ jnp.swapaxes(self.carried, -1, -2))

    def _along(self, slots: Sequence[MatrixMoments], second: Array) -> Array:
        """`spread_of`, for E[f f'] = second (*batch, p, p) of f = carried h."""
        (M,) = slots
        return self.rows @ M.across(second) @ jnp.swapaxes(self.rows, -1, -2)

    def on_h(self, fn: Callable[[Array], Array]) -> MatrixProduct:
        return replace(self, constant=fn(self.constant), carried=fn(self.carried))

    def plus(self, constant: Array) -> MatrixProduct:
        return replace(self, constant=with_constant(self.constant, constant))

    def after(self, L: Array) -> MatrixProduct:
        return MatrixProduct(L @ self.constant, L @ self.rows, self.carried)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MatrixEntries(Coefficients):
    """Coefficients of the residual vec(rows (M + constant) columns'), every element for itself; no
    slot but the main one, M: those of a prior, of which `square` is asked.

    constant (n, p); rows R (n, n) and columns C (p, p) whiten a prior whose precision is
    R' R (x) C' C.
    """

    constant: Array
    rows: Array
    columns: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.constant.size, 1 + self.constant.size)

    def square(self, offset: Array, weight: Array, slots: Sequence[Any], main: MatrixMoments,
               known: Array, keep: Sequence[bool], diagonal: bool) -> Array:
        R, C = self.rows, self.columns
        mean = R @ (main.mean + self.constant) @ C.T
        own = variances(R @ main.left, C @ main.right, main.spread)
        rows, columns = map(families.diagonal, (R @ main.rows @ R.T, C @ main.columns @ C.T))
        probed = rows[:, None] * (C**2).sum(1) + (R**2).sum(1)[:, None] * columns
        found = (mean**2 + own + probed).reshape(-1)
        return batch_einsum([(weight, "n"), (found, "n")], "n", keep)


Residual = Callable[[Array, Array], Array]      # of M (n, p) and the rest h (size,): (n,)


def probed(residual: Residual, n: int, p: int, size: int) -> tuple[MatrixProduct, Array]:
    """The product constant h + M carried h that a residual is, from the first row of M; and whether
    it tells the residual at a random point, where any other product would differ.

    Args:
        residual: affine in h and in M; n, p, size: of M (n, p) and h (size,).
    """
    constant = expand(lambda h: residual(jnp.zeros((n, p)), h), [size])
    carried = expand(lambda m, h: residual(_first_row(n, m), h)[0], [p, size])[1:]
    one = lambda h: jnp.concatenate([jnp.ones(1), h])
    fits = _tell(residual, n, p, size, lambda h: (constant @ one(h), carried @ one(h)))
    return MatrixProduct(constant, jnp.eye(n), carried), fits


def is_product(residual: Residual, n: int, p: int, size: int) -> Array:
    """Whether a residual that is not affine in h is a product M f(h), as far as a random point
    tells. Args: as of `probed`."""
    return _tell(residual, n, p, size, lambda h: (
        residual(jnp.zeros((n, p)), h),
        jax.jacfwd(lambda m: residual(_first_row(n, m), h)[0])(jnp.zeros(p))))


def _first_row(n: int, row: Array) -> Array:
    """M (n, p), zero but for its first row."""
    return jnp.zeros((n, len(row)), row.dtype).at[0].set(row)


def _tell(residual: Residual, n: int, p: int, size: int,
          told: Callable[[Array], tuple[Array, Array]]) -> Array:
    """Whether constant + M carried, as `told` (constant, carried) of h, is the residual at a random
    M and h."""
    first, second = random.split(random.key(0))
    M, h = random.normal(first, (n, p)), random.normal(second, (size,))
    constant, carried = told(h)
    gap = residual(M, h) - constant - M @ carried
    most = jnp.abs(constant).max() + jnp.abs(carried).sum()
    return ~(jnp.abs(gap).max() > 1e-8 * most)              # NaN is told elsewhere
