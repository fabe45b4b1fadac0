"""Slopes of functions of a batch, every element of which is made of its own alone; and the
coefficients of multi-affine functions, which are their mixed slopes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array


def slopes(fn: Callable[[Array], Array], x: Array) -> Array:
    """The slope of fn(x) in x (*batch, n), (n, *shape of the value): an element never moves
    another, so one tangent serves all of the batch."""
    return jax.vmap(lambda t: jax.jvp(fn, (x,), (t,))[1])(units(x))


def value_and_slopes(fn: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    """fn(x) and its `slopes`, fn traced once."""
    value, tangent = jax.linearize(fn, x)
    return value, jax.vmap(tangent)(units(x))


def units(x: Array) -> Array:
    """The tangents of x (*batch, n) that move one of the n in all of the batch, (n, *batch, n)."""
    n = x.shape[-1]
    eye = jnp.eye(n, dtype=x.dtype).reshape((n, *(1,) * (x.ndim - 1), n))
    return jnp.broadcast_to(eye, (n, *x.shape))


def expand_at(fn: Callable, points: Sequence[Array], copied: Sequence[bool]) -> Array:
    """The coefficients (*batch, n, 1 + p_1, .., 1 + p_k) of a function linearised in each of its
    arguments at its point, every element of the batch for itself.

    Slopes are nested, the longest vector inside: the few tangents of the others go through one
    pass backward of its slope, where its many would go through all of theirs.

    Args:
        fn: (v_1, .., v_k) -> (*batch, n); points: v_i, (*batch|1, p_i).
        copied: which of them hold copies of one thing, whose slopes go forward.
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
