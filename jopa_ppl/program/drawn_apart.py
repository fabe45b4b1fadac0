"""Precisions (and probabilities) that every step of a scan draws anew: drawn all at once, before.

Such a latent is the same for its own step alone and remembers nothing, so that those of all steps
are one site outside of the scan, of which each step reads its own: `w[t]` by a counter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.program.in_time import counting, every_step
from jopa_ppl.program.program import Program, Scan, Site
from jopa_ppl.program.rewriting import Put, aligned, extended


def with_draws_apart(program: Program) -> Program:
    """The program with such latents outside of its scans."""
    for scan in program.scans:
        if chosen := [program.sites[n] for n in scan.sites if _stands_apart(program, scan, n)]:
            program = _apart(program, program.scans[scan.index], chosen)
    return program


def _stands_apart(program: Program, scan: Scan, name: str) -> bool:
    """Whether it is no state, is made of what is the same for all steps, and is not carried on."""
    site = program.sites[name]
    if site.observed or site.rules.location or site.rules.discrete or not site.rules.belief:
        return False
    steps = {f"latent/{n}" for n in scan.sites} | {f"known/{n}" for n in scan.sites}
    moving = lambda key: key in steps or key.startswith(("xs/", "carry/"))
    return (not any(map(moving, program.needs(site.parameters)))
            and f"latent/{name}" not in program.needs((*scan.carry, *scan.ys)))


def _apart(program: Program, scan: Scan, chosen: Sequence[Site]) -> Program:
    step, keys = counting(scan), [f"latent/{s.name}" for s in chosen]
    aval = dict(zip(program.inputs, program.jaxpr.in_avals))
    shapes = {k: jax.ShapeDtypeStruct((scan.length, *aval[k].shape), aval[k].dtype) for k in keys}
    shapes[step] = jax.ShapeDtypeStruct((), jnp.arange(1).dtype)

    def own(given: dict[str, Array]) -> dict[str, Array]:
        at = given[step]
        return {**given, **{k: jax.lax.dynamic_index_in_dim(given[k], at, 0, False) for k in keys}}

    def whole(_: dict[str, Array], outputs: list[Array], put: Put) -> None:
        put(step, jnp.arange(scan.length))
        for site in chosen:
            for key, i in site.outputs.items():
                steps = every_step(outputs[i], scan.length)
                put(f"{site.name} {key}", aligned(steps, site) if key == "weight" else steps)

    program, places = extended(program, shapes, whole, own)
    sites = {s.name: replace(
        s, scan=None, batch_shape=(scan.length, *s.batch_shape),
        plates=tuple(replace(p, axis=p.axis + 1) for p in s.plates),
        outputs={k: places[f"{s.name} {k}"] for k in s.outputs}) for s in chosen}
    scan = replace(scan, sites=tuple(n for n in scan.sites if n not in sites),
                   xs=scan.xs | {step: places[step]})
    return replace(program, sites={n: sites.get(n, s) for n, s in program.sites.items()},
                   scans=tuple(scan if s.index == scan.index else s for s in program.scans))
