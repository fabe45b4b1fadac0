"""Programs with other inputs and outputs: what changes a program before it is proved is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
from jax import Array
from jax.extend.core import ClosedJaxpr

from jopa_ppl.program.program import Program, Scan, Site

Put = Callable[[str, Array], None]


def extended(program: Program, shapes: Mapping[str, Any],
             fn: Callable[[dict[str, Array], list[Array], Put], None],
             base: Callable[[dict[str, Array]], dict[str, Array]] = dict
             ) -> tuple[Program, dict[str, int]]:
    """The program with more outputs, and where they are, by name.

    Args:
        shapes: inputs that are new, or of another shape, {key: shape and dtype}.
        fn: given all inputs, the outputs there are, and what puts one more under a name.
        base: of all inputs, those that the outputs there are read.
    """
    closed, places = program.jaxpr, {}
    aval = dict(zip(program.inputs, closed.in_avals)) | dict(shapes)

    def collect(*flat: Array) -> list[Array]:
        given, whole = dict(zip(aval, flat)), []

        def put(name: str, array: Array) -> None:
            places[name] = len(closed.jaxpr.outvars) + len(whole)
            whole.append(array)

        outputs = program.evaluate(range(len(closed.jaxpr.outvars)), base(given))
        fn(given, outputs, put)
        return [*outputs, *whole]

    jaxpr = jax.make_jaxpr(collect)(*aval.values())
    return replace(program, inputs=tuple(aval), jaxpr=ClosedJaxpr(jaxpr.jaxpr, jaxpr.consts),
                   _picked={}, shapes={k: tuple(a.shape) for k, a in aval.items()}), places


def inside(program: Program, scan: Scan) -> set[int]:
    """The outputs that belong to the steps of a scan."""
    return {i for n in scan.sites for i in program.sites[n].everything} | {*scan.carry, *scan.ys}


def reading(program: Program, scan: Scan, values: Mapping[str, Callable[[dict], Array]],
            shapes: Mapping[str, Any]) -> tuple[Program, dict[str, int]]:
    """The program whose steps of a scan read the given inputs as functions of the others, and the
    outputs that their parameters have moved to, by the text of their old number.

    Args:
        program: that of the scan.
        values: by key of an input, what it is of all inputs by key.
        shapes: inputs that are new, or of another shape, {key: shape and dtype}.
    """
    def fn(given: dict[str, Array], _: list[Array], put: Put) -> None:
        put_steps(program, scan, {**given, **{k: value(given) for k, value in values.items()}}, put)

    wider, places = extended(program, shapes, fn)
    return with_steps_at(wider, scan, places)[0], places


def put_steps(program: Program, scan: Scan, here: dict[str, Array], put: Put) -> None:
    """Put what the steps of a scan are made of, with other inputs.

    Args:
        program: that of the scan; here: the inputs by key.
        put: called with the text of an output's number and its value.
    """
    chosen = sorted(inside(program, scan))
    for i, value in zip(chosen, program.evaluate(chosen, here)):
        put(str(i), value)


def with_steps_at(program: Program, scan: Scan, places: Mapping[str, int]) -> tuple[Program, Scan]:
    """The program whose steps of a scan are made of what `put_steps` put, and that scan."""
    at = lambda i: places.get(str(i), i)
    sites = {n: moved(s, at) if n in scan.sites else s for n, s in program.sites.items()}
    scan = replace(scan, carry=tuple(map(at, scan.carry)), ys=tuple(map(at, scan.ys)))
    scans = tuple(scan if s.index == scan.index else s for s in program.scans)
    return replace(program, sites=sites, scans=scans), scan


def aligned(steps: Array, site: Site) -> Array:
    """Of what may have fewer axes than a site, all steps (time, ..), the rest behind the site's."""
    lead = (1,) * max(0, len(site.shape) + 1 - steps.ndim)
    return steps.reshape((len(steps), *lead, *steps.shape[1:]))


def moved(site: Site, at: Callable[[int], int]) -> Site:
    """The site with its parameters at other outputs."""
    return replace(site, outputs={k: at(i) for k, i in site.outputs.items()},
                   likelihood=site.likelihood and site.likelihood.mapped(at),
                   transform=site.transform and site.transform.mapped(at))
