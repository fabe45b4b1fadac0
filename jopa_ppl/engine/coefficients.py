"""The coefficients of a residual that was proved multi-affine, probed by `jax.jacfwd` at zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from jopa_ppl.beliefs import MatrixBelief
from jopa_ppl.graph.factor import Factor
from jopa_ppl.linalg.matrix import MatrixEntries, MatrixProduct
from jopa_ppl.linalg.slopes import units
from jopa_ppl.program.refs import Ref


def _first_row(block: MatrixBelief, refs: Sequence[Ref], row: Array) -> Array:
    """The members `refs` of M (n, p) one after another, (n p,), zero but for the first row of
    M, (p,)."""
    sizes = [block.columns[r.site].stop - block.columns[r.site].start for r in refs]
    pieces = jnp.split(row, np.cumsum(sizes)[:-1])
    return jnp.concatenate([jnp.pad(x, (0, (block.n - 1) * x.size)) for x in pieces])


def matrix_coefficients(block: MatrixBelief, factor: Factor, slots: Sequence[Sequence[Ref]],
                        residual: Callable, parts: Mapping[Ref, tuple]) -> tuple[Any, Array | bool]:
    """The coefficients of a factor of a matrix, from one row of it; and whether they tell the
    residual at a random point, where any other product would differ.

    Args:
        block: the belief about the matrix; factor: one that it meets.
        slots: the latents of every slot, the matrix's first.
        residual: of the numbers of the matrix, of the other slot where there is one, and of what
            is known.
        parts: of every latent and known value, how many numbers an element has, and what makes it
            of them.

    Returns:
        a `MatrixProduct` with batch axes of size 1, or of the matrix's own prior `MatrixEntries`.
    """
    refs = factor.instances_of(block)
    if factor.site.name in block.members:
        constant = residual(jnp.zeros(parts[refs[0]][0]), jnp.zeros(0)).reshape(block.n, -1)
        return MatrixEntries(constant, *(jnp.eye(n) for n in constant.shape)), True
    size = sum(parts[n][0] for n in (*slots[-1], *factor.knowns))
    at, zero = _at(factor, slots, residual, parts), jnp.zeros(sum(parts[n][0] for n in refs))
    constant = expand(lambda h: at(zero, h), [size])
    carried = expand(lambda m, h: at(_first_row(block, refs, m), h)[0],
                     [zero.size // block.n, size])[1:]
    lead = factor.in_time + len(factor.plates)
    found = MatrixProduct(constant, jnp.eye(block.n), carried)
    fits = _tell(block, refs, at, parts, size, lambda h: (
        constant @ (one := jnp.concatenate([jnp.ones(1), h])), carried @ one))
    return jax.tree.map(lambda x: x[(None,) * lead], found), fits


def is_product(block: MatrixBelief, factor: Factor, slots: Sequence[Sequence[Ref]],
               residual: Callable, parts: Mapping[Ref, tuple]) -> Array:
    """Whether a mean that is not affine is a product M f(h), as far as a random point tells.

    Args:
        block, factor, slots, residual, parts: as in `matrix_coefficients`.
    """
    refs = factor.instances_of(block)
    size = sum(parts[n][0] for n in (*slots[-1], *factor.knowns))
    at, zero = _at(factor, slots, residual, parts), jnp.zeros(sum(parts[n][0] for n in refs))
    return _tell(block, refs, at, parts, size, lambda h: (at(zero, h), jax.jacfwd(
        lambda m: at(_first_row(block, refs, m), h)[0])(jnp.zeros(zero.size // block.n))))


def _at(factor: Factor, slots: Sequence[Sequence[Ref]], residual: Callable,
        parts: Mapping[Ref, tuple]) -> Callable[[Array, Array], Array]:
    """The residual (n,) of one element as a function of M and of all else."""
    main = sum(parts[n][0] for n in slots[-1])

    def at(M: Array, h: Array) -> Array:
        found = residual(M, h[:main], h[main:])
        return found[(0,) * (found.ndim - 1)]

    return at


def _tell(block: MatrixBelief, refs: Sequence[Ref], at: Callable, parts: Mapping[Ref, tuple],
          size: int, told: Callable[[Array], tuple[Array, Array]]) -> Array:
    """Whether constant + M carried, as `told` (constant, carried) of h, is the residual at a random
    M and h."""
    first, second = random.split(random.key(0))
    M = random.normal(first, (sum(parts[n][0] for n in refs),))
    h = random.normal(second, (size,))
    pieces = jnp.split(M, np.cumsum([parts[n][0] for n in refs])[:-1])
    side = jnp.concatenate([x.reshape(block.n, -1) for x in pieces], -1)
    constant, carried = told(h)
    gap = at(M, h) - constant - side @ carried
    most = jnp.abs(constant).max() + jnp.abs(carried).sum()
    return ~(jnp.abs(gap).max() > 1e-8 * most)              # NaN is told elsewhere


def expand_at(fn: Callable, points: Sequence[Array], copied: Sequence[bool]) -> Array:
    """The coefficients (*batch, n, 1 + p_1, .., 1 + p_k) of a function linearised in each of its
    arguments at its point, every element of the batch for itself.

    Slopes are nested, the longest vector inside: the few tangents of the others go through one
    pass backward of its slope, where its many would go through all of theirs.

    Args:
        fn: (v_1, .., v_k) -> (*batch, n); points: v_i, (*batch|1, p_i).
        copied: which of them hold copies of one latent, whose slopes go forward
            (`Placement.copied`).
    """
    order = sorted(range(len(points)), key=lambda i: points[i].shape[-1])
    found = _nested(lambda *v: fn(*(v[order.index(i)] for i in range(len(points)))),
                    [points[i] for i in order], [copied[i] for i in order])
    lead = found.ndim - len(points)
    return jnp.moveaxis(found, range(lead, found.ndim), [lead + i for i in order])


def _nested(fn: Callable, points: Sequence[Array], copied: Sequence[bool]) -> Array:
    """`expand_at` in the order of the points."""
    if not points:
        return fn()
    point, *rest = points

    def first(vector: Array) -> Array:
        return _nested(lambda *others: fn(vector, *others), rest, copied[1:])

    value, slope = _slope(first, point, copied[0])
    axis = value.ndim - len(rest)
    at = jnp.moveaxis(point, -1, 0)
    at = at.reshape((*at.shape, *(1,) * (value.ndim - point.ndim + 1)))
    constant = value - (slope * at).sum(0)
    return jnp.concatenate([jnp.expand_dims(constant, axis), jnp.moveaxis(slope, 0, axis)], axis)


def _slope(fn: Callable, point: Array, copied: bool) -> tuple[Array, Array]:
    """fn at a point (*batch|1, p), every element of the batch for itself, and its slope, p in front
    of the value's axes; backward where its values (*batch, n) are fewer than p, and no two elements
    of the batch are made of one of the point: a pass backward would add them up."""
    size = point.shape[-1]
    value, tangent = jax.linearize(fn, point)       # traced once, whichever way its slope goes
    if not copied and value.shape[:-1] == point.shape[:-1] and value.shape[-1] < size:
        try:
            back = jax.linear_transpose(tangent, point)
            rows = jax.vmap(lambda c: back(c)[0])(units(value))
            return value, jnp.moveaxis(rows, (0, -1), (-1, 0))
        except (TypeError, ValueError):     # a while loop goes forward alone, and whole numbers
            pass
    return value, jax.vmap(tangent)(units(point))


def expand(fn: Callable, sizes: Sequence[int]) -> Array:
    """The coefficient tensor (*out, 1 + p_1, .., 1 + p_k) of a multi-affine fn(v_1, .., v_k).

    Args:
        fn: (v_1, .., v_k) -> (*out); sizes: p_i of each v_i (p_i,).
    """
    if not sizes:
        return fn()

    def first(vector: Array) -> Array:
        return expand(lambda *rest: fn(vector, *rest), sizes[1:])

    zero = jnp.zeros(sizes[0])
    value = first(zero)
    axis = value.ndim - (len(sizes) - 1)
    slope = (jnp.moveaxis(jax.jacfwd(first)(zero), -1, axis) if sizes[0]
             else jnp.zeros((*value.shape[:axis], 0, *value.shape[axis:])))
    return jnp.concatenate([jnp.expand_dims(value, axis), slope], axis)
