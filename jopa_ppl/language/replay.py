"""Posterior predictive draws: the program itself, run forward with draws of its latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array, random
from jax.typing import ArrayLike
from numpyro.contrib.control_flow.cond import cond_wrapper
from numpyro.ops.pytree import PytreeTrace
from numpyro.primitives import Messenger

from jopa_ppl.language.missing import data_of, filled, without_gaps
from jopa_ppl.language.series import Series
from jopa_ppl.language.tracing import tracing
from jopa_ppl.settings import ours


class _Replay(Messenger):
    """Sets latents to their draws, draws the rest, and runs scans step by step."""

    def __init__(self, values: dict[str, Array], key: Array, keep_data: bool,
                 draw_gaps: bool, window: tuple[Array, Array] | None, moments: bool) -> None:
        super().__init__(None)
        self.moments = moments
        self.values, self.key, self.window = values, key, window
        self.keep_data, self.draw_gaps = keep_data, draw_gaps
        self.found: dict[str, Any] = {}
        self.scores: dict[str, Array] = {}
        self.count = 0

    def _draw(self, msg: dict, given: Array | None, key: Array) -> None:
        conditioned = msg.get("_conditioned")
        if given is not None:
            msg["value"] = given
        elif msg["value"] is None or not (self.keep_data or conditioned):
            msg["value"] = msg["fn"].sample(key)
        elif self.draw_gaps or conditioned:
            data = data_of(msg)
            if _may_miss(data):
                msg["value"] = filled(jnp.asarray(data), msg["fn"].sample(key))

    def _note(self, msg: dict, found: dict[str, Array], scores: dict[str, Array]) -> None:
        found[msg["name"]] = _moments(msg) if self.moments else msg["value"]
        if msg["is_observed"] and self.keep_data:
            scores[msg["name"]] = msg["fn"].log_prob(msg["value"])

    def process_message(self, msg: dict) -> None:
        if msg["type"] == "control_flow" and msg["fn"] is not cond_wrapper:
            self._scan(msg)
        elif msg["type"] == "sample" and not msg.get("_in_scan"):
            self.count += 1
            self._draw(msg, self.values.get(msg["name"]), random.fold_in(self.key, self.count))
            self._note(msg, self.found, self.scores)
        elif msg["type"] == "deterministic":
            self.found[msg["name"]] = msg["value"]

    def _scan(self, msg: dict) -> None:
        f, init, xs, length, _ = msg["args"][:5]
        stack = msg["kwargs"].get("substitute_stack") or []
        length = jax.tree.leaves(xs)[0].shape[0] if length is None else length
        self.count += 1
        keys = random.split(random.fold_in(self.key, self.count), length)
        outer = self

        class Inner(Messenger):
            def __init__(self, values: dict, key: Array, t: Array) -> None:
                super().__init__(None)
                self.values, self.key, self.t, self.found, self.scores = values, key, t, {}, {}

            def process_message(self, msg: dict) -> None:
                if msg["type"] == "deterministic":
                    self.found[msg["name"]] = msg["value"]
                if msg["type"] != "sample":
                    return
                msg["_control_flow_done"] = msg["_in_scan"] = True
                key = random.fold_in(self.key, len(self.found))
                inner = None
                for _, data in stack:          # from the innermost handler to the outermost
                    ours = isinstance(data, Series)
                    series = data.get(msg["name"]) if ours or not callable(data) else None
                    if series is not None:
                        msg["fn"] = without_gaps(msg["fn"]) if ours else msg["fn"]
                        value = jnp.asarray(series, float)
                        steps = len(value)
                        value = value[jnp.minimum(self.t, steps - 1)]
                        value = jnp.where(self.t < steps, value, jnp.nan)
                        inner = value if inner is None else filled(value, inner)
                        msg["value"], msg["is_observed"], msg["_conditioned"] = inner, True, True
                outer._draw(msg, self.values.get(msg["name"]), key)
                outer._note(msg, self.found, self.scores)

        def step(carry: Any, inputs: tuple) -> tuple[Any, Any]:
            x, values, key, t = inputs

            def inside() -> tuple[Any, Any]:
                inner = Inner(values, key, t)
                with inner:
                    after, y = f(carry, x)
                return after, (inner.found, inner.scores, y)

            def outside() -> tuple[Any, Any]:
                # Without its sites a step costs what its carry costs: XLA leaves out the rest.
                after, (found, scores, y) = inside()
                return after, (*jax.tree.map(jnp.zeros_like, (found, scores)), y)

            if self.window is None:
                return inside()
            first, stop = self.window
            return jax.lax.cond((t >= first) & (t < stop), inside, outside)

        series = {n: v for n, v in self.values.items() if n not in self.found and v.ndim
                  and v.shape[0] == length}
        init = jax.tree.map(jnp.asarray, init)
        inputs = (xs, series, keys, jnp.arange(length))
        carry, (found, scores, ys) = jax.lax.scan(step, init, inputs, length=length)
        self.found |= found
        self.scores |= scores
        msg["value"] = ((length, None, carry), (PytreeTrace({}), ys))


def _moments(msg: dict) -> tuple[Array, Array]:
    """Mean and variance of a site given what it depends on; its draw where it has none."""
    try:
        mean, variance = msg["fn"].mean, msg["fn"].variance
        shape = jnp.shape(msg["value"])
        return jnp.broadcast_to(mean, shape), jnp.broadcast_to(variance, shape)
    except (NotImplementedError, AttributeError, ValueError):
        return msg["value"], jnp.zeros_like(msg["value"])


def _may_miss(data: ArrayLike) -> bool:
    if isinstance(data, jax.core.Tracer):
        return bool(jnp.issubdtype(data.dtype, jnp.floating))
    return bool(np.isnan(np.asarray(data, float)).any())


def replay(model: Callable, args: tuple, kwargs: dict, draws: dict[str, Array], key: Array,
           num_samples: int, keep_data: bool = False, score: bool = False,
           window: tuple[Array, Array] | None = None, draw_gaps: bool = False,
           moments: bool = False) -> dict[str, Any]:
    """Run the program once per draw: {site: (num_samples, *site shape)}.

    Args:
        model, args, kwargs: the program, and what it is called with.
        draws: of latents, {site: (num_samples, *site shape)}; the others are drawn.
        key: of what is drawn; num_samples: how many, also where `draws` is empty.
        keep_data: whether observed values stay as they are (a program run on new data) or are
            replicated (posterior predictive).
        score: log p(data | draw) of the sites that keep their data instead, (num_samples, *batch
            shape).
        window: (first, stop), the only steps of scans whose sites are wanted; others are zeros.
        draw_gaps: whether what is missing in the data that are kept is drawn from the site.
        moments: mean and variance of every site given the draws it depends on, in place of its own.
    """
    def run(values: dict[str, Array], key: Array) -> dict[str, Any]:
        replayed = _Replay(values, key, keep_data, draw_gaps, window, moments)
        # NumPyro's checks of arguments would run op by op here.
        with (replayed, numpyro.handlers.seed(rng_seed=0), numpyro.validation_enabled(False)):
            model(*args, **kwargs)
        return replayed.scores if score else replayed.found

    with tracing(), ours(draws, key, args, kwargs, model, double=False):
        return jax.jit(jax.vmap(run))(draws, random.split(key, num_samples))
