"""Whether a program still is what was traced: what its code reads, then and now.

A program is more than its arguments: globals, closures, defaults, attributes, arrays that are
changed in place. `Watch` walks from the program to all that its code can read, once, and keeps
what was there; `unchanged` compares, without a walk. Libraries are constant, and so are JAX's
arrays. Of the user's own objects only attributes count that some code of the program names. What
the walk cannot see through makes the watch `blind`: such a program is traced at every run.
"""

from __future__ import annotations

import functools
import random
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from operator import attrgetter, itemgetter, methodcaller
from types import (
    BuiltinFunctionType,
    FunctionType,
    MappingProxyType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any

import jax
import numpy as np

from jopa_ppl.language.probes import (
    ATOMS,
    GONE,
    Many,
    Probe,
    digest,
    function_parts,
    in_context,
    items_of,
    members_of,
    pickled,
    plain,
    referent,
    same,
    slots_of,
    some,
)
from jopa_ppl.language.reads import Reads, is_library, library_file, reads

# Libraries whose objects, but for functions, hold nothing that a program is made of.
_CONSTANT = frozenset(("jax", "jaxlib", "jopa_ppl", "logging", "tqdm", "typing", "weakref"))
_LIMIT = 20_000      # objects: a program that can reach more is traced at every run
# Special methods that a program runs without naming them; these it hardly does.
_UNUSED = frozenset(("__eq__", "__repr__", "__str__", "__hash__", "__reduce__", "__reduce_ex__",
                     "__getstate__", "__setstate__", "__del__", "__doc__", "__dict__",
                     "__weakref__", "__module__", "__annotations__", "__qualname__", "__lt__",
                     "__le__", "__gt__", "__ge__", "__copy__", "__deepcopy__", "__replace__",
                     "__slots__", "__match_args__", "__dataclass_fields__", "__dataclass_params__",
                     "__parameters__", "__orig_bases__", "__abstractmethods__",
                     "__static_attributes__", "__firstlineno__"))
# What gives something else each time, and what makes such a thing of a seed.
_DRAWS = (random.Random, np.random.Generator, np.random.RandomState)
_SEEDED = frozenset(("default_rng", "RandomState", "Generator", "SeedSequence"))
_FLEETING = frozenset(("builtins", "itertools"))
LIVE: weakref.WeakSet[Watch] = weakref.WeakSet()


class Watch:
    """What a program reads, as it is now.

    Args:
        roots: the program and whatever of its arguments is no data, in order.
        reach: from where the walk starts, where there is more than that.
    """

    def __init__(self, roots: Iterable[Any], reach: Any = None) -> None:
        self.roots, reach = tuple(roots), tuple(roots) if reach is None else reach
        walk, names = _Walk(frozenset(), False), None
        while names != (walk.names, walk.anything):       # code that is found names more
            names = walk.names, walk.anything
            walk = _Walk(*names)
            walk.visit(reach)
        self.blind, self._probes = walk.blind, walk.probes
        self._many = Many([p for p in walk.probes if plain(p)])
        self._others = [p for p in walk.probes if not plain(p)]
        if not self.blind:
            LIVE.add(self)

    def unchanged(self, roots: Iterable[Any] | None = None) -> bool:
        """Whether all is as it was (and the roots are those of then)."""
        if self.blind or (roots is not None and not same(tuple(roots), self.roots)):
            return False
        return (self._many.same() and all(map(Probe.same, self._others))) or not self.change()

    def change(self) -> str | None:
        """In words, the first thing that is not as it was."""
        if self.blind:
            return self.blind
        return next((p.told() for p in self._probes if not p.same()), None)


class _Walk:
    """One pass over all that can be read, with the names that are known so far."""

    def __init__(self, names: frozenset[str], anything: bool) -> None:
        self.names, self.anything, self.blind = names, anything, ""
        self.probes: list[Probe] = []
        self.seen: dict[int, Any] = {}
        self.globals: dict[int, tuple[dict, set[str]]] = {}

    def visit(self, x: Any) -> None:
        """Look at an object and at all that is reached from it."""
        waiting = [x]
        while waiting:
            x = waiting.pop()
            if isinstance(x, (*ATOMS, jax.Array)) or x is GONE or id(x) in self.seen:
                continue
            self.seen[id(x)] = x
            if len(self.seen) > _LIMIT:
                self.blind = f"more than {_LIMIT} objects that it may read"
                return
            waiting += self._look(x)

    def _probe(self, read: Callable, *args: Any, names: Iterable[str] = (), where: str) -> tuple:
        """Note a reading, and return what it gave."""
        self.probes.append(Probe(read, args, read(*args), tuple(names), where))
        return self.probes[-1].values

    def _look(self, x: Any) -> Iterable[Any]:
        if isinstance(x, weakref.ref):
            return self._probe(referent, x, where="what a weak reference refers to")
        if isinstance(x, ContextVar):
            return self._probe(in_context, x, where=f"what the context variable {x.name} holds")
        if isinstance(x, attrgetter | itemgetter | methodcaller):
            self.anything = True
            return ()
        if isinstance(x, _DRAWS) or (isinstance(x, Iterator) and type(x).__module__ in _FLEETING):
            self.blind = self.blind or f"a {type(x).__name__}, which gives something else each time"
            return ()
        return self._made_of(x)

    def _made_of(self, x: Any) -> Iterable[Any]:
        if isinstance(x, np.ndarray):
            pure = type(x) is np.ndarray and not x.dtype.hasobject
            self._probe(digest if pure else pickled, x, where="the values of an array")
            return self._own(x)
        if isinstance(x, tuple | frozenset):
            return (*x, *self._own(x))
        if isinstance(x, dict | MappingProxyType):
            return (*self._all(x, "of a dict"), *self._own(x))
        if isinstance(x, list | set | deque):
            members = self._probe(members_of, x, where=f"what a {type(x).__name__} holds")
            return (*members, *self._own(x))
        if isinstance(x, FunctionType):
            return self._code(x)
        if isinstance(x, MethodType):
            return x.__func__, x.__self__
        if isinstance(x, BuiltinFunctionType | MethodWrapperType):
            return () if isinstance(x.__self__, ModuleType | None) else (x.__self__,)
        if isinstance(x, functools.partial):
            return x.func, x.args, x.keywords
        if isinstance(x, ModuleType):
            return () if is_library(x) else self._partly(vars(x), f"of module {x.__name__}")
        if isinstance(x, property):
            return x.fget, x.fset
        if isinstance(x, staticmethod | classmethod):
            return (x.__func__,)
        if isinstance(x, type):
            return (*self._class(x), *(() if type(x) is type else (type(x),)))
        return type(x), *self._object(x)

    def _own(self, x: Any) -> Iterable[Any]:
        """What a container has besides what it holds: the user's class of it, and attributes."""
        return () if is_library(type(x)) else (type(x), *self._object(x))

    def _code(self, f: FunctionType) -> Iterable[Any]:
        """What a function reads: of a library's, only what it closes over."""
        own = ("__code__", "__defaults__", "__kwdefaults__", *f.__code__.co_freevars)
        values = self._probe(function_parts, f, names=own, where=f"of {f.__qualname__}")
        found = [*values[1:], *(self._all(vars(f), f"of {f.__qualname__}") if vars(f) else ())]
        if library_file(f.__code__.co_filename):
            return found
        read = reads(f.__code__)
        self.names |= read.attributes
        self.anything |= read.anything
        if _draws(f, read):
            self.blind = self.blind or f"random numbers, which {f.__qualname__} draws"
        if read.outside:
            self.blind = self.blind or f"{sorted(read.outside)[0]}, which {f.__qualname__} uses"
        package = f.__globals__.get("__package__")
        modules = read.modules | {f"{package}.{m}".rstrip(".") for m in read.modules if package}
        return (*found, *self._names(f.__globals__, read.names, f"of module {f.__module__}"),
                *self._names(sys.modules, modules, "of the imported modules"))

    def _names(self, holder: Mapping, names: Iterable[str], where: str) -> Iterable[Any]:
        """The entries of these names."""
        names = tuple(sorted(names))
        if not names:
            return ()
        return self._probe(some, holder, names, frozenset(), names=names, where=where)

    def _partly(self, holder: Mapping, where: str, always: Iterable[str] = ()) -> Iterable[Any]:
        """The entries that the program's code names, and whether others of them came up."""
        if self.anything:
            return self._all(holder, where)
        wanted = {*self.names, *always}
        names = tuple(n for n in holder if n in wanted)
        return self._probe(some, holder, names, frozenset(wanted.difference(names)),
                           names=(*names, "a new attribute"), where=where)

    def _all(self, holder: Mapping, where: str) -> Iterable[Any]:
        names = tuple(holder)
        return self._probe(items_of, holder, names=map(str, names), where=where)[len(names):]

    def _class(self, x: type) -> Iterable[Any]:
        found = []
        for base in x.__mro__:
            if not is_library(base):
                special = [n for n in vars(base) if n[:2] == n[-2:] == "__" and n not in _UNUSED]
                self.anything |= bool({"__getattr__", "__getattribute__"} & set(special))
                found += self._partly(vars(base), f"of class {base.__name__}", special)
        return found

    def _object(self, x: Any) -> Iterable[Any]:
        """The attributes of an instance: all that code of libraries may read, else those named."""
        kind = type(x)
        if kind in (tuple, frozenset, list, set, dict, deque, MappingProxyType):
            return ()
        if kind.__module__.startswith("jaxlib"):          # jitted functions, and what they run on
            return (x.__wrapped__,) if hasattr(x, "__wrapped__") else ()
        try:
            own = object.__getattribute__(x, "__dict__")
        except AttributeError:
            own = None
        slots = tuple(s for base in kind.__mro__ for n, s in vars(base).items()
                      if hasattr(s, "__objclass__") and type(s).__name__ == "member_descriptor")
        if not isinstance(own, dict) and not slots:
            return self._opaque(x)
        library = [b for b in kind.__mro__ if b is not object and is_library(b)
                   and b.__module__ not in ("abc", "typing", "builtins")]
        if library and kind.__module__.partition(".")[0] in _CONSTANT and not callable(x):
            return ()
        whole = bool(library) or self.anything or _is_pytree(x)
        where, found = f"of a {kind.__name__}", []
        if isinstance(own, dict):
            found += self._all(own, where) if whole else self._partly(own, where)
        slots = tuple(s for s in slots if (whole or s.__name__ in self.names) and _is_set(x, s))
        if slots:
            found += self._probe(slots_of, x, slots, names=[s.__name__ for s in slots], where=where)
        if library and any(_is_extension(b) for b in kind.__mro__):
            with suppress(Exception):       # the rest of it, where pickle can see that
                self._probe(pickled, x, where=where)
        return found

    def _opaque(self, x: Any) -> Iterable[Any]:
        """An object without attributes: a function of JAX's, or what only pickle sees into."""
        kind = type(x)
        if hasattr(x, "__wrapped__"):
            return (x.__wrapped__,)
        inside = isinstance(x, tuple | frozenset | dict | list | set | deque)      # visited already
        if inside or not is_library(kind) or kind.__module__.partition(".")[0] in _CONSTANT:
            return ()
        try:
            self._probe(pickled, x, where=f"what a {kind.__name__} holds")
        except Exception:      # whatever an object's own way of being pickled raises
            self.blind = self.blind or f"a {kind.__name__}, which cannot be looked into"
        return ()


def _draws(f: FunctionType, read: Reads) -> bool:
    """Whether a function draws random numbers by name, of no seed that it states."""
    for first, *rest in read.paths:
        module = f.__globals__.get(first)
        if module is random or module is np.random or (
                module is np and rest[:1] == ["random"] and _SEEDED.isdisjoint(rest)):
            return True
    return not read.modules.isdisjoint(("random", "numpy.random"))


def _is_extension(kind: type) -> bool:
    """Whether a class is written in C with fields that are no attributes (pandas' blocks)."""
    return kind.__module__ != "builtins" and any(
        type(v).__name__ == "getset_descriptor" and n not in ("__dict__", "__weakref__")
        for n, v in vars(kind).items())


def _is_set(x: Any, slot: Any) -> bool:
    try:
        slot.__get__(x)
    except AttributeError:
        return False
    return True


def _is_pytree(x: Any) -> bool:
    return jax.tree_util.default_registry.flatten_one_level(x) is not None
