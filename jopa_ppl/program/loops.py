"""Scans that draw nothing and whose carry bends what is drawn outside: loops, not series.

An exponential smoothing of data by an unknown rate, a moving average of what an unknown mean
leaves: their steps have observed sites alone, and a carry that no belief about a chain follows. The
sites of all steps together are one site after the loop, its parameters functions of the latents
outside.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.program.carry import Reader
from jopa_ppl.program.likelihood import ByParameters
from jopa_ppl.program.program import Program, Scan, Site
from jopa_ppl.program.rewriting import Put, aligned, extended, inside, moved


def with_loops(program: Program) -> Program:
    """The program with the observed sites of such scans outside of them."""
    for scan in program.scans:
        if _is_loop(program, scan):
            program = _unrolled(program, scan)
    return program


def _is_loop(program: Program, scan: Scan) -> bool:
    """Whether nothing is drawn in it, and its carry never forgets and is no affine recursion."""
    sites = [program.sites[n] for n in scan.sites]
    if not all(s.observed and not s.partial and not s.amortized
               and isinstance(s.likelihood.tree, ByParameters) for s in sites):
        return False
    reader = Reader(program)
    data = reader.data_leaves(scan)
    if reader.order(scan, data) is not None:
        return False
    bent = (d for i, d in enumerate(reader.after_one_step(scan, data)) if i not in data)
    return any(not program.sites[r.site].observed for d in bent for r in d.names if r.is_site) or (
        any(r.is_carry for d in bent for r in d.not_affine))


def _unrolled(program: Program, scan: Scan) -> Program:
    sites, chosen = [program.sites[n] for n in scan.sites], sorted(inside(program, scan))
    aval = dict(zip(program.inputs, program.jaxpr.in_avals))
    carry = [f"carry/{scan.index}/{i}" for i in range(len(scan.carry))]
    seen = {f"known/{s.name}": s for s in sites if f"known/{s.name}" in aval}

    def run(given: dict[str, Array]) -> tuple[list[Array], dict[int, Array]]:
        """The last carry, and the outputs of all steps, time in front."""
        first, series = (program.evaluate(tuple(o), given) for o in (scan.init, scan.xs.values()))

        def step(now: list[Array], xs: dict[str, Array]) -> tuple[list[Array], dict[int, Array]]:
            here = {**given, **xs, **dict(zip(carry, now))}
            values = program.evaluate([s.outputs["value"] for s in seen.values()], here)
            found = dict(zip(chosen, program.evaluate(chosen, here | dict(zip(seen, values)))))
            return [found[i].astype(x.dtype) for i, x in zip(scan.carry, now)], found

        first = [x.astype(aval[k].dtype) for k, x in zip(carry, first)]
        return jax.lax.scan(step, first, dict(zip(scan.xs, series)), scan.length)

    def before(given: dict[str, Array]) -> dict[str, Array]:
        last, found = run(given)
        steps = {k: jnp.zeros(aval[k].shape, aval[k].dtype) for k in seen}
        after = {f"after/{scan.index}/{i}": x for i, x in enumerate(last)}
        return {**given, **steps, **after,
                **{f"ys/{scan.index}/{i}": found[o] for i, o in enumerate(scan.ys)}}

    def all_steps(given: dict[str, Array], _: list[Array], put: Put) -> None:
        _, found = run(given)
        for site in sites:
            small = {*site.likelihood.leaves, site.outputs.get("weight")}
            for i in inside(program, replace(scan, sites=(site.name,), carry=(), ys=())):
                put(f"{site.name} {i}", aligned(found[i], site) if i in small else found[i])

    shapes = {k: jax.ShapeDtypeStruct((scan.length, *aval[k].shape), aval[k].dtype) for k in seen}
    program, places = extended(program, shapes, all_steps, before)
    whole = {s.name: _whole(s, scan.length, places) for s in sites}
    rest = Scan(scan.index, scan.length, (), (), {}, ())
    return replace(program, sites={n: whole.get(n, s) for n, s in program.sites.items()},
                   scans=tuple(rest if s.index == scan.index else s for s in program.scans))


def _whole(site: Site, length: int, places: dict[str, int]) -> Site:
    """The sites of all steps as one, an axis of time in front."""
    plates = tuple(replace(p, axis=p.axis + 1) for p in site.plates)
    return replace(moved(site, lambda i: places[f"{site.name} {i}"]), scan=None, plates=plates,
                   batch_shape=(length, *site.batch_shape))
