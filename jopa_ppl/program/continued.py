"""Scans that begin where another one ended: one scan whose steps are first those, then these.

Every site keeps the steps that it stands in, its `window`. Before and after them it is no part of
the program: data weigh nothing there, and latents are neither inferred (`engine.reach`) nor shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.errors import names
from jopa_ppl.program.fused import renumbered
from jopa_ppl.program.program import Program, Scan, Site, Window
from jopa_ppl.program.rewriting import Put, extended


def with_continued_scans(program: Program) -> Program:
    """The program with one scan for every two of which the second goes on with the first."""
    while (pair := next(_pairs(program), None)) is not None:
        program = _continued(program, *pair)
    return program


def obstacles(program: Program) -> list[str]:
    """Why scans that begin where another one ended do not go on with it, in words."""
    found = [_obstacle(program, *pair) for pair in _begun(program)]
    return list(dict.fromkeys(why for why in found if why))


def _pairs(program: Program) -> Iterator[tuple[Scan, Scan]]:
    return (pair for pair in _begun(program) if not _obstacle(program, *pair))


def _begun(program: Program) -> Iterator[tuple[Scan, Scan]]:
    """Scans, and those that begin at their ends."""
    for second in program.scans:
        begun = {k for k in program.needs(second.init) if k.startswith(("after/", "ys/"))}
        sources = {int(k.split("/")[1]) for k in begun}
        if len(sources) == 1 and not any(k.startswith("ys/") for k in begun):
            yield program.scans[sources.pop()], second


def _obstacle(program: Program, first: Scan, second: Scan) -> str:
    """Why the second does not go on with the first; empty where it does."""
    inside = [i for s in program.sites.values() for i in s.everything]
    inside += [i for s in program.scans for i in (*s.xs.values(), *s.carry, *s.ys)]
    begins = [i for s in program.scans if s.index != second.index for i in s.init]
    # A third may begin at the end of both; of the first alone there would be nothing left.
    if _reads(program, [*inside, *begins], first) or _reads(program, inside, second):
        return ("a scan that begins where another one ended, and something else that reads what "
                "one of them returned")
    sites = [program.sites[n] for s in (first, second) for n in s.sites]
    if others := [s.name for s in sites if not _continues(s)]:
        return (f"a scan that begins where another one ended, with sites in one of them that are "
                f"neither data nor Gaussian latents unknown at every step: {names(others)}")
    return ""


def _reads(program: Program, outputs: Sequence[int], scan: Scan) -> bool:
    """Whether outputs depend on what a scan returns."""
    returned = f"after/{scan.index}/", f"ys/{scan.index}/"
    return any(k.startswith(returned) for k in program.needs(outputs))


def _continues(site: Site) -> bool:
    """Whether it may stand in some steps of a scan alone: data, and Gaussians."""
    return not site.partial and not site.amortized and (
        site.observed or bool(site.rules.location))


def _continued(program: Program, first: Scan, second: Scan) -> Program:
    step, own = f"xs/{first.index}/#joined", {first.index: 0, second.index: first.length}
    length = first.length + second.length

    def fn(given: dict[str, Array], outputs: list[Array], put: Put) -> None:
        before = given[step] < first.length
        last = {f"after/{first.index}/{i}": outputs[o] for i, o in enumerate(first.carry)}
        begun = program.evaluate(second.init, {**given, **last})
        for i, o in enumerate(first.carry):
            put(f"first {i}", jnp.where(before, outputs[o], jnp.zeros_like(outputs[o])))
        for i, (o, begins) in enumerate(zip(second.carry, begun)):
            put(f"second {i}", jnp.where(before, begins, outputs[o]).astype(outputs[o].dtype))
            put(f"unused {i}", jnp.zeros_like(outputs[o]))
        for scan in (first, second):
            ends = (0, second.length) if scan is first else (first.length, 0)
            for key, o in scan.xs.items():
                put(key, jnp.pad(outputs[o], [ends, *[(0, 0)] * (outputs[o].ndim - 1)], "edge"))
        put(step, jnp.arange(length))

    shapes = {step: jax.ShapeDtypeStruct((), jnp.arange(1).dtype)}
    program, places = extended(program, shapes, fn)
    sites = {n: _in_window(s, own, program, length) if s.scan in own else s
             for n, s in program.sites.items()}
    xs = {k: places[k] for s in (first, second) for k in s.xs}
    carry = lambda scan, what: tuple(places[f"{what} {i}"] for i in range(len(scan.carry)))
    second = replace(second, init=carry(second, "unused"), carry=carry(second, "second"))
    one = replace(
        first, length=length, sites=(*first.sites, *second.sites), xs=xs | {step: places[step]},
        init=(*first.init, *second.init), carry=(*carry(first, "first"), *second.carry),
        ys=(*first.ys, *second.ys), leaves=(*first.leaves, *(f"then.{n}" for n in second.leaves)))
    return renumbered(replace(program, sites=sites), one, second)


def _in_window(site: Site, own: dict[int, int], program: Program, whole: int) -> Site:
    start, length, _ = site.window or (0, program.scans[site.scan].length, 0)
    return replace(site, window=Window(own[site.scan] + start, length, whole))
