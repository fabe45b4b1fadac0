"""Marginal beliefs of every latent site, predicted ones included."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.beliefs import ChainBelief
from jopa_ppl.compilation import Stages, once
from jopa_ppl.engine.complete import complete
from jopa_ppl.engine.conditional import own_conditional
from jopa_ppl.engine.coordinates import Coordinates
from jopa_ppl.engine.engine import Engine
from jopa_ppl.engine.evidence import Evidence
from jopa_ppl.engine.forward import roll, smoothed, walk
from jopa_ppl.engine.functions import affine, means_of
from jopa_ppl.engine.state import State
from jopa_ppl.engine.steps import SiteMap, mixture, site_map
from jopa_ppl.graph.factor import Factor, Graph
from jopa_ppl.program.refs import Ref


class Marginal(NamedTuple):
    """Belief about one site: its mean and variance (site shape), and the parameters of its
    distribution, of which `Belief.distribution` makes it."""

    family: str
    mean: Array
    variance: Array
    parts: dict[str, Array]


def marginals(graph: Graph, shaped: dict) -> dict[str, Marginal]:
    """Marginals of all latent sites, from what `parts` found."""
    return {name: Marginal(v.family, *shaped[name])
            for name, v in graph.variables.items()}


def compiled_parts(compiled: Stages, state: State, bound: Evidence, plan: Any) -> tuple[dict, dict]:
    """`parts` of a run that did not return them, compiled once per program.

    Args:
        compiled: the program; state, bound: of the run.
        plan: the plan that it came to, or None.
    """
    stage = compiled.stage("marginals", lambda: jax.jit(partial(parts, compiled.engine),
                                                        compiler_options=once()))
    return stage(state.moments, bound, plan)


def parts(engine: Engine, moments: dict, bound: Evidence, plan: Any) -> tuple[dict, dict]:
    """The marginals of all latents, predicted ones included.

    Returns:
        By site its belief's `parts`, with axes (T,) * plates in front (of a Gaussian mean (.., n)
        and cov (.., n, n)); and by site what `Belief.shaped` makes of them: mean and variance in
        the site's shape, and what its distribution is made of.
    """
    found = _arrays(engine, moments, bound, plan)
    return found, in_shape(engine.graph, found)


def in_shape(graph: Graph, arrays: dict) -> dict[str, tuple]:
    """By site, what `Belief.shaped` makes of the arrays of its marginal."""
    return {name: graph.block_of(name).shaped(name, arrays[name]) for name in graph.variables}


def _arrays(engine: Engine, moments: dict, bound: Evidence, plan: Any
            ) -> dict[str, dict[str, Array]]:
    found: dict[str, dict[str, Array]] = {}
    moments, bound = complete(engine, moments, bound)
    for block in engine.graph.blocks:
        steps = None
        if block.scan is not None:
            planned = plan is not None and plan.about(block)
            steps = ((plan.mean, plan.cov) if planned
                     else forward(engine, block, moments, bound))
        found |= block.marginal(moments[block.name], steps)
    return found


def chain_segments(engine: Engine, block: ChainBelief, moments: dict, bound: Evidence) -> list:
    """The latent sites of every step of a chain, by segment.

    Args:
        engine: of the program; block: a chain of it.
        moments, bound: beliefs by block, and the numbers of the run.

    Returns:
        (number of steps, [(places in h (n,), map)]) for every segment, sites in program order.
    """
    c = Coordinates(block)
    scan = engine.graph.program.scans[block.scan]
    out = []
    for segment in engine.graph.reader.segments(scan):
        here = {f.site.name: f for f in engine.graph.factors if f.segment == segment}
        sites = [(c.of(Ref(n, 0)), _map_of(engine, c, here[n], bound, moments))
                 for n in scan.sites if n in block.variables]
        out.append((segment.length, sites))
    return out


def _map_of(engine: Engine, c: Coordinates, factor: Factor, bound: Evidence, moments: dict
            ) -> SiteMap:
    """The map of a site, of all copies of its factor where a discrete latent chooses between them.
    """
    if not factor.copies:
        return site_map(engine, c, factor, bound, moments)
    stats, maps, shares = engine.stats(moments, bound.clamps), [], []
    for i, chosen in enumerate(factor.copies):
        copy, arrays = factor.copy(chosen), bound.arrays[factor.name].of_copy(i)
        here = bound._replace(arrays={**bound.arrays, factor.name: arrays})
        maps.append(site_map(engine, c, copy, here, moments))
        one = arrays._replace(weight=jnp.ones((1,) * (1 + len(factor.plates) + 1)))
        shares.append(engine.energy.shared(copy, one, stats).weight[..., 0])
    return mixture(maps, shares)


def forward(engine: Engine, block: ChainBelief, moments: dict, bound: Evidence
            ) -> tuple[Array, Array]:
    """Smoothed moments of the sites of every step, predicted ones where no observation reaches."""
    c, start = Coordinates(block), smoothed(engine, block, moments, bound)
    bound = at_own_path(engine, block, moments, bound)
    segments = [(n, [(w, own_conditional(s, w)) for w, s in sites])
                for n, sites in chain_segments(engine, block, moments, bound)]
    return roll(start, segments, c)


def at_own_path(engine: Engine, block: ChainBelief, moments: dict, bound: Evidence) -> Evidence:
    """The evidence with what is not affine linearised where the chain is: at its smoothed means,
    and ahead of what is seen at those that follow by the program's own functions.

    Args:
        engine, block, moments, bound: as in `chain_segments`.
    """
    exact = means_of(engine, block, bound, moments)
    if not any(exact):
        return bound
    scan, c = engine.graph.program.scans[block.scan], Coordinates(block)
    names = [n for n in scan.sites if n in block.variables]
    segments = []
    for (steps, sites), own in zip(
            chain_segments(engine, block, moments, engine.at(moments, bound)), exact):
        segments.append((steps, [
            (where, jnp.arange(steps), own[name]) if name in own
            else (where, own_conditional(site, where).mean, affine)
            for name, (where, site) in zip(names, sites)]))
    path = walk(smoothed(engine, block, moments, bound), segments, c)
    stats = engine.stats(moments, bound.clamps)[block.name]
    means = block.with_means(stats, path[..., c.size - c.width:])
    return engine.at(moments, bound, **{block.name: means})
