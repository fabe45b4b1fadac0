"""The data of `jp.condition`, as handlers and scans look them up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpyro
from jax import Array

from jopa_ppl.language.missing import mask_missing, without_gaps


class Series:
    """Data by site name, which take the place of what a site was given by obs=.

    `partial` names those that hold NaN; `used` are the sites that were asked for.
    """

    def __init__(self, values: Mapping[str, Array], partial: frozenset[str]) -> None:
        self.values, self.partial = values, partial
        self.used: set[str] = set()

    def get(self, name: str) -> Array | None:
        """The data of a site."""
        self.used.add(name)
        return jnp.asarray(self.values[name]) if name in self.values else None

    def __call__(self, msg: dict) -> Array | None:
        """What NumPyro's own scan asks for at every step, of which it then takes its slice."""
        series = self.get(msg["name"])
        if series is not None:
            msg["fn"] = without_gaps(msg["fn"])
            if msg["kwargs"].get("rng_key") is None:    # for steps after the end of a short series
                msg["kwargs"]["rng_key"] = numpyro.prng_key()
            if msg["name"] in self.partial:
                step = msg["infer"].get("_scan_current_index")      # None in a branch of `cond`
                now = series if step is None else series[step]
                msg["fn"], _ = mask_missing(msg["fn"], now)
        return series


def looked_up(data: Any, msg: dict) -> Array | None:
    """What the data of a handler, by name or by message, hold for a site."""
    return data(msg) if callable(data) and not isinstance(data, Series) else data.get(msg["name"])
