"""Moments of Gaussian vectors, sums of products over batches of them, and the expected log-density
of a Gaussian site from its expected squares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

LOG_2PI = 1.8378770664093453


class Moments(NamedTuple):
    """Mean (*batch, n) and covariance (*batch, n, n) of a slot; batch axes may have size 1."""

    mean: Array
    cov: Array


def side_by_side(parts: Sequence[Moments]) -> Moments:
    """The moments of independent vectors as one: means joined, covariances in blocks."""
    if len(parts) == 1:
        return parts[0]
    batch = jnp.broadcast_shapes(*(p.mean.shape[:-1] for p in parts))
    sizes = [p.mean.shape[-1] for p in parts]
    mean = jnp.concatenate([jnp.broadcast_to(p.mean, (*batch, n)) for p, n in zip(parts, sizes)],
                           -1)
    rows = []
    for i, p in enumerate(parts):
        row = [jnp.broadcast_to(p.cov, (*batch, n, n)) if i == j
               else jnp.zeros((*batch, sizes[i], n)) for j, n in enumerate(sizes)]
        rows.append(jnp.concatenate(row, -1))
    return Moments(mean, jnp.concatenate(rows, -2))


def batch_einsum(operands: Sequence[tuple[Array, str]], out: str, keep: Sequence[bool]) -> Array:
    """einsum over named trailing axes, with leading batch axes broadcast or summed.

    Args:
        operands: (array (*batch, ..), letters of its trailing axes).
        out: letters of the trailing axes of the result.
        keep: for every batch axis whether it is kept; the others are summed and become size 1.
    """
    letters = [chr(ord("A") + 20 + i) if i < 6 else chr(ord("0") + i) for i in range(len(keep))]
    terms, arrays = [], []
    sizes = [1] * len(keep)
    for array, trailing in operands:
        batch = array.shape[:array.ndim - len(trailing)]
        present = "".join(c for c, n in zip(letters, batch) if n != 1)
        sizes = [n if size == 1 else size for size, n in zip(sizes, batch)]
        arrays.append(array.reshape([n for n in batch if n != 1]
                                    + list(array.shape[len(batch):])))
        terms.append(present + trailing)
    kept = "".join(c for c, k, n in zip(letters, keep, sizes) if k and n != 1)
    result = jnp.einsum(",".join(terms) + "->" + kept + out, *arrays, optimize="optimal")
    shape = [n if k else 1 for k, n in zip(keep, sizes)]
    return result.reshape(shape + list(result.shape[len(kept):]))


def augment(mean: Array) -> Array:
    """(1, mean) along the last axis."""
    return jnp.concatenate([jnp.ones((*mean.shape[:-1], 1), mean.dtype), mean], -1)


def expected_log_density(square: Array, count: Array, precision: Array, logdet: Array,
                         diagonal: bool) -> Array:
    """sum of E[log N] = 1/2 E[log|P|] - 1/2 <E[P], E[r r']> - (n/2) log 2 pi over all elements.

    Args:
        square: from `coefficients.Coefficients.square`; count: summed weights (*batch, n or 1).
        precision: E[P], (*batch, n) or (*batch, n, n); logdet: E[log P] (*batch, n) or
            E[log|P|] (*batch).
    """
    if diagonal:
        n = precision.shape[-1]
        return 0.5 * (jnp.sum(jnp.broadcast_to(count, (*count.shape[:-1], n))
                              * (logdet - LOG_2PI)) - jnp.sum(precision * square))
    n = precision.shape[-1]
    return 0.5 * (jnp.sum(count[..., 0] * (logdet - n * LOG_2PI)) - jnp.sum(precision * square))
