"""Inputs of a scan that are made of latents, read by the steps themselves.

A latent with a value for every step (drawn in a plate of time, say) that the inputs are made of
step by step becomes a site of the steps; of what is the same for all of them (a slope times time)
every step takes its part. What remains of the inputs is data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import jax
from jax import Array

from jopa_ppl.program.after_scan import TIME, counting, every_step, into_steps, one_step, value_key
from jopa_ppl.program.program import Program, Scan
from jopa_ppl.program.rewriting import Put, extended, inside, moved
from jopa_ppl.proof.analyse import analyse
from jopa_ppl.proof.dependence import Dependence, constant, variable


class Inputs(NamedTuple):
    """What a scan reads of latents: inputs by key, and latents of every step, each by what differs
    from step to step in it besides."""

    keys: Mapping[str, bool]
    latents: Mapping[str, frozenset[str]]


def with_latent_inputs(program: Program) -> Program:
    """The program with inputs of scans that are data alone, where steps can read the others."""
    for scan in program.scans:
        found = _inputs(program, scan)
        if found.keys:
            program = _read(program, program.scans[scan.index], found)
    return program


def _inputs(program: Program, scan: Scan) -> Inputs:
    made = {k: o for k, o in scan.xs.items()
            if any(key.startswith("latent/") for key in program.needs([o]))}
    if not made or any(key.startswith(("after/", "ys/")) for o in made.values()
                       for key in program.needs([o])):
        return Inputs({}, {})
    names = {n for n, s in program.sites.items()
             if s.scan is None and s.rules.location and not s.amortized and s.transform is None
             and s.shape[:1] == (scan.length,) and (s.batch_shape or s.rules.elementwise)}
    while True:
        keys = _along(program, tuple(made.values()), names, scan.length)
        fit = {n for d in keys if d is not None for n in d.names}
        params = {n: _along(program, tuple(program.sites[n].outputs.values()), names, scan.length)
                  for n in names}
        mixed = {r for o in made.values() for r in _read_by(program, (o,), names)} - fit
        kept = {n for n in fit - mixed if all(d is not None for d in params[n])}
        kept |= {m for n in kept for d in params[n] for m in d.names}
        if kept == names:
            break
        names = kept & names
    return Inputs({k: d is None or _varies(d) for k, d in zip(made, keys)},
                  {n: frozenset(k for k, d in zip(program.sites[n].outputs, params[n])
                                if _varies(d)) for n in program.sites if n in names})


def _varies(dependence: Dependence) -> bool:
    return bool(dependence.axes) and dependence.axes[0].varies


def _read_by(program: Program, outputs: tuple[int, ...], names: set[str]) -> set[str]:
    return {n for n in names if f"latent/{n}" in program.needs(outputs)}


def _along(program: Program, outputs: tuple[int, ...], names: set[str], length: int
           ) -> list[Dependence | None]:
    """How outputs depend on latents of every step; None where one mixes steps."""
    def state(key: str) -> Dependence:
        name = key.removeprefix("latent/")
        timed = key.startswith("latent/") and name in names
        return variable(name, program.shapes[key], {0: TIME}) if timed else constant(
            program.shapes[key])

    found = analyse(program.pruned(outputs)[0], [state(k) for k in program.inputs])
    fine = lambda d: not d.lost and [i for i, a in enumerate(d.axes) if a.plate == TIME
                                     ] == [0] * bool(d.names)
    return [d if fine(d) else None for d in found]


def _read(program: Program, scan: Scan, found: Inputs) -> Program:
    length, step = scan.length, counting(scan)
    aval = dict(zip(program.inputs, program.jaxpr.in_avals))
    whole = {value_key(program.sites[n]): f"ys/{scan.index}/:{n}" for n in found.latents}
    shapes = {s: aval[k] for k, s in whole.items()}
    shapes |= {k: jax.ShapeDtypeStruct(aval[k].shape[1:], aval[k].dtype) for k in whole}
    shapes[step] = jax.ShapeDtypeStruct((), jax.numpy.arange(1).dtype)
    chosen = sorted(inside(program, scan))

    def fn(given: dict[str, Array], outputs: list[Array], put: Put) -> None:
        at = given[step]
        steps = {**given, **{k: every_step(given[k], length) for k in whole}}
        series = {**given, **{k: given[s] for k, s in whole.items()}}
        here = dict(series)
        for key, varies in found.keys.items():
            (value,) = program.evaluate([scan.xs[key]], steps)
            here[key] = jax.lax.dynamic_index_in_dim(value, at if varies else 0, 0, False)
        for i, value in zip(chosen, program.evaluate(chosen, here)):
            put(str(i), value)
        for name, moving in found.latents.items():
            site = program.sites[name]
            values = program.evaluate(tuple(site.outputs.values()), steps)
            for k, x in zip(site.outputs, values):
                put(f"{name} {k}", one_step(site, x, at if k in moving else 0))
        put(step, jax.numpy.arange(length))

    base = lambda given: {**given, **{k: given[s] for k, s in whole.items()}}
    program, places = extended(program, shapes, fn, base)
    sites = {}
    for name, site in program.sites.items():
        if name in scan.sites:
            site = moved(site, lambda i: places.get(str(i), i))
        elif name in found.latents:
            site = into_steps(site, scan.index, {k: places[f"{name} {k}"] for k in site.outputs})
        sites[name] = site
    xs = {k: o for k, o in scan.xs.items() if k not in found.keys} | {step: places[step]}
    at = lambda i: places.get(str(i), i)
    scan = replace(scan, carry=tuple(map(at, scan.carry)), ys=tuple(map(at, scan.ys)), xs=xs,
                   sites=(*found.latents, *scan.sites))
    return replace(program, sites=sites, scans=tuple(
        scan if s.index == scan.index else s for s in program.scans))
