"""Sites outside a scan that see what it returned: they are sites of its steps, written elsewhere.

A Gaussian site whose parameters depend on the stacked outputs of a scan element by element in time
(proved from the jaxpr, time as if it were a plate) belongs to every step; an observed one that
depends on the last carry belongs to the last step. `inline` moves both into the scan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.program.in_time import (
    along,
    counting,
    every_step,
    into_steps,
    one_step,
    value_key,
    varies,
)
from jopa_ppl.program.likelihood import ByParameters
from jopa_ppl.program.program import Program, Site
from jopa_ppl.program.rewriting import Put, extended


class Home(NamedTuple):
    """The scan a site belongs to: to every step, or to its last one.

    `moving`: parameters that data make differ from step to step.
    """

    scan: int
    last: bool
    moving: frozenset[str]


def inline(program: Program) -> Program:
    """The program with every site that belongs to the steps of a scan moved into it."""
    homes = _homes(program)
    if not homes:
        return program
    aval = dict(zip(program.inputs, program.jaxpr.in_avals))
    # A value that is one a step inside the scan is the whole series to statements outside of it.
    series, shapes = {}, {}
    for name, home in homes.items():
        key = value_key(program.sites[name])
        if not home.last and key in aval:
            series[key], whole = f"ys/{home.scan}/:{name}", aval[key]
            shapes |= {series[key]: whole,
                       key: jax.ShapeDtypeStruct(whole.shape[1:], whole.dtype)}
    steps = {home.scan: counting(program.scans[home.scan]) for home in homes.values()}
    shapes |= dict.fromkeys(steps.values(), jax.ShapeDtypeStruct((), jnp.arange(1).dtype))

    def fn(given: dict[str, Array], outputs: list[Array], put: Put) -> None:
        inside = dict(given)
        for scan in program.scans:
            for i, o in enumerate(scan.ys):
                inside[f"ys/{scan.index}/{i}"] = every_step(outputs[o], scan.length)
            inside |= {f"after/{scan.index}/{i}": outputs[o] for i, o in enumerate(scan.carry)}
        for key in program.inputs:           # of sites that became one of the steps before
            if key.startswith("ys/") and (name := key.partition("/:")[2]):
                own = given[value_key(program.sites[name])]
                inside[key] = every_step(own, program.scans[program.sites[name].scan].length)
        for key in series:
            inside[key] = every_step(given[key], aval[key].shape[0])
        for name, home in homes.items():
            site = program.sites[name]
            own = _parameters(site)
            found = dict(zip(own, program.evaluate(tuple(own.values()), inside)))
            at = given[steps[home.scan]]
            found = (_last(site, found, at == program.scans[home.scan].length - 1) if home.last
                     else {k: one_step(site, x, at if k in home.moving else 0)
                           for k, x in found.items()})
            made[name] = tuple(found)
            for k, x in found.items():
                put(f"{name} {k}", x)
        for index, key in steps.items():
            put(key, jnp.arange(program.scans[index].length))

    made: dict[str, tuple[str, ...]] = {}           # by site, its parameters in the steps
    program, places = extended(program, shapes, fn,
                               lambda given: {**given, **{k: given[s] for k, s in series.items()}})
    sites = {n: _moved(s, homes[n], {k: places[f"{n} {k}"] for k in made[n]}) if n in homes else s
             for n, s in program.sites.items()}
    scans = tuple(replace(s, sites=(*s.sites, *(n for n, h in homes.items() if h.scan == s.index)),
                          xs=s.xs | ({steps[s.index]: places[steps[s.index]]}
                                     if s.index in steps else {}))
                  for s in program.scans)
    return replace(program, sites=sites, scans=scans)


def _last(site: Site, parameters: Mapping[str, Array], now: Array) -> dict[str, Array]:
    """The parameters of a site that counts at the last step alone."""
    weight = parameters.get("weight", jnp.ones((1,) * len(site.shape)))
    return {**parameters, "weight": jnp.where(now, weight, 0.0)}


def _scored(site: Site) -> bool:
    """Whether it is data of independent elements, scored by their parameters."""
    return (site.observed and not site.rules.location and site.likelihood is not None
            and isinstance(site.likelihood.tree, ByParameters))


def _parameters(site: Site) -> dict[str, int]:
    """Outputs that it is made of, with those that it is scored by."""
    if not _scored(site):
        return site.outputs
    return site.outputs | {f"score {i}": o for i, o in enumerate(site.likelihood.outputs)}


def _moved(site: Site, home: Home, outputs: dict[str, int]) -> Site:
    if home.last:
        return replace(site, scan=home.scan, outside="last", outputs=outputs, likelihood=None)
    score = [o for k, o in outputs.items() if k.startswith("score ")]
    moved = into_steps(site, home.scan, {k: outputs[k] for k in site.outputs})
    return moved if not score else replace(moved, likelihood=site.likelihood._replace(
        leaves=tuple(score[:-1]), value=score[-1]))


def _homes(program: Program) -> dict[str, Home]:
    """Where the sites outside scans belong that see what a scan returned, so far as provable."""
    found: dict[str, Home] = {}
    for site in program.sites.values():
        if site.scan is not None or site.amortized or not (site.rules.location or _scored(site)):
            continue
        needs = program.needs(tuple(_parameters(site).values()))
        last = {int(k.split("/")[1]) for k in needs if k.startswith("after/")}
        steps = {int(k.split("/")[1]) for k in needs if k.startswith("ys/")}
        steps |= {h.scan for n, h in found.items()
                  if not h.last and value_key(program.sites[n]) in needs}
        if len(last | steps) != 1 or (last and steps):
            continue
        (scan,) = last | steps
        if last and site.observed and not site.partial and not _scored(site):
            found[site.name] = Home(scan, True, frozenset())
        elif steps and (moving := _moving(program, site, scan, found)) is not None:
            found[site.name] = Home(scan, False, moving)
    return found


def _moving(program: Program, site: Site, scan: int, homes: Mapping[str, Home]
            ) -> frozenset[str] | None:
    """Parameters that differ from step to step by data; None if it mixes steps."""
    length = program.scans[scan].length
    if site.shape[:1] != (length,) or not (site.batch_shape or site.rules.elementwise):
        return None
    timed = {value_key(program.sites[n]) for n, h in homes.items() if not h.last}

    own = _parameters(site)
    found = along(program, tuple(own.values()),
                  lambda key: key if key.startswith("ys/") or key in timed else "")
    if None in found:
        return None
    return frozenset(key for key, dependence in zip(own, found) if varies(dependence))
