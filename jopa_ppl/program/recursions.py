"""Carries that are more than the last few values of sites: deterministic recursions.

A leaf of a carry that never forgets its first value (a level that adds up shocks, a companion form,
a position that integrates a velocity), or that keeps many past values, becomes a latent of its step
that follows from the step with certainty, of the family "recursion":

    d_t = f(d_{t-1}, the sites drawn in step t),    f affine.

To all else it is a site like another, that the next step looks back to; the belief about its chain
solves for what is drawn and lets it follow (`jopa_ppl.beliefs.recursion`).
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr

from jopa_ppl.program.carry import Reader
from jopa_ppl.program.program import Plate, Program, Scan, Site


def with_recursions(program: Program) -> Program:
    """The program with a latent for every leaf of a carry that is not the value of a site."""
    reader = Reader(program)
    leaves = {}
    for scan in program.scans:
        data = reader.data_leaves(scan)
        if reader.order(scan, data) is None:
            leaves |= {f"carry/{scan.index}/{i}": _site(program, scan, i, plates)
                       for i, plates in enumerate(reader.axes_of_leaves(scan, data))
                       if i not in data and program.is_real(f"carry/{scan.index}/{i}")}
    return _with_sites(program, leaves) if leaves else program


def _site(program: Program, scan: Scan, leaf: int, plates: dict[int, str]) -> Site:
    shape = program.shapes[f"carry/{scan.index}/{leaf}"]
    label = "carry" if len(program.scans) == 1 else f"carry{scan.index}"
    return Site(f"{label}.{leaf}", "recursion", False, scan.index, shape, (),
                tuple(Plate(p, axis, shape[axis]) for axis, p in sorted(plates.items())),
                {"loc": scan.carry[leaf]}, role="carry", described="a recursion")


def _with_sites(program: Program, leaves: dict[str, Site]) -> Program:
    closed, values = program.jaxpr, {}
    aval = dict(zip(program.inputs, closed.in_avals))
    for key, site in leaves.items():
        values[key] = f"latent/{site.name}"
        aval[values[key]] = jax.ShapeDtypeStruct(site.shape, aval[key].dtype)
    places: dict[str, dict[str, int]] = {}

    def collect(*flat: Array) -> list[Array]:
        given = dict(zip(aval, flat))
        outputs = program.evaluate(range(len(closed.jaxpr.outvars)), given)
        for key, value in values.items():
            places[key] = {"carry": len(outputs), "scale": len(outputs) + 1}
            outputs += [given[value], jnp.ones(aval[key].shape, aval[key].dtype)]
        return outputs

    jaxpr = jax.make_jaxpr(collect)(*aval.values())
    sites = {s.name: replace(s, outputs={**s.outputs, "scale": places[k]["scale"]})
             for k, s in leaves.items()}
    scans = tuple(replace(
        scan, sites=(*scan.sites, *(s.name for s in leaves.values() if s.scan == scan.index)),
        carry=tuple(places[k]["carry"] if (k := f"carry/{scan.index}/{i}") in places else output
                    for i, output in enumerate(scan.carry))) for scan in program.scans)
    return replace(program, sites={**program.sites, **sites}, scans=scans, inputs=tuple(aval),
                   jaxpr=ClosedJaxpr(jaxpr.jaxpr, jaxpr.consts), _picked={},
                   shapes={k: tuple(a.shape) for k, a in aval.items()})
