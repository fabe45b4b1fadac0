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

from jopa_ppl.program.in_time import (
    along,
    at_step,
    counting,
    every_step,
    into_steps,
    one_step,
    value_key,
    varies,
)
from jopa_ppl.program.program import Program, Scan
from jopa_ppl.program.rewriting import Put, extended, put_steps, with_steps_at
from jopa_ppl.proof.dependence import Dependence


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
    return Inputs({k: d is None or varies(d) for k, d in zip(made, keys)},
                  {n: frozenset(k for k, d in zip(program.sites[n].outputs, params[n])
                                if varies(d)) for n in program.sites if n in names})


def _read_by(program: Program, outputs: tuple[int, ...], names: set[str]) -> set[str]:
    return {n for n in names if f"latent/{n}" in program.needs(outputs)}


def _along(program: Program, outputs: tuple[int, ...], names: set[str], length: int
           ) -> list[Dependence | None]:
    """How outputs depend on latents of every step; None where one mixes steps."""
    def series(key: str) -> str:
        kind, _, name = key.partition("/")
        return name if kind == "latent" and name in names else ""

    return along(program, outputs, series)


def _read(program: Program, scan: Scan, found: Inputs) -> Program:
    length, step = scan.length, counting(scan)
    aval = dict(zip(program.inputs, program.jaxpr.in_avals))
    whole = {value_key(program.sites[n]): f"ys/{scan.index}/:{n}" for n in found.latents}
    shapes = {s: aval[k] for k, s in whole.items()}
    shapes |= {k: jax.ShapeDtypeStruct(aval[k].shape[1:], aval[k].dtype) for k in whole}
    shapes[step] = jax.ShapeDtypeStruct((), jax.numpy.arange(1).dtype)

    def fn(given: dict[str, Array], outputs: list[Array], put: Put) -> None:
        at = given[step]
        steps = {**given, **{k: every_step(given[k], length) for k in whole}}
        series = {**given, **{k: given[s] for k, s in whole.items()}}
        put_steps(program, scan, series | at_step(program, scan, found.keys, steps, at), put)
        for name, moving in found.latents.items():
            site = program.sites[name]
            values = program.evaluate(tuple(site.outputs.values()), steps)
            for k, x in zip(site.outputs, values):
                put(f"{name} {k}", one_step(site, x, at if k in moving else 0))
        put(step, jax.numpy.arange(length))

    base = lambda given: {**given, **{k: given[s] for k, s in whole.items()}}
    wider, places = extended(program, shapes, fn, base)
    program, scan = with_steps_at(wider, scan, places)
    sites = {n: into_steps(s, scan.index, {k: places[f"{n} {k}"] for k in s.outputs})
             if n in found.latents else s for n, s in program.sites.items()}
    xs = {k: o for k, o in scan.xs.items() if k not in found.keys} | {step: places[step]}
    scan = replace(scan, xs=xs, sites=(*found.latents, *scan.sites))
    return replace(program, sites=sites, scans=tuple(
        scan if s.index == scan.index else s for s in program.scans))
