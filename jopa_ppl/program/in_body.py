"""The sites of a scan's body, made data by the series of `jp.condition` and `jp.given`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array
from numpyro.contrib.control_flow.cond import cond_wrapper
from numpyro.primitives import Messenger

from jopa_ppl.errors import ShapeError, StructureError
from jopa_ppl.language.missing import filled, from_masked, without_gaps
from jopa_ppl.language.series import Series, looked_up


class InBody(Messenger):
    """Innermost handler of a scan's body: conditions its sites on slices of their series."""

    def __init__(self, placeholder: Callable[[str, Array], Array], scan: int, length: int,
                 stack: list) -> None:
        super().__init__(None)
        self.placeholder, self.scan, self.length, self.stack = placeholder, scan, length, stack
        self.xs: dict[str, Array] = {}
        self.sites: list[str] = []

    def process_message(self, msg: dict) -> None:
        if msg["type"] == "control_flow" and msg["fn"] is not cond_wrapper:
            raise StructureError("a scan inside a scan is not supported by VMP",
                                 found="scan within the body of a scan",
                                 expected="one level of scan",
                                 fix="write the inner loop with a plate, or in Python "
                                     "(NumPyro's own engines do not take it either)")
        if msg["type"] != "sample":
            return
        msg["_control_flow_done"] = True       # numpyro.handlers.condition then leaves it to us
        msg["_scan"] = self.scan
        self.sites.append(msg["name"])
        inner = None
        for _, data in self.stack:             # from the innermost handler to the outermost
            value = looked_up(data, msg)
            if value is not None:
                self._condition(msg, jnp.asarray(from_masked(value)), data, inner)
                inner = msg["value"]

    def _condition(self, msg: dict, series: Array, data: Any, inner: Array | None) -> None:
        """Make the site data, as the handlers do outside of scans: the outer data win, those of
        handlers `inner` fill their gaps, and what the site was given by obs= is gone."""
        name, fn = msg["name"], msg["fn"]
        event = tuple(fn.event_shape)
        if series.ndim < 1 + len(event) or series.shape[series.ndim - len(event):] != event:
            raise ShapeError("the conditioning data have the wrong shape", site=name,
                             found=f"shape {series.shape}",
                             expected=f"(steps, ..., {', '.join(map(str, event))})",
                             fix=f"pass one value of shape {event} a step")
        steps = series.shape[0]
        if steps > self.length:
            raise ShapeError("the series is longer than the scan", site=name,
                             found=f"{steps} steps", expected=f"at most {self.length}",
                             fix="cut the series, or run the scan for as many steps")
        if steps == 0:
            raise ShapeError("the series is empty", site=name, found="0 steps",
                             expected=f"1 to {self.length} steps",
                             fix="leave the site out of jp.condition to infer it")
        if steps < self.length:
            pad = jnp.full((self.length - steps, *series.shape[1:]), jnp.nan)
            series = jnp.concatenate([series, pad])
        partial = steps < self.length
        if isinstance(data, Series):
            partial |= name in data.partial
            msg["fn"] = without_gaps(fn)
        msg["infer"] = {**msg["infer"], "jopa_partial": partial}
        key = f"xs/{self.scan}/{len(self.xs)}:{name}"
        self.xs[key] = series
        value = self.placeholder(key, series[0])
        msg["value"] = value if inner is None or not partial else filled(value, inner)
        msg["is_observed"] = True
