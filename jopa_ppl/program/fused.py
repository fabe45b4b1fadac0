"""Scans that read, step by step, what another scan stacked up: one scan that does both.

The steps of the second follow those of the first; its carry stands behind that of the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.program.in_time import along, at_step, counting, every_step, value_key, varies
from jopa_ppl.program.program import Program, Scan, Site
from jopa_ppl.program.rewriting import Put, extended, put_steps, with_steps_at


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
        found = along(program, tuple(made.values()), lambda k, own=f"ys/{first.index}/": (
            k if k.startswith(own) else ""))
        alike = all(d is not None and d.names for d in found)
        if first.length == second.length and first.index < second.index and alike:
            yield first, second, {k: varies(d) for k, d in zip(made, found)}


def _fused(program: Program, first: Scan, second: Scan, made: dict[str, bool]) -> Program:
    step, length = counting(first), first.length
    aval = dict(zip(program.inputs, program.jaxpr.in_avals))

    def fn(given: dict[str, Array], outputs: list[Array], put: Put) -> None:
        stacked = {f"ys/{first.index}/{i}": outputs[o] for i, o in enumerate(first.ys)}
        stacked |= {k: given[value_key(program.sites[name])] for k in aval
                    if (name := k.removeprefix(f"ys/{first.index}/:")) in program.sites}
        steps = {**given, **{k: every_step(x, length) for k, x in stacked.items()}}
        put_steps(program, second, given | at_step(program, second, made, steps, given[step]), put)
        put(step, jnp.arange(length))

    shapes = {step: jax.ShapeDtypeStruct((), jnp.arange(1).dtype)}
    wider, places = extended(program, shapes, fn)
    joined, second = with_steps_at(wider, second, places)
    one = replace(
        first, sites=(*first.sites, *second.sites), init=(*first.init, *second.init),
        carry=(*first.carry, *second.carry), ys=(*first.ys, *second.ys),
        leaves=(*first.leaves, *(f"then.{n}" for n in second.leaves)),
        xs=first.xs | {k: o for k, o in second.xs.items() if k not in made} | {step: places[step]})
    return renumbered(joined, one, second)


def renumbered(program: Program, one: Scan, second: Scan) -> Program:
    """The program with `one` in the place of its first part, and without the second."""
    counts = {"carry": len(one.carry) - len(second.carry), "ys": len(one.ys) - len(second.ys)}
    counts["after"] = counts["carry"]
    index = {s.index: s.index - (s.index > second.index) for s in program.scans}
    index[second.index] = index[one.index]
    then = "then."
    while any(k.startswith(f"xs/{one.index}/{then}") for k in program.inputs):
        then = f"then.{then}"           # the first part was two before

    def key(text: str) -> str:
        kind, _, rest = text.partition("/")
        if kind not in (*counts, "xs"):
            return text
        scan, _, leaf = rest.partition("/")
        if int(scan) == second.index:
            leaf = (str(int(leaf) + counts[kind]) if kind in counts and leaf.isdigit()
                    else f"{then}{leaf}" if kind == "xs" else leaf)
        return f"{kind}/{index[int(scan)]}/{leaf}"

    def site(s: Site) -> Site:
        return s if s.scan is None else replace(s, scan=index[s.scan])

    scans = [one if s.index == one.index else s for s in program.scans if s.index != second.index]
    scans = tuple(replace(s, index=index[s.index], xs={key(k): o for k, o in s.xs.items()})
                  for s in scans)
    return replace(program, sites={n: site(s) for n, s in program.sites.items()}, scans=scans,
                   inputs=tuple(map(key, program.inputs)), _picked={},
                   shapes={key(k): s for k, s in program.shapes.items()})
