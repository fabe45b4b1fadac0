"""Looks at what a program reads: what an object held then, and whether it holds the same now."""

from __future__ import annotations

import hashlib
import pickle
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from itertools import chain, repeat
from operator import call, is_
from types import (
    ClassMethodDescriptorType,
    CodeType,
    FunctionType,
    GenericAlias,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    WrapperDescriptorType,
)
from typing import Any, NamedTuple

import numpy as np

GONE = object()
ATOMS = (int, float, complex, str, bytes, type(None), type(...), range, slice, np.generic,
          np.dtype, np.ufunc, CodeType, GenericAlias, WrapperDescriptorType,
          MethodDescriptorType, ClassMethodDescriptorType, GetSetDescriptorType,
          MemberDescriptorType)


class Probe(NamedTuple):
    """One look at a mutable object: what `read(*args)` returned, and the names of its parts."""

    read: Callable[..., tuple]
    args: tuple
    values: tuple
    names: tuple[str, ...]
    where: str

    def now(self) -> tuple:
        try:
            return self.read(*self.args)
        except (RuntimeError, ValueError, AttributeError):        # changed while it was read
            return (GONE,)

    def same(self) -> bool:
        return same(self.now(), self.values)

    def told(self) -> str:
        """Which of its parts is another one now."""
        if len(now := self.now()) == len(self.values) and self.names:
            first = list(map(_equal, now, self.values)).index(False)
            return f"'{self.names[first % len(self.names)]}' {self.where}"
        return f"something {self.where}" if self.names else self.where


class Many:
    """The dicts and slots that are read as a whole, often hundreds (networks): in one pass."""

    def __init__(self, probes: list[Probe]) -> None:
        self.dicts = [p.args[0] for p in probes if p.read is items_of]
        slotted = [p.args for p in probes if p.read is slots_of]
        self.slots = ([s.__get__ for _, slots in slotted for s in slots],
                      [x for x, slots in slotted for _ in slots])
        self.sizes, self.entries = list(map(len, self.dicts)), list(self._now())

    def _now(self) -> Iterable[Any]:
        return chain(chain.from_iterable(self.dicts), map(call, *self.slots),
                     chain.from_iterable(map(dict.values, self.dicts)))

    def same(self) -> bool:
        try:
            return (list(map(len, self.dicts)) == self.sizes
                    and all(map(is_, self._now(), self.entries)))
        except (AttributeError, RuntimeError):        # a slot that was deleted
            return False


def same(now: tuple, then: tuple) -> bool:
    """Whether two readings are alike, part by part."""
    return len(now) == len(then) and (all(map(is_, now, then)) or all(map(_equal, now, then)))


def _equal(a: Any, b: Any) -> bool:
    """Whether two objects are one, or immutable and alike."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, ATOMS):
        return repr(a) == repr(b)
    if isinstance(a, MethodType):
        return a.__self__ is b.__self__ and a.__func__ is b.__func__
    if type(a) is tuple:
        return same(a, b)
    if is_dataclass(a) and type(a).__dataclass_params__.frozen:
        return all(_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return False


# -- readings: each returns what the mutable object holds ------------------------------------------


def some(holder: Mapping, names: tuple, absent: frozenset) -> tuple:
    """The entries of these names, and whether those of `absent` are absent still."""
    return (*map(holder.get, names, repeat(GONE)), holder.keys().isdisjoint(absent))


def items_of(holder: dict) -> tuple:
    """The keys of a dict and its values."""
    return (*holder, *holder.values())


def members_of(holder: Iterable) -> tuple:
    """What a list or set holds."""
    return tuple(holder)


def referent(x: weakref.ref) -> tuple:
    """What a weak reference refers to."""
    return (x(),)


def in_context(x: ContextVar) -> tuple:
    """What a context variable holds here."""
    try:
        return (x.get(),)               # or its default
    except LookupError:
        return (GONE,)


def slots_of(x: Any, slots: tuple) -> tuple:
    """The values of the slots."""
    return tuple(slot.__get__(x) for slot in slots)


def function_parts(f: FunctionType) -> tuple:
    """Code, defaults and what it closes over."""
    return (f.__code__, f.__defaults__, f.__kwdefaults__, *map(_cell, f.__closure__ or ()))


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return GONE


def digest(x: np.ndarray) -> tuple:
    """Shape, dtype and a checksum of the values of an array."""
    data = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    return x.shape, x.dtype, hashlib.blake2b(data, digest_size=16).digest()


def pickled(x: Any) -> tuple:
    """A checksum of all that pickle sees of an object."""
    return (hashlib.blake2b(pickle.dumps(x, 5), digest_size=16).digest(),)


def plain(probe: Probe) -> bool:
    """Whether `Many` reads it with the others."""
    return probe.read is slots_of or (probe.read is items_of and isinstance(probe.args[0], dict))
