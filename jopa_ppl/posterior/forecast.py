"""Forecasts: the program with more steps, whose data are missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jax import Array, random

from jopa_ppl.engine.compiled import run
from jopa_ppl.errors import DataError, JopaError, StructureError, whole
from jopa_ppl.language.given import given
from jopa_ppl.language.keys import is_key
from jopa_ppl.settings import ours

if TYPE_CHECKING:
    from jopa_ppl.posterior.posterior import Posterior


def forecast(posterior: Posterior, steps: int, key: Array, num_samples: int, length: str
             ) -> dict[str, Array]:
    """As `Posterior.forecast`."""
    whole("jp.Posterior.forecast", steps=steps, num_samples=num_samples)
    longer = extended(posterior, steps, length)
    with ours(key, double=False):
        found = longer.predict(rng_key=key, num_samples=num_samples)
    (scan,) = posterior.compiled.graph.program.scans
    drawn = {n: x[:, scan.length:] for n, x in found.items() if n in scan.sites}
    for name, x in drawn.items():
        if np.isnan(x).any():
            raise DataError("what is to come depends on inputs that are not known", site=name,
                            found="NaN", expected="the inputs of the steps to come",
                            fix="run the program on longer arrays: inputs known, NaN where data "
                                "are to come")
    return drawn


def extended(posterior: Posterior, steps: int, length: str) -> Posterior:
    """Beliefs about a run that goes on for some steps of which nothing is seen; about what is
    outside its scan they are those of the `posterior`."""
    scans = posterior.compiled.graph.program.scans
    if posterior.call is None:
        raise JopaError("its program with its data was not kept", found="a loaded posterior",
                        expected="one that was run", fix="run the program again")
    if len(scans) != 1 or posterior.plan is not None:
        raise StructureError("a forecast goes on with one scan", found=f"{len(scans)} scans"
                             if posterior.plan is None else "a plan", expected="one scan over time",
                             fix="run the program on longer data, NaN where they are to come")
    T = scans[0].length
    kwargs = posterior.call.program()[2]            # which says where it is stale
    if kwargs.get(length) != T:
        raise DataError("the number of steps is not known", found=f"{length}={kwargs.get(length)}",
                        expected=f"a keyword argument of the run that is {T}, {length}={T} say",
                        fix="name it: posterior.forecast(.., length='steps')")
    model, args, kwargs = posterior.call.rebuild(
        [_padded(x, T, steps) for x in posterior.call.dynamic])
    about = list(posterior.global_sites)
    model = given(model, posterior, about) if about else model
    with ours(double=False):
        compiled, call, ran = run(model, posterior.compiled.options, args,
                                  {**kwargs, length: T + steps}, random.key(0), False)
    return type(posterior)(compiled, call, ran.told._replace(moments=ran.moments), ran.bound,
                           ran.history, sites=ran.sites)


def _padded(x: Any, T: int, steps: int) -> Any:
    """A series with NaN for the steps to come; of what is not data these raise an error later."""
    if np.ndim(x) == 0 or len(x) != T or is_key(x):
        return x
    if np.dtype(x.dtype).kind != "f":
        raise DataError("whole numbers have no place for what is missing",
                        found=f"a series of {x.dtype}, of {T} steps", expected="floats",
                        fix="pass it as floats, and make what is an index of the step of the carry")
    return np.concatenate([np.asarray(x), np.full((steps, *np.shape(x)[1:]), np.nan, x.dtype)])
