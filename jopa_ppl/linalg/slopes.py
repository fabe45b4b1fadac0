"""Slopes of functions of a batch, every element of which is made of its own alone."""

from __future__ import annotations

from collections.abc import Callable

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
