"""Forecasts: the program with more steps, whose data are missing."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import random

from jopa_ppl.engine.compiled import Compiled, Ran, run
from jopa_ppl.engine.signature import Call
from jopa_ppl.errors import DataError, ShapeError, StructureError
from jopa_ppl.language.given import Earlier, given
from jopa_ppl.program.program import Program
from jopa_ppl.settings import ours


def extended(compiled: Compiled, call: Call, beliefs: Earlier, sites: tuple[str, ...],
             steps: int, length: str) -> tuple[Compiled, Call, Ran]:
    """A run that goes on for some steps of which nothing is seen, with beliefs about some
    sites as they are.

    Args:
        compiled, call: the run that goes on.
        beliefs: an earlier posterior; sites: latents that it is the prior of, as it is.
        steps: how many more; length: as in `Posterior.forecast`.

    Raises:
        StructureError, DataError, StaleError: as in `Posterior.forecast`. DataError: series to come
            hold whole numbers, which no NaN can be put after.
    """
    scans = compiled.graph.program.scans
    joined = any(s.window for s in compiled.graph.program.sites.values())
    if len(scans) != 1 or compiled.decision is not None or joined:
        raise StructureError("a forecast goes on with one scan",
                             found="a plan" if compiled.decision is not None
                             else "several scans, one after the other" if joined
                             else f"{len(scans)} scans",
                             expected="one scan over time",
                             fix="run the program on longer data, NaN where they are to come")
    T = scans[0].length
    _, args, kwargs = call.program()                # which says where it is stale
    counted = [T for x in args if isinstance(x, int | np.integer) and x == T]
    counted += [k for k, x in kwargs.items() if isinstance(x, int | np.integer) and x == T]
    told = kwargs.get(length) is not None
    unknown = DataError("the number of steps is not known", found=f"{length}={kwargs.get(length)}",
                        expected=f"a keyword argument of the run that is {T}, {length}={T} say",
                        fix=f"run it with the length by keyword, .run(.., {length}={T}); where it "
                            "has another name: posterior.forecast(.., length='steps')")
    if kwargs.get(length) != T and (counted or told):
        raise unknown
    series, inputs = read_by(call.traced.program)
    if inputs:
        raise DataError("what is to come depends on inputs that are not known",
                        found=f"an input of the scan of shape {call.dynamic[min(inputs)].shape} "
                              "that is no data of a site", expected="its values in steps to come",
                        fix="run the program on longer arrays: inputs known, NaN where data are to "
                            "come")
    model, args, kwargs = call.rebuild([_padded(x, T, steps) if i in series else x
                                        for i, x in enumerate(call.dynamic)])
    model = given(model, beliefs, sites) if sites else model
    with ours(double=False):
        longer = {length: T + steps} if told else {}                    # else data alone tell it
        try:
            found = run(model, compiled.options, args, {**kwargs, **longer}, random.key(0), False)
        except ShapeError:
            raise unknown from None
        if found[0].graph.program.scans[0].length != T + steps:
            raise unknown
        return found


def read_by(program: Program) -> tuple[set[int], set[int]]:
    """Which arrays of a call the steps of its scan read as data of sites, and which as anything
    else: a covariate, a schedule."""
    (scan,) = program.scans
    sites = [program.sites[n] for n in scan.sites]
    values = [s.outputs["value"] for s in sites if "value" in s.outputs]
    others = [o for s in sites for k, o in s.outputs.items() if k not in ("value", "weight")]
    others += [o for s in sites if s.likelihood is not None for o in s.likelihood.leaves]

    def arrays(outputs: list[int]) -> set[int]:
        slices = [scan.xs[k] for k in program.needs(outputs) if k in scan.xs]
        return {int(k.removeprefix("data/")) for k in program.needs(slices)
                if k.startswith("data/")}

    return arrays(values), arrays([*others, *scan.carry])


def _padded(x: Any, T: int, steps: int) -> Any:
    """A series with NaN for the steps to come."""
    if np.ndim(x) == 0 or len(x) != T:
        return x
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise DataError("whole numbers have no place for what is missing",
                        found=f"a series of {x.dtype}, of {T} steps", expected="floats",
                        fix="pass it as floats, and make what is an index of the step of the carry")
    return np.concatenate([np.asarray(x), np.full((steps, *np.shape(x)[1:]), np.nan, x.dtype)])
