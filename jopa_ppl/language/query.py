"""Sites as data: `condition`, and what every query of a program shares."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpyro.primitives import Messenger

from jopa_ppl.arrays import native
from jopa_ppl.errors import DataError, JopaError, ShapeError, SiteError, check_model, names
from jopa_ppl.language.missing import filled, from_masked, mask_missing, without_gaps
from jopa_ppl.language.series import Series


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


class _Conditioner(Messenger):
    def __init__(self, series: Series) -> None:
        super().__init__(None)
        self.series = series

    def process_message(self, msg: dict) -> None:
        if msg["type"] == "control_flow":
            msg["kwargs"]["substitute_stack"].append(("condition", self.series))
        elif msg["type"] == "sample" and not msg.get("_control_flow_done", False):
            value = self.series.get(msg["name"])
            if value is not None:
                self._condition(msg, value)

    def _condition(self, msg: dict, value: Array) -> None:
        name, fn = msg["name"], without_gaps(msg["fn"])
        if np.shape(value) != tuple(fn.shape()):
            raise ShapeError("the conditioning data have the wrong shape", site=name,
                             found=np.shape(value), expected=tuple(fn.shape()),
                             fix="pass one value per element; NaN for what is missing")
        infer = dict(msg["infer"])
        if name in self.series.partial:
            if "jopa_partial" in infer:         # data of a query inside this one
                value = filled(value, msg["value"])
            fn, _ = mask_missing(fn, value)     # under SVI and NUTS, where NaN stay in the value
        infer["jopa_partial"] = name in self.series.partial
        msg.update(fn=fn, value=value, is_observed=True, infer=infer)


@dataclass(frozen=True, eq=False, repr=False)
class Condition(_Query, data=("values",)):
    """A model some of whose sites are data; made by `condition`."""

    values: dict[str, Array]
    partial: frozenset[str]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        data = Series(self.values, self.partial)
        with _Conditioner(data):
            out = self.fn(*args, **kwargs)
        check_known(set(self.values) - data.used, data.used, "jp.condition")
        return out


def check_known(unknown: set[str], seen: set, where: str) -> None:
    """Refuse names that no site of the program has.

    Args:
        unknown: names that were asked for and not met; seen: all that there are,
            with unknown ones or without.
        where: what was called, for the message.

    Raises:
        SiteError: for the first of the unknown names, in order of the alphabet.
    """
    if unknown:
        name = sorted(unknown)[0]
        raise SiteError(f"unknown site in {where}", site=name, found=f"'{name}'",
                        expected=f"one of {names(sorted(map(str, seen - unknown)))}",
                        fix="check the spelling, or declare the site in the program")


def condition(model: Callable, data: Mapping[str, ArrayLike]) -> Condition:
    """Make sites data: the model with `data[name]` observed at every named site.

    Inside a scan pass the whole series (T, ...); a shorter one, or NaN in it (or an entry that a
    NumPy masked array masks), leaves those values latent; a condition inside this one fills them.
    What the site was given by obs= counts no more, as under NumPyro's own `condition`, not even
    where the data are NaN. SVI and NUTS take NaN for missing where nothing else is made of the
    site. The result compiles once for all data of the same shapes.

    Args:
        model: a program, or a query of one (`jp.condition`, `jp.given`).
        data: {site: array}, of the shape of the site.

    Returns:
        a program of the same arguments.

    Raises:
        DataError: a value is None or holds infinities; ShapeError: it holds no real numbers.
        JopaError: the model is not callable, or the data are no mapping.
        SiteError, ShapeError (when run): a name is not in the program, or its data have not the
            shape of the site.
    """
    check_model(model)
    if not isinstance(data, Mapping):
        raise JopaError("jp.condition takes data by site name", found=type(data).__name__,
                        expected="a dict {name: array}", fix="jp.condition(model, {'u': actions})")
    values, partial = {}, set()
    for name, value in data.items():
        value = from_masked(value)
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
