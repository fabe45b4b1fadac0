"""What a traced program is, as one hashable value: equal where two traces compute the same."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from jopa_ppl.language.keys import key_data
from jopa_ppl.language.reads import library_file
from jopa_ppl.program.program import Program


def fingerprint(program: Program) -> Hashable:
    """Sites, scans and equations of a program, with the values of its constants."""
    return _token({f.name: getattr(program, f.name) for f in fields(program) if f.name[0] != "_"})


def _token(x: Any) -> Hashable:
    if isinstance(x, ClosedJaxpr):
        return _jaxpr(x.jaxpr), tuple(map(_token, x.consts))
    if isinstance(x, Jaxpr):
        return _jaxpr(x)
    if isinstance(x, str | int | float | None):
        return type(x), repr(x)
    if isinstance(x, jax.core.Tracer):
        return id(x)
    if hasattr(x, "dtype") and hasattr(x, "shape") and hasattr(x, "__array__"):
        return _array(x)
    if isinstance(x, tuple | list):
        return type(x), tuple(map(_token, x))
    if isinstance(x, Mapping):
        return type(x), tuple((_token(k), _token(v)) for k, v in x.items())
    if is_dataclass(x) and not isinstance(x, type):
        return type(x), tuple(_token(getattr(x, f.name)) for f in fields(x))
    if (callable(x) or hasattr(x, "transforms")) and not isinstance(x, type):
        return _function(x)
    try:
        hash(x)
    except TypeError:
        return repr(x)
    return x


def _array(x: Any) -> Hashable:
    data = np.asarray(key_data(x))
    return (data.shape, str(x.dtype),
            hashlib.blake2b(np.ascontiguousarray(data).tobytes(), digest_size=16).digest())


def _function(f: Any) -> Hashable:
    """A rule of differentiation, say. JAX wraps them anew at every trace: a library's is known by
    its name; a user's own is the same as no other."""
    inner, depth = [f], 0
    for g in inner:
        depth += 1
        code = getattr(g, "__code__", None)
        if depth > 100 or (code is not None and not library_file(code.co_filename)):
            return id(f), f
        cells = [c.cell_contents for c in getattr(g, "__closure__", None) or ()]
        # By identity: what JAX wraps is no judge of whether it equals something else.
        inner += [h for h in (*cells, *(getattr(g, n, None) for n in (
            "f", "fun", "func", "__wrapped__", "__func__")))
            if callable(h) and not any(h is i for i in inner)]
    return getattr(f, "__qualname__", type(f).__qualname__)


def _jaxpr(jaxpr: Jaxpr) -> Hashable:
    """Equations with their variables numbered in order."""
    number: dict[Any, int] = {}

    def name(v: Any) -> Hashable:
        if isinstance(v, Literal):
            return _token(v.val), str(v.aval)
        return number.setdefault(v, len(number)), str(v.aval)

    ins = tuple(map(name, (*jaxpr.constvars, *jaxpr.invars)))
    eqns = tuple((e.primitive.name, tuple(map(name, e.invars)), tuple(map(name, e.outvars)),
                  _token(e.params)) for e in jaxpr.eqns)
    return ins, eqns, tuple(map(name, jaxpr.outvars))
