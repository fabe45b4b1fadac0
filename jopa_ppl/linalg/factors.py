"""Expected log-density of a Gaussian site from the expected statistics of what it touches.

The residual is multi-affine in independent groups of latents ("slots"):

    r = offset + K . (1, v_1) x .. x (1, v_k) x (1, w, known)

with v_i the slots, w the main slot (the states of a step, say) and known data. With means m and
covariances S of the slots, and D_Q r the mixed derivative at the means,

    E[r r'] = r(m) r(m)' + sum over non-empty sets Q of slots  D_Q r [x_{i in Q} S_i] D_Q r'

All moments are centred, so that nothing large cancels. Along batch axes where only the main slot
differs (time, trajectories) its second moments are summed first: no d^2 x d^2 object per step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jopa_ppl.linalg.matrix import MatrixEntries, MatrixProduct

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


def expected_square(K: Array, offset: Array, weight: Array, slots: Sequence[Moments],
                    main: Moments, known: Array, keep: Sequence[bool], diagonal: bool) -> Array:
    """Weighted sum of E[r r'] over the batch axes that are not kept.

    Args:
        K: (*batch, n, 1 + p_1, .., 1 + p_k, 1 + q + known), or what stands for it where the one
            slot is a matrix: `MatrixProduct`, or `MatrixEntries` of a main slot.
        offset: (*batch, n), the part of the residual that is data alone.
        weight: (*batch, n or 1), full size along the axes that are summed.
        slots: the other slots; main: the slot (q) with the most batch axes; known: (*batch, ..).

    Returns:
        (*batch, n) if diagonal (the squares alone) else (*batch, n, n).
    """
    if isinstance(K, MatrixEntries):
        return batch_einsum([(weight, "n"), (K.square(main), "n")], "n", keep)
    q = main.mean.shape[-1]
    elementwise = weight.shape[-1] > 1
    wl = "n" if elementwise else ""
    w = weight if elementwise else weight[..., 0]
    batch = jnp.broadcast_shapes(main.mean.shape[:-1], known.shape[:-1])
    point = augment(jnp.concatenate(
        [jnp.broadcast_to(x, (*batch, x.shape[-1])) for x in (main.mean, known)], -1))

    at_means = at_mean(K, slots)
    residual = offset + batch_einsum([(at_means, "nl"), (point, "l")], "n", [True] * len(keep))
    out = "n" if diagonal else "nm"
    other = "n" if diagonal else "m"
    total = batch_einsum([(w, wl), (residual, "n"), (residual, other)], out, keep)

    # Second moments of the main slot are summed before anything else is done with them, unless
    # coefficients or slots differ along the very axes that are summed.
    varying = [K.shape[:len(keep)], *(s.mean.shape[:-1] for s in slots)]
    early = all(k or all(s[i] == 1 for s in varying) for i, k in enumerate(keep))
    live, squares = slice(1, 1 + q), []
    if q and early:
        spread = batch_einsum([(w, wl), (main.cov, "lk")], wl + "lk", keep)
        squares.append(([(spread, wl + "lk")], live))
    elif q:
        squares.append(([(w, wl), (main.cov, "lk")], live))
    for operands, _ in squares:
        part = at_means[..., live]
        total += batch_einsum([(part, "nl"), (part, other + "k"), *operands], out, keep)
    if slots and early:
        second = batch_einsum([(w, wl), (point, "l"), (point, "k")], wl + "lk", keep)
        squares.append(([(second, wl + "lk")], slice(None)))
    elif slots:
        squares.append(([(w, wl), (point, "l"), (point, "k")], slice(None)))
    if isinstance(K, MatrixProduct):
        carried = jnp.zeros(())
        for operands, piece in squares:
            part = K.carried[..., piece]
            carried += batch_einsum([(part, "pl"), (part, "qk"), *operands], "pq", keep)
        spread = K.along_carried(*slots, carried)
        return total + (jnp.diagonal(spread, axis1=-2, axis2=-1) if diagonal else spread)
    for part, a, b, spreads in moving(K, slots, len(keep)):
        for operands, piece in squares:
            here = part[..., piece]
            total += batch_einsum([(here, "n" + a + "l"), (here, other + b + "k"), *operands,
                                   *spreads], out, keep)
    return total


def augment(mean: Array) -> Array:
    """(1, mean) along the last axis."""
    return jnp.concatenate([jnp.ones((*mean.shape[:-1], 1), mean.dtype), mean], -1)


def at_mean(K: Array, slots: Sequence[Moments]) -> Array:
    """E[K], the coefficients at the slots' means: (*batch, n, l).

    Args:
        K: (*batch|1, n, 1 + p_1, .., 1 + p_k, l), or a `MatrixProduct`; slots: the k of them.
    """
    if isinstance(K, MatrixProduct):
        return K.at_mean(*slots)
    for slot in slots:
        K = _contract_slot(K, augment(slot.mean))
    return K


def _contract_slot(K: Array, vector: Array) -> Array:
    """Contract the first slot axis of K (*batch, n, 1 + p, ..., l) with (*batch, 1 + p)."""
    batch = vector.ndim - 1
    rest = "abcdefgh"[:K.ndim - batch - 3]
    return batch_einsum([(K, "nz" + rest + "l"), (vector, "z")], "n" + rest + "l", [True] * batch)


def moving(K: Array, slots: Sequence[Moments], nbatch: int
           ) -> Iterator[tuple[Array, str, str, list[tuple[Array, str]]]]:
    """D_Q r for every non-empty set Q of slots.

    Args:
        K: a tensor (*batch|1, n, 1 + p_1, .., 1 + p_k, L); slots: the k of them.
        nbatch: number of batch axes.

    Yields:
        the derivative, (*batch, n, p of those in Q, L); letters of the axes of Q, and their twins;
        the covariances of Q, each with both letters, as operands of `batch_einsum`.
    """
    for size in range(1, len(slots) + 1):
        for chosen in combinations(range(len(slots)), size):
            part, kept = K, 0
            for i, slot in enumerate(slots):
                axis = nbatch + 1 + kept
                if i in chosen:
                    part = part[(slice(None),) * axis + (slice(1, None),)]
                    kept += 1
                else:
                    part = _contract_slot(jnp.moveaxis(part, axis, nbatch + 1),
                                          augment(slot.mean))
            a, b = "abcdefgh"[:kept], "stuvwxyz"[:kept]
            yield part, a, b, [(slots[i].cov, a[j] + b[j]) for j, i in enumerate(chosen)]


def expected_log_density(square: Array, count: Array, precision: Array, logdet: Array,
                         diagonal: bool) -> Array:
    """sum of E[log N] = 1/2 E[log|P|] - 1/2 <E[P], E[r r']> - (n/2) log 2 pi over all elements.

    Args:
        square: from `expected_square`; count: summed weights (*batch, n or 1).
        precision: E[P], (*batch, n) or (*batch, n, n); logdet: E[log P] (*batch, n) or
            E[log|P|] (*batch).
    """
    if diagonal:
        n = precision.shape[-1]
        return 0.5 * (jnp.sum(jnp.broadcast_to(count, (*count.shape[:-1], n))
                              * (logdet - LOG_2PI)) - jnp.sum(precision * square))
    n = precision.shape[-1]
    return 0.5 * (jnp.sum(count[..., 0] * (logdet - n * LOG_2PI)) - jnp.sum(precision * square))
