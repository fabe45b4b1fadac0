"""Scans that read, step by step, what another scan stacked up: one scan that does both.

The steps of the second follow those of the first; its carry stands behind that of the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.program.after_scan import TIME, counting, every_step, value_key
from jopa_ppl.program.program import Program, Scan, Site
from jopa_ppl.program.rewriting import Put, extended, inside, moved
from jopa_ppl.proof.analyse import analyse
from jopa_ppl.proof.dependence import constant, variable


def with_fused_scans(program: Program) -> Program:
    """The program with one scan for every two that run side by side."""
    while (pair := next(_pairs(program), None)) is not None:
        program = _fused(program, *pair)
    return program


def _pairs(program: Program) -> Iterator[tuple[Scan, Scan, dict[str, bool]]]:
    """(first, second, inputs of the second made of what the first stacked up, each by whether data
    make it differ from step to step besides)."""
    for second in program.scans:
        made = {k: o for k, o in second.xs.items()
                if any(x.startswith("ys/") for x in program.needs([o]))}
        sources = {int(x.split("/")[1]) for o in made.values() for x in program.needs([o])
                   if x.startswith(("ys/", "after/"))}
        begun = {int(x.split("/")[1]) for x in program.needs(second.init)
                 if x.startswith(("ys/", "after/"))}
        if len(sources) != 1 or begun:
            continue
        first = program.scans[min(sources)]
        outputs = tuple(made.values())
        states = [variable(k, program.shapes[k], {0: TIME}) if k.startswith(f"ys/{first.index}/")
                  else constant(program.shapes[k]) for k in program.inputs]
        found = analyse(program.pruned(outputs)[0], states)
        alike = all(not d.lost and [i for i, a in enumerate(d.axes) if a.plate == TIME] == [0]
                    for d in found)
        if first.length == second.length and first.index < second.index and alike:
            yield first, second, {k: d.axes[0].varies for k, d in zip(made, found)}


def _fused(program: Program, first: Scan, second: Scan, made: dict[str, bool]) -> Program:
    step, length = counting(first), first.length
    aval = dict(zip(program.inputs, program.jaxpr.in_avals))
    chosen = sorted(inside(program, second))

    def fn(given: dict[str, Array], outputs: list[Array], put: Put) -> None:
        stacked = {f"ys/{first.index}/{i}": outputs[o] for i, o in enumerate(first.ys)}
        stacked |= {k: given[value_key(program.sites[name])] for k in aval
                    if (name := k.removeprefix(f"ys/{first.index}/:")) in program.sites}
        steps = {**given, **{k: every_step(x, length) for k, x in stacked.items()}}
        here = dict(given)
        for key, varies in made.items():
            (value,) = program.evaluate([second.xs[key]], steps)
            here[key] = jax.lax.dynamic_index_in_dim(value, given[step] if varies else 0, 0, False)
        for i, value in zip(chosen, program.evaluate(chosen, here)):
            put(str(i), value)
        put(step, jnp.arange(length))

    shapes = {step: jax.ShapeDtypeStruct((), jnp.arange(1).dtype)}
    program, places = extended(program, shapes, fn)
    at = lambda i: places.get(str(i), i)
    one = replace(
        first, sites=(*first.sites, *second.sites), init=(*first.init, *second.init),
        carry=(*first.carry, *map(at, second.carry)), ys=(*first.ys, *map(at, second.ys)),
        leaves=(*first.leaves, *(f"then.{n}" for n in second.leaves)),
        xs=first.xs | {k: o for k, o in second.xs.items() if k not in made} | {step: places[step]})
    sites = {n: moved(s, at) if n in second.sites else s for n, s in program.sites.items()}
    return _renumbered(replace(program, sites=sites), one, second)


def _renumbered(program: Program, one: Scan, second: Scan) -> Program:
    """The program with `one` in the place of its first part, and without the second."""
    counts = {"carry": len(one.carry) - len(second.carry), "ys": len(one.ys) - len(second.ys)}
    counts["after"] = counts["carry"]
    index = {s.index: s.index - (s.index > second.index) for s in program.scans}
    index[second.index] = index[one.index]

    def key(text: str) -> str:
        kind, _, rest = text.partition("/")
        if kind not in (*counts, "xs"):
            return text
        scan, _, leaf = rest.partition("/")
        if int(scan) == second.index:
            leaf = (str(int(leaf) + counts[kind]) if kind in counts and leaf.isdigit()
                    else f"then.{leaf}" if kind == "xs" else leaf)
        return f"{kind}/{index[int(scan)]}/{leaf}"

    def site(s: Site) -> Site:
        return s if s.scan is None else replace(s, scan=index[s.scan])

    scans = [one if s.index == one.index else s for s in program.scans if s.index != second.index]
    scans = tuple(replace(s, index=index[s.index], xs={key(k): o for k, o in s.xs.items()})
                  for s in scans)
    return replace(program, sites={n: site(s) for n, s in program.sites.items()}, scans=scans,
                   inputs=tuple(map(key, program.inputs)), _picked={},
                   shapes={key(k): s for k, s in program.shapes.items()})
