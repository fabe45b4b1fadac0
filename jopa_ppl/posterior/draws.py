"""Joint draws from a posterior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, random

from jopa_ppl.beliefs import ChainBelief
from jopa_ppl.beliefs.gaussian import square_root
from jopa_ppl.beliefs.layout import take
from jopa_ppl.compilation import Stages, in_batches, often
from jopa_ppl.engine.complete import complete
from jopa_ppl.engine.conditional import Conditional, own_conditional
from jopa_ppl.engine.coordinates import Coordinates
from jopa_ppl.engine.engine import Engine
from jopa_ppl.engine.evidence import Evidence
from jopa_ppl.engine.forward import Smoothed, over_time, smoothed
from jopa_ppl.engine.functions import affine, means_of
from jopa_ppl.engine.marginals import chain_segments
from jopa_ppl.engine.state import State
from jopa_ppl.engine.value import fix_of, told
from jopa_ppl.linalg.factors import augment
from jopa_ppl.settings import is_traced


def sample(compiled: Stages, one: Callable, state: State, bound: Evidence, plan: Any, key: Array,
           count: int) -> dict[str, Array]:
    """`count` joint draws, {site: (count, *site shape)}; `one` makes one, as the one below."""
    def many(keys: Array, moments: dict, bound: Evidence, plan: Any) -> dict[str, Array]:
        return in_batches(lambda k: one(compiled.engine, moments, bound, plan, k), keys, 64)

    stage = compiled.stage("draws", lambda: jax.jit(many, compiler_options=often()))
    draw = many if is_traced(key) else stage
    return draw(random.split(key, count), state.moments, bound, plan)


def draw_parameters(engine: Engine, moments: dict, key: Array, bound: Evidence | None = None
                    ) -> tuple[dict, dict[str, Array]]:
    """A draw of everything but chains: q of every block, those drawn without spread, and by site
    its value in its shape.

    Latents that no observation reaches follow the draws of what they depend on; without `bound`
    the beliefs are complete already.
    """
    fixed, values = dict(moments), {}
    blocks = sorted(enumerate(engine.graph.blocks), key=lambda b: b[1].gaussian)
    for i, block in blocks:                                   # precisions first
        if block.scan is not None:
            continue
        here = fixed if bound is None else complete(engine, fixed, bound, (block,))[0]
        mask = None if bound is None else bound.clamps[block.name]
        fixed[block.name], drawn = block.draw(here[block.name], random.fold_in(key, i), mask)
        values |= drawn
    return fixed, values


def draw_sites(engine: Engine, moments: dict, bound: Evidence, plan: Any, key: Array
               ) -> dict[str, Array]:
    """One joint draw of every site, by name, in its shape (time in front inside a scan): of a
    `plan` its decisions and what they lead to."""
    shared, inside = random.split(key)
    fixed, values = draw_parameters(engine, moments, shared, bound)
    for i, block in enumerate(engine.graph.blocks):
        if block.scan is not None:
            k = random.fold_in(inside, i)
            values |= _trajectory(engine, block, fixed, bound, plan, k)
    return values


def _trajectory(engine: Engine, block: ChainBelief, fixed: dict, bound: Evidence, plan: Any,
                key: Array) -> dict[str, Array]:
    """A trajectory: from the smoother where observations reach, then by the program; a first
    state that none reaches follows the draws of what it depends on."""
    moments, bound = complete(engine, fixed, bound, (block,))
    c, (smooth, noise) = Coordinates(block), random.split(key)
    drawn, _ = block.draw(moments[block.name], smooth, bound.clamps[block.name])
    given = smoothed(engine, block, {**moments, block.name: drawn}, bound)
    plan = plan if plan is not None and plan.about(block) else None
    here = engine.at({**moments, block.name: drawn}, bound)
    nodes = _path(engine, block, fixed, plan, given, noise, c, here)
    found = {n: take(nodes, [block.node[n]], [-1]) for n in block.variables}
    found |= {n: block.site(drawn, n)[0] for n in block.head}
    return {n: engine.graph.variables[n].values(x) for n, x in found.items()}


def _path(engine: Engine, block: ChainBelief, fixed: dict, plan: Any, given: Smoothed,
          noise: Array, c: Coordinates, bound: Evidence) -> Array:
    """The steps of one draw (T, *plates, w): those given, the others by the program."""
    segments = chain_segments(engine, block, fixed, bound)
    exact = means_of(engine, block, bound, fixed)
    nodes, at = [], 0
    carry = given.state_mean[0]
    for j, (length, sites) in enumerate(segments):
        rules, own = [], []
        for (where, site), name in zip(sites, _names(engine, block)):
            fix = None
            rule = own_conditional(site, where)._replace(K=None, slots=())
            if plan is not None and name in plan.gains[j]:
                rule = Conditional(*plan.gains[j][name])
            elif plan is not None and name in plan.told[j]:
                fix = fix_of(site, *plan.told[j][name])
                rule = told(rule, fix)
            rules.append((where, (rule, fix)))
            decided = plan is not None and name in plan.gains[j]
            own.append(None if decided else exact[j].get(name))
        places = [w for w, _ in rules]
        here = jax.tree.map(lambda a, at=at, n=length: a[at:at + n], given)
        keys = random.split(random.fold_in(noise, j), length)

        def step(mean: Array, inputs: Any, places: list = places, own: list = own
                 ) -> tuple[Array, Array]:
            here, rules, (k, t) = inputs
            mean = jnp.where(here.settled, here.state_mean, mean)
            h = jnp.pad(augment(mean), [(0, 0)] * (mean.ndim - 1) + [(0, c.width)])
            for i, (where, (rule, fix), mean_at) in enumerate(zip(places, rules, own)):
                drift = affine(rule.mean, h) if mean_at is None else mean_at(t, h)
                if mean_at is not None and fix is not None:
                    drift = affine(fix[0], drift) + fix[1]
                eps = random.normal(random.fold_in(k, i), drift.shape, drift.dtype)
                spread = jnp.einsum("...nm,...m->...n", square_root(rule.cov), eps)
                node = where - (c.size - c.width)
                value = jnp.where(here.free[..., node] > 0, here.node_mean[..., node],
                                  drift + spread)      # sites after it follow from what it is
                h = h.at[..., where].set(value)
            return h[..., c.shift()[1:]], h[..., c.size - c.width:]

        # Keys must step with time even where a segment has one step.
        inputs = here, [r for _, r in rules], (keys, jnp.arange(length))
        carry, out = over_time(step, carry, inputs, length)
        nodes.append(out)
        at += length
    return jnp.concatenate(nodes)


def _names(engine: Engine, block: ChainBelief) -> list[str]:
    scan = engine.graph.program.scans[block.scan]
    return [n for n in scan.sites if n in block.variables]
