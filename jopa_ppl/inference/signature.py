"""Which parts of a call are data and which shape the program: the key of the compile cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from jopa_ppl.errors import ShapeError
from jopa_ppl.keys import is_key


class Call(NamedTuple):
    """A call of a model, split into arrays and everything else."""

    dynamic: list[Array]
    rebuild: Callable[[list[Array]], tuple[Callable, tuple, dict]]
    key: Hashable
    keep: tuple            # static leaves that are compared by identity must stay alive


def split_call(model: Callable, args: tuple, kwargs: dict) -> Call:
    """Arrays (numpy or JAX) are data; numbers, functions and other objects are static.

    Raises:
        ShapeError: an array is not numeric, or is complex.
    """
    leaves, tree = jax.tree.flatten((model, args, kwargs))
    dynamic, static, where = [], [], []
    for leaf in leaves:
        is_array = isinstance(leaf, jax.Array | np.ndarray | np.generic)
        where.append(is_array)
        if not is_array:
            static.append(leaf)
            continue
        kind = "key" if is_key(leaf) else np.dtype(leaf.dtype).kind
        if kind not in ("f", "i", "u", "b", "key", "V"):
            raise ShapeError("an argument has the wrong dtype", found=leaf.dtype,
                             expected="real numbers", fix="pass float arrays")
        dynamic.append(leaf)

    def rebuild(values: list[Array]) -> tuple[Callable, tuple, dict]:
        arrays, rest = iter(values), iter(static)
        return tree.unflatten([next(arrays) if a else next(rest) for a in where])

    shapes = tuple((np.shape(x), str(x.dtype)) for x in dynamic)
    return Call(dynamic, rebuild, (tree, tuple(map(_identity, static)), shapes, tuple(where)),
                tuple(static))


def _identity(leaf: Any) -> Hashable:
    try:
        hash(leaf)
    except TypeError:
        return ("id", id(leaf))
    return (type(leaf), leaf)


class Cache:
    """The most recently used values by key; keys that cannot be hashed are never found again."""

    def __init__(self, size: int) -> None:
        self.size, self.entries = size, OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        try:
            hash(key)
        except TypeError:
            return make()
        if key in self.entries:
            self.entries.move_to_end(key)
            return self.entries[key]
        value = make()
        self.entries[key] = value
        while len(self.entries) > self.size:
            self.entries.popitem(last=False)
        return value
