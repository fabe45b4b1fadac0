"""How hard XLA should optimise, programs compiled side by side, loops that compile once."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import accumulate, pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

LEVEL = "xla_backend_optimization_level"


def once() -> dict[str, Any]:
    """Options for `jax.jit` of what runs once or seldom: a fifth of the time to compile on a CPU,
    and several times slower to run."""
    return _level(0)


def often() -> dict[str, Any]:
    """Options for what runs again and again: as fast as XLA's default at these sizes, and half of
    the time to compile."""
    return _level(1)


def _level(level: int) -> dict[str, Any]:
    if jax.default_backend() != "cpu":
        return {}
    if LEVEL in os.environ.get("XLA_FLAGS", ""):       # the caller's own choice
        return _plain_fusions()
    return {LEVEL: level, **_plain_fusions()}


# Code for fused operations straight to LLVM, without MLIR; products of small matrices in place, not
# by a library that is called for each.
_PLAIN = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_experimental_ynn_fusion_type": ""}


@cache
def _plain_fusions() -> dict[str, Any]:
    """Those of `_PLAIN` that this XLA knows, and whose choice the caller has left to us."""
    known, flags = {}, os.environ.get("XLA_FLAGS", "")
    for option, value in _PLAIN.items():
        try:
            jax.jit(lambda: 0, compiler_options={option: value}).lower().compile()
        except jax.errors.JaxRuntimeError:
            continue
        if option not in flags:
            known[option] = value
    return known


def together(*jobs: tuple[Any, tuple]) -> None:
    """Compile jitted functions, (fn, args) each, side by side: XLA is at work on one in the
    background while the next is traced. Calls with arguments of these shapes find them compiled."""
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(fn.lower(*args).compile) for fn, args in jobs]:
            done.result()


class Packed:
    """Many small arrays that leave a compiled function as one vector: one transfer, not dozens."""

    def pack(self, tree: Any) -> Array:
        """The numbers of a pytree side by side, whose structure is noted while it is traced."""
        leaves, self.tree = jax.tree.flatten(tree)
        self.shapes = [jnp.shape(x) for x in leaves]
        ends = list(accumulate(map(math.prod, self.shapes)))
        self.places = [slice(*at) for at in pairwise([0, *ends])]
        return jnp.concatenate([jnp.ravel(x).astype(float) for x in leaves])

    def unpack(self, vector: Array) -> Any:
        """The pytree with NumPy arrays for leaves."""
        numbers = np.asarray(vector)
        return self.tree.unflatten([numbers[at].reshape(shape)
                                    for at, shape in zip(self.places, self.shapes)])


class Stages:
    """Jitted functions that serve one program alone, each made when it is first asked for."""

    def __init__(self) -> None:
        self.stages: dict[Hashable, Any] = {}

    def stage(self, name: Hashable, make: Callable[[], Any]) -> Any:
        if name not in self.stages:
            self.stages[name] = make()
        return self.stages[name]


def in_batches(fn: Callable, xs: Any, most: int) -> Any:
    """`jax.lax.map` of at most `most` elements side by side, which bounds what memory must hold.

    Batches are of one size, the last one filled up: `lax.map(batch_size=)` compiles `fn` a second
    time for the elements that are left over.

    Args:
        fn: an element of `xs` -> a pytree of arrays.
        xs: a pytree of arrays (count, ..).

    Returns:
        a pytree of arrays (count, ..).
    """
    count = len(jax.tree.leaves(xs)[0])
    batches = -(-count // most)
    size = -(-count // batches)
    index = jnp.minimum(jnp.arange(batches * size), count - 1).reshape(batches, size)
    found = jax.lax.map(lambda i: jax.vmap(fn)(jax.tree.map(lambda x: x[i], xs)), index)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], found)
