"""Functions that compute in float64 wherever they are traced, in float32 too.

JAX lowers a trace in the settings of whoever runs it, so no part of one in float32 can be in
float64. A primitive can: what it is made of is traced where it is lowered, in our own settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from jopa_ppl.compilation import often
from jopa_ppl.settings import ours

Arrays = Callable[..., Sequence[Array]]


def computed_in_double(fn: Arrays) -> Arrays:
    """`fn`, from arrays to a sequence of arrays, computed in float64 whatever the caller's floats
    are, which its results have: eagerly, under `jit` and `vmap`. It has no derivative of its own.
    """
    def call(*args: Array) -> list[Array]:
        return _primitive.bind(*map(jnp.asarray, args), fn=fn, low=not jax.config.jax_enable_x64)

    return call


@lru_cache(256)
def _narrowed(fn: Arrays, low: bool) -> Callable[..., list[Array]]:
    """`fn` with results as the caller has numbers; traced once for the same shapes."""
    def narrow(x: Array) -> Array:
        kind = jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else jnp.int32
        return x.astype(kind) if low else x

    def inside(*args: Array) -> list[Array]:
        with ours(*args):
            return [narrow(jnp.asarray(x)) for x in fn(*args)]

    return jax.jit(inside)


@lru_cache(256)
def _batched(fn: Arrays, axes: tuple[int | None, ...]) -> Arrays:
    return jax.vmap(fn, axes)


_primitive = Primitive("jopa_double")
_primitive.multiple_results = True


@lru_cache(256)
def _compiled(fn: Arrays, low: bool) -> Callable[..., list[Array]]:
    narrowed = _narrowed(fn, low)
    return jax.jit(lambda *args: narrowed(*args), compiler_options=often())


@_primitive.def_impl
def _run(*args: Array, fn: Arrays, low: bool) -> list[Array]:
    with ours():
        return _compiled(fn, low)(*args)


@_primitive.def_abstract_eval
def _shapes(*args: Any, fn: Arrays, low: bool) -> list[Any]:
    with jax.enable_x64(True):
        like = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in args]
        return list(jax.make_jaxpr(_narrowed(fn, low))(*like).out_avals)


def _lower(ctx: Any, *args: Any, fn: Arrays, low: bool) -> Any:
    with jax.enable_x64(True):
        return mlir.lower_fun(_narrowed(fn, low), multiple_results=True)(ctx, *args)


def _batch(args: Sequence[Array], axes: Sequence[int | None], *, fn: Arrays, low: bool
           ) -> tuple[list[Array], list[int]]:
    found = _primitive.bind(*args, fn=_batched(fn, tuple(axes)), low=low)
    return found, [0] * len(found)


mlir.register_lowering(_primitive, _lower)
batching.primitive_batchers[_primitive] = _batch
