"""Sites as data: `condition`, and what every query of a program shares."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import jax
import numpy as np
import numpyro
from jax import Array
from jax.typing import ArrayLike

from jopa_ppl.arrays import native
from jopa_ppl.errors import DataError, JopaError, ShapeError, SiteError, names
from jopa_ppl.graph.trace import Series, filled


@dataclass(frozen=True, eq=False, repr=False)
class _Query:
    """A model wrapped by a query: a pytree whose fields `data` are arrays, so that it compiles once
    for all their values; so do the arrays of a query inside it."""

    fn: Callable
    data: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, data: tuple[str, ...], **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.data = data
        jax.tree_util.register_pytree_node(cls, _Query._flatten, cls._unflatten)

    @property
    def __name__(self) -> str:
        return getattr(self.fn, "__name__", type(self.fn).__name__)

    def _flatten(self) -> tuple[tuple, tuple]:
        static = {f.name: getattr(self, f.name) for f in fields(self)}
        inner = (static.pop("fn"),) if isinstance(self.fn, _Query) else ()
        return (*(static.pop(name) for name in self.data), *inner), tuple(static.items())

    @classmethod
    def _unflatten(cls, static: tuple, children: Iterable) -> _Query:
        return cls(**dict(static), **dict(zip((*cls.data, "fn"), children)))


def program_of(model: Any) -> str:
    """"module:qualname" of the function inside queries, handlers and partials."""
    while (inner := getattr(model, "fn", getattr(model, "func", None))) is not None:
        model = inner
    named = model if hasattr(model, "__qualname__") else type(model)
    module = named.__module__
    if module == "__main__":        # run with -m: the name that others can import it by
        module = getattr(sys.modules["__main__"].__spec__, "name", module)
    return f"{module}:{named.__qualname__}"


def unwrapped(model: Callable) -> Callable:
    """The user's own function under queries and handlers, which take its arguments."""
    while (inner := getattr(model, "fn", None)) is not None:
        model = inner
    return model


class _Used(Series):
    """Conditioning data that notes which of its sites the program has."""

    def __init__(self, data: dict, partial: frozenset[str]) -> None:
        super().__init__(data)
        self.partial, self.used = partial, set()

    def __contains__(self, name: object) -> bool:
        self.used.add(name)
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.used.add(name)
        return super().get(name, default)


class _Conditioner(numpyro.handlers.condition):
    def process_message(self, msg: dict) -> None:
        data: _Used = self.data
        name = msg.get("name")
        if (msg["type"] == "sample" and not msg.get("_control_flow_done", False)
                and dict.__contains__(data, name)):
            shape = tuple(msg["fn"].shape())
            if np.shape(data[name]) != shape:
                raise ShapeError("the conditioning data have the wrong shape", site=name,
                                 found=np.shape(data[name]), expected=shape,
                                 fix="pass one value per element; NaN for what is missing")
            infer = msg.get("infer") or {}
            msg["infer"] = {**infer, "jopa_partial": name in data.partial}
        before = msg.get("value")
        super().process_message(msg)
        if name in data.partial and before is not None and msg["value"] is not before:
            msg["value"] = filled(msg["value"], before)


@dataclass(frozen=True, eq=False, repr=False)
class Condition(_Query, data=("values",)):
    """A model some of whose sites are data; made by `condition`."""

    values: dict[str, Array]
    partial: frozenset[str]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        data = _Used(self.values, self.partial)
        with _Conditioner(data=data):
            out = self.fn(*args, **kwargs)
        check_known(set(self.values) - data.used, data.used, "jp.condition")
        return out


def check_known(unknown: set[str], seen: set, where: str) -> None:
    """Raise a SiteError for the first of the names that no site of the program has."""
    if unknown:
        name = sorted(unknown)[0]
        raise SiteError(f"unknown site in {where}", site=name, found=f"'{name}'",
                        expected=f"one of {names(sorted(map(str, seen - unknown)))}",
                        fix="check the spelling, or declare the site in the program")


def condition(model: Callable, data: Mapping[str, ArrayLike]) -> Condition:
    """Make sites data: the model with `data[name]` observed at every named site.

    Inside a scan pass the whole series (T, ...); a shorter one, or NaN in it, leaves those values
    latent. The result compiles once for all data of the same shapes.

    Raises:
        DataError: a value holds infinities; SiteError (when run): a name is not in the program.
    """
    if not isinstance(data, Mapping):
        raise JopaError("jp.condition takes data by site name", found=type(data).__name__,
                        expected="a dict {name: array}", fix="jp.condition(model, {'u': actions})")
    values, partial = {}, set()
    for name, value in data.items():
        if value is None:
            raise DataError("it is conditioned on None", site=name, found="None",
                            expected="an array", fix="leave the site out to infer it")
        if not isinstance(value, jax.core.Tracer):
            array = np.asarray(value)
            if array.dtype.kind not in "fiub":
                raise ShapeError("the conditioning data have the wrong dtype", site=name,
                                 found=array.dtype, expected="real numbers",
                                 fix="pass a float array")
            if array.dtype.kind == "f":
                if np.isinf(array).any():
                    raise DataError("the data hold infinities", site=name,
                                    found=f"{int(np.isinf(array).sum())} infinite values",
                                    expected="finite numbers, or NaN for missing ones",
                                    fix="replace them by NaN")
                if np.isnan(array).any():
                    partial.add(name)
        # NumPy's float64 stays what it is, whatever the caller's default; a copy, as it may change.
        values[name] = value if isinstance(value, jax.Array) else np.array(native(value))
    return Condition(model, values, frozenset(partial))
