"""Hide the end of a series that was observed, and predict it from what came before."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from jopa_ppl.compilation import in_batches, often, once
from jopa_ppl.engine.signature import Cache, Call, split_call, traced
from jopa_ppl.errors import DataError, SiteError, names
from jopa_ppl.language.replay import replay
from jopa_ppl.language.tracing import tracing
from jopa_ppl.settings import ours

HINDCASTS = Cache(32)
_BATCH = 16       # draws that are run side by side: what memory has to hold


class Hindcast:
    """Predictive draws of an observed site given the first steps of its series.

    Attributes:
        values: the series (T, ...), NaN where missing.
    """

    def __init__(self, model: Callable, args: tuple, kwargs: dict, *, site: str, engine: Callable,
                 num_samples: int, rng_key: Array) -> None:
        self.engine, self.model = engine, model
        self.count, self.keys = num_samples, random.split(rng_key)
        self.call = split_call(model, args, kwargs)
        self._run = HINDCASTS.get((traced(self.call).key, site),
                                  lambda: _Run(self.call._replace(dynamic=[]), site))
        self.where = self._find(site)
        values = np.asarray(self.call.dynamic[self.where[0]])
        self.values = values.astype(np.result_type(values, np.float32))

    def _find(self, site: str) -> tuple[int, ...]:
        """Which arrays among the arguments are the series."""
        with tracing(), ours(double=False):
            found = self._run.data(self.call.dynamic)
        if site not in found:
            raise SiteError("unknown site in jp.validate", site=site, found=f"'{site}'",
                            expected=f"one of {names(found)}", fix="pass site=")
        value = np.asarray(found[site][0])
        skip = len(split_call(self.model, (), {}).dynamic)       # arrays of the model come first
        where = tuple(i for i, leaf in enumerate(self.call.dynamic)
                      if i >= skip and value.ndim and np.shape(leaf) == value.shape
                      and _agree(np.asarray(leaf), value))
        if not where:
            raise DataError("the observed series is not among the model's arguments", site=site,
                            found=f"no argument of shape {value.shape} with the site's values",
                            expected="the series itself, observed as it is at every step",
                            fix="do what is done to the data before they are passed to the model")
        return where

    def __call__(self, seen: int, start: int, length: int, mean: bool = False) -> np.ndarray:
        """(num_samples, length, ...) from `start` on, given the first `seen` steps; or the mean."""
        values = self.values.copy()
        values[seen:] = np.nan
        dynamic = [values if i in self.where else x for i, x in enumerate(self.call.dynamic)]
        model, args, kwargs = self.call.rebuild(dynamic)
        draws = self.engine(model).run(*args, **kwargs).sample(self.keys[0], (self.count,))
        keys = random.split(self.keys[1], self.count)
        with tracing(), ours(double=False):
            return np.asarray(self._run.predict(dynamic, draws, keys, start, length, mean))


class _Run:
    """The program run forward, compiled once for given shapes."""

    def __init__(self, call: Call, site: str) -> None:
        def data(dynamic: list) -> dict[str, Array]:
            return replay(*call.rebuild(dynamic), {}, random.key(0), 1, keep_data=True)

        def one(dynamic: list, start: Array, length: int, mean: bool, inputs: tuple) -> Array:
            draw, key = inputs
            window = None if mean else (start, start + length)      # decode what is asked for
            y = replay(*call.rebuild(dynamic), jax.tree.map(lambda x: x[None], draw), key, 1,
                       window=window)
            return jax.lax.dynamic_slice_in_dim(y[site][0], start, length)

        def predict(dynamic: list, draws: dict, keys: Array, start: Array, length: int,
                    mean: bool) -> Array:
            fn = partial(one, dynamic, start, length, mean)
            if not mean:
                return in_batches(fn, (draws, keys), _BATCH)
            like = jax.eval_shape(fn, jax.tree.map(lambda x: x[0], (draws, keys)))
            add = lambda total, inputs: (total + fn(inputs), None)       # one series in memory
            total, _ = jax.lax.scan(add, jnp.zeros(like.shape, like.dtype), (draws, keys))
            return total / len(keys)

        self.data = jax.jit(data, compiler_options=once())
        self.predict = jax.jit(predict, static_argnames=("length", "mean"),
                               compiler_options=often())


def last_seen(values: np.ndarray) -> np.ndarray:
    """The last value of every element that is not missing; NaN where there is none."""
    index = np.where(np.isnan(values), -1, np.arange(len(values)).reshape(
        -1, *(1,) * (values.ndim - 1))).max(0)
    found = np.take_along_axis(values, np.maximum(index, 0)[None], 0)[0]
    return np.where(index < 0, np.nan, found)


def _agree(leaf: np.ndarray, value: np.ndarray) -> bool:
    """Whether an argument is what a site observes; what is missing says nothing."""
    seen = ~np.isnan(leaf) if leaf.dtype.kind == "f" else np.ones(leaf.shape, bool)
    return bool(seen.any()) and bool(np.all(leaf[seen].astype(value.dtype) == value[seen]))
