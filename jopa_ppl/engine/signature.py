"""Which parts of a call are data and which shape the program: the key of what is compiled."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from jopa_ppl.arrays import native
from jopa_ppl.errors import JopaError, ShapeError, StaleError
from jopa_ppl.language.keys import is_key
from jopa_ppl.language.missing import unmasked
from jopa_ppl.language.tracing import LOCK, tracing
from jopa_ppl.language.watch import Watch
from jopa_ppl.program.fingerprint import fingerprint
from jopa_ppl.program.program import Program
from jopa_ppl.program.trace import trace_program
from jopa_ppl.settings import is_traced, ours


class Key:
    """A large hashable value whose hash is taken once."""

    def __init__(self, *value: Hashable) -> None:
        self.value, self.hash = value, hash(value)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Key) and self.hash == other.hash
                                 and self.value == other.value)


class Traced(NamedTuple):
    """A program as it was when it was traced.

    key: equal for two calls of which one program serves both; watch: whether it is still there.
    """

    key: Key
    program: Program
    watch: Watch


class Call(NamedTuple):
    """A call of a model, split into arrays and everything else."""

    dynamic: list[Array]
    rebuild: Callable[[list[Array]], tuple[Callable, tuple, dict]]
    key: Hashable
    static: tuple          # what is no array
    tree: Any              # the structure that holds arrays and static parts
    traced: Traced | None = None        # the program that ran

    def program(self) -> tuple[Callable, tuple, dict]:
        """Model and arguments of the run, to run the program again.

        Raises:
            StaleError: it is no longer the program that ran.
        """
        ran = self.traced
        if ran is not None and not ran.watch.unchanged(self.static):
            change = ran.watch.change()
            if traced(self).key != ran.key:
                raise StaleError(
                    "the program has changed since the run", found=f"another value: {change}"
                    if change else "other values", expected="the program that ran",
                    fix="run VMP again, or set it back; mean, variance and sample need no program")
        return self.rebuild(self.dynamic)


def split_call(model: Callable, args: tuple, kwargs: dict) -> Call:
    """Arrays (numpy or JAX) are data; numbers, functions and other objects are static: whole
    numbers and booleans of NumPy too, which tell sizes. Masked entries of NumPy's masked arrays
    become NaN.

    NumPy's arrays are copied: a buffer that is filled anew does not change a posterior.

    Raises:
        ShapeError: an array is not numeric, or is complex.
    """
    leaves, tree = jax.tree.flatten((model, args, kwargs))
    dynamic, static, where = [], [], []
    for leaf in leaves:
        leaf = leaf.item() if isinstance(leaf, np.integer | np.bool_) else unmasked(leaf)
        is_array = isinstance(leaf, jax.Array | np.ndarray | np.generic)
        where.append(is_array)
        if not is_array:
            static.append(leaf)
            continue
        kind = "key" if is_key(leaf) else np.dtype(leaf.dtype).kind
        if kind not in ("f", "i", "u", "b", "key", "V") or getattr(leaf.dtype, "names", None):
            raise ShapeError("an argument has the wrong dtype", found=leaf.dtype,
                             expected="real numbers", fix="pass float arrays")
        dynamic.append(own(leaf))

    def rebuild(values: list[Array]) -> tuple[Callable, tuple, dict]:
        arrays, rest = iter(values), iter(static)
        return tree.unflatten([next(arrays) if a else next(rest) for a in where])

    shapes = tuple((x.shape, x.dtype) for x in dynamic)
    return Call(dynamic, rebuild, (tree, tuple(map(_identity, static)), shapes, tuple(where)),
                tuple(static), tree)


def own(leaf: Any) -> Any:
    """An array that nobody else can change."""
    return native(leaf).copy() if isinstance(leaf, np.ndarray) else native(leaf)


def _identity(leaf: Any) -> Hashable:
    try:
        hash(leaf)
    except (TypeError, ValueError):           # a memoryview that may be written to
        return ("content", type(leaf))        # its watch tells it from others
    return (type(leaf), leaf)


def _parts(tree: Any) -> list:
    """What the nodes of a pytree hold beside their children."""
    found, nodes = [], [tree]
    for node in nodes:
        nodes += node.children()
        if (data := node.node_data()) is not None and data[0] not in (dict, list, tuple):
            found.append(data)
    return found


def traced(call: Call) -> Traced:
    """The program of a call as it is now, traced where it is not what was traced before.

    Raises:
        SiteError, ShapeError, StructureError: the program cannot be read.
        JopaError: it closes over what JAX traces.
    """
    found = TRACED.find(call.key)
    if found is not None and found.watch.unchanged(call.static):
        return found
    with LOCK, ours():
        found = TRACED.find(call.key)       # another thread may have traced it meanwhile
        if found is None or not found.watch.unchanged(call.static):
            found = _trace(call)
            TRACED.put(call.key, found)
    return found


def _trace(call: Call) -> Traced:
    """Trace the program, again where what it reads changed while it was traced."""
    before = None
    for _ in range(3):
        watch = Watch(call.static, (call.static, _parts(call.tree)))
        with tracing():
            program = trace_program(*call.rebuild(call.dynamic), call.dynamic, call.rebuild)
        if is_traced(program.jaxpr.consts):
            raise JopaError(
                "the program closes over values that JAX traces",
                found="a value of jit, vmap or grad inside the program",
                expected="numbers and arrays", fix="VMP compiles itself: run it outside of jit, "
                "vmap and grad; many runs at once are run_batch")
        key = _key(call, program)
        if watch.blind or watch.unchanged():
            return Traced(key, program, watch)
        if key == before:                    # it changes what does not matter: a counter, a cache
            break
        before = key
    return Traced(key, program, Watch(call.static, (call.static, _parts(call.tree))))


def _key(call: Call, program: Program) -> Key:
    try:
        return Key(call.key, fingerprint(program))
    except TypeError:          # an argument with parts that cannot be hashed is like no other
        return Key(object())


class Cache:
    """The most recently used values by key; keys that cannot be hashed are never found again."""

    def __init__(self, size: int) -> None:
        self.size, self.entries = size, OrderedDict()

    def find(self, key: Hashable) -> Any:
        """The value of a key, or None."""
        try:
            value = self.entries.get(key)
            if value is not None:
                self.entries.move_to_end(key)
        except (TypeError, KeyError):        # not hashable; or another thread left it out
            return None
        return value

    def put(self, key: Hashable, value: Any) -> None:
        """Keep a value, and leave out the one that was not used for longest."""
        try:
            with LOCK:
                self.entries[key] = value
                while len(self.entries) > self.size:
                    self.entries.popitem(last=False)
        except TypeError:
            pass

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value of a key; what is made where there is none is made once."""
        value = self.find(key)
        if value is None:
            with LOCK:
                value = self.find(key)
                if value is None:
                    value = make()
                    self.put(key, value)
        return value


TRACED = Cache(256)
