"""Small matrices side by side, the batch last: (D, M, *lanes).

Blocks of a chain are small and many, so the vector units of a CPU or a GPU are better used across
blocks than within one.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular

UNROLL = 8  # blocks up to this size are eliminated row by row, larger ones by LAPACK


def to_lanes(x: Array, axis: int = 0) -> Array:
    """Block dimensions from the end to `axis`."""
    return jnp.moveaxis(x, (-2, -1), (axis, axis + 1))


def from_lanes(x: Array, axis: int = 0) -> Array:
    """The reverse."""
    return jnp.moveaxis(x, (axis, axis + 1), (-2, -1))


def transposed(a: Array) -> Array:
    """a' in every lane."""
    return jnp.swapaxes(a, 0, 1)


def cat(*parts: Array, axis: int = 1) -> Array:
    """Blocks side by side (axis 1), or one above the other (0)."""
    return jnp.concatenate(parts, axis)


def symmetrised(a: Array) -> Array:
    """(a + a') / 2 in every lane."""
    return 0.5 * (a + transposed(a))


def pad(a: Array, before: int, after: int, axis: int = 0) -> Array:
    """Zeros before and after along one axis.

    Args:
        a: an array of any shape.
        before, after: how many zeros; axis: the one that grows.
    """
    return jnp.pad(a, [(before, after) if i == axis else (0, 0) for i in range(a.ndim)])


def multiplied(a: Array, b: Array) -> Array:
    """a @ b in every lane.

    Args:
        a: (D, K, *lanes); b: (K, M, *lanes).

    Returns:
        (D, M, *lanes).
    """
    if a.shape[1] > 2 * UNROLL:
        return to_lanes(from_lanes(a) @ from_lanes(b))
    return sum(a[:, k, None] * b[k] for k in range(a.shape[1]))


def eliminate(p: Array, neighbours: Array, rhs: Array) -> tuple[Array, Array]:
    """Condition blocks of precision p = L L' on their neighbours, J[o, n] = neighbours.

    Args:
        p: (D, D, *lanes).
        neighbours: (D, N, *lanes), N = 0 where there are none.
        rhs: (D, M, *lanes).

    Returns:
        L^-1 [neighbours, rhs, I], (D, N + M + D, *lanes), and log|p|, (*lanes); NaN where p is not
        positive definite.
    """
    d = p.shape[0]
    eye = jnp.eye(d, dtype=p.dtype).reshape(d, d, *(1,) * (p.ndim - 2))
    parts = cat(neighbours, rhs, jnp.broadcast_to(eye, p.shape))
    if d > UNROLL:
        chol = jnp.linalg.cholesky(from_lanes(p))
        logdet = 2 * jnp.sum(jnp.log(jnp.diagonal(chol, axis1=-2, axis2=-1)), -1)
        return to_lanes(solve_triangular(chol, from_lanes(parts), lower=True)), logdet
    augmented = cat(p, parts)
    rows, logdet = [], 0.0  # row j: (L[j:, j]', then row j of the solution)
    for j in range(d):
        row = augmented[j, j:] - sum(rows[k][j - k] * rows[k][j - k:] for k in range(j))
        pivot = jnp.where(row[0] > 0, row[0], jnp.nan)
        rows.append(row / jnp.sqrt(pivot))
        logdet = logdet + jnp.log(pivot)
    return jnp.stack([row[d - j:] for j, row in enumerate(rows)]), logdet
