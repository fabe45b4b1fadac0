"""Joint draws from a posterior."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array, random

from jopa_ppl.compilation import in_batches, often
from jopa_ppl.engine.complete import complete
from jopa_ppl.engine.engine import Bound, Engine, State
from jopa_ppl.engine.forward import Follow, nature, over_time, settled
from jopa_ppl.engine.layout import join
from jopa_ppl.engine.marginals import chain_segments
from jopa_ppl.engine.steps import Coordinates
from jopa_ppl.engine.value import told
from jopa_ppl.linalg import chain, elimination
from jopa_ppl.linalg.factors import augment
from jopa_ppl.linalg.families import Gamma, Gaussian, Wishart
from jopa_ppl.settings import is_traced


def sample(compiled: Any, state: State, bound: Bound, plan: Any, key: Array, count: int
           ) -> dict[str, Array]:
    """`count` joint draws, {site: (count, *site shape)}."""
    if not hasattr(compiled, "draw"):
        def draw(keys: Array, moments: dict, bound: Bound, plan: Any) -> dict[str, Array]:
            return in_batches(lambda k: one(compiled.engine, moments, bound, plan, k), keys, 64)
        compiled.draw = jax.jit(draw, compiler_options=often())
    draw = compiled.draw.__wrapped__ if is_traced(key) else compiled.draw
    return draw(random.split(key, count), state.moments, bound, plan)


def point(engine: Engine, moments: dict, key: Array, bound: Bound | None = None
          ) -> tuple[dict, dict[str, Array]]:
    """A draw of everything but chains: as beliefs without spread, and as site values.

    Latents that no observation reaches follow the draws of what they depend on; without `bound`
    the beliefs are complete already.
    """
    fixed, values = dict(moments), {}
    blocks = sorted(enumerate(engine.graph.blocks), key=lambda b: b[1].is_gaussian)
    for i, block in blocks:                                   # precisions first
        here = fixed if bound is None else complete(engine, fixed, bound, (block,))[0]
        m, k = here[block.name], random.fold_in(key, i)
        if block.kind == "gamma":
            t = random.gamma(k, m.a) / m.b
            fixed[block.name] = Gamma(t, jnp.log(t), jnp.full_like(m.a, -1.0), m.b)
            values[block.name] = t
        elif block.kind == "wishart":
            W = dist.Wishart(m.dof, rate_matrix=m.rate, validate_args=False).sample(k)
            logdet = jnp.linalg.slogdet(W)[1]
            fixed[block.name] = Wishart(W, logdet, jnp.full_like(m.dof, -1.0), m.rate)
            values[block.name] = W
        elif block.kind == "dense":
            z = m.mean + jnp.einsum("...ij,...j->...i", _root(m.cov),
                                    random.normal(k, m.mean.shape, m.mean.dtype))
            fixed[block.name] = Gaussian(z, jnp.zeros_like(m.cov), m.logdet)
            belief = engine.beliefs[block.name]
            for name in block.members:
                start, size = belief.pieces[name]
                values[name] = _site(engine, name, z[..., start:start + size], 0)
        elif block.kind == "elimination":
            belief = engine.beliefs[block.name]
            _, terms = belief.terms(m.precision, m.free)
            drawn = elimination.sample(k, belief.variables, belief.sizes, terms)
            mean = {n: m.mean[n] + drawn[n] * m.free[n] for n in m.mean}
            fixed[block.name] = m._replace(mean=mean, cov=jax.tree.map(jnp.zeros_like, m.cov))
            values |= {n: _site(engine, n, mean[n], 0) for n in mean}
    return fixed, values


def _site(engine: Engine, name: str, vector: Array, lead: int) -> Array:
    v = engine.graph.variables[name]
    return join(vector, v.site, v.local, lead)


def one(engine: Engine, moments: dict, bound: Bound, plan: Any, key: Array) -> dict[str, Array]:
    """One joint draw of every site."""
    shared, inside = random.split(key)
    fixed, values = point(engine, moments, shared, bound)
    for i, block in enumerate(engine.graph.blocks):
        if block.kind == "chain":
            k = random.fold_in(inside, i)
            values |= _trajectory(engine, block, fixed, bound, plan, k)
    return values


def _trajectory(engine: Engine, block: Any, fixed: dict, bound: Bound, plan: Any, key: Array
                ) -> dict[str, Array]:
    """A trajectory: from the smoother where observations reach, then by the program; a first
    state that none reaches follows the draws of what it depends on."""
    moments, bound = complete(engine, fixed, bound, (block,))
    belief, m = engine.beliefs[block.name], moments[block.name]
    c = Coordinates(belief)
    smooth, noise = random.split(key)
    clamp = bound.clamps[block.name]
    z = chain.sample(smooth, m.diag, m.off)
    z = jnp.where(clamp.free > 0, m.mean + z, clamp.value)
    drawn = m._replace(mean=z, cov=jnp.zeros_like(m.cov), cross=jnp.zeros_like(m.cross))
    given = settled(engine, block, {**moments, block.name: drawn}, bound)
    segments = chain_segments(engine, block, fixed, bound)
    plan = plan if plan is not None and plan.about(block) else None
    nodes, at = [], 0
    carry = given.state_mean[0]
    for j, (length, sites) in enumerate(segments):
        rules = []
        for (where, site), name in zip(sites, _names(engine, block)):
            rule = nature(site, where)._replace(K=None, slots=())
            if plan is not None and name in plan.gains[j]:
                rule = Follow(*plan.gains[j][name])
            elif plan is not None and name in plan.told[j]:
                rule = told(site, rule, *plan.told[j][name])
            rules.append((where, rule))
        places = [w for w, _ in rules]
        here = jax.tree.map(lambda a, at=at, n=length: a[at:at + n], given)
        keys = random.split(random.fold_in(noise, j), length)

        def step(mean: Array, inputs: Any, places: list = places) -> tuple[Array, Array]:
            here, rules, k = inputs
            mean = jnp.where(here.settled, here.state_mean, mean)
            h = jnp.pad(augment(mean), [(0, 0)] * (mean.ndim - 1) + [(0, c.width)])
            for i, (where, rule) in enumerate(zip(places, rules)):
                drift = jnp.einsum("...nh,...h->...n", rule.mean, h)
                eps = random.normal(random.fold_in(k, i), drift.shape, drift.dtype)
                spread = jnp.einsum("...nm,...m->...n", _root(rule.cov), eps)
                node = where - (c.size - c.width)
                value = jnp.where(here.free[..., node] > 0, here.node_mean[..., node],
                                  drift + spread)      # sites after it follow from what it is
                h = h.at[..., where].set(value)
            return h[..., c.shift()[1:]], h[..., c.size - c.width:]

        # Keys must step with time even where a segment has one step.
        carry, out = over_time(step, carry, (here, [r for _, r in rules], keys), length)
        nodes.append(out)
        at += length
    nodes = jnp.concatenate(nodes)
    found = {}
    for name in block.variables:
        start, size = belief.node[name]
        found[name] = _site(engine, name, nodes[..., start:start + size], 1)
    for name in block.head:
        start, size = belief.head[name]
        found[name] = _site(engine, name, z[0][..., start:start + size], 0)
    return found


def _names(engine: Engine, block: Any) -> list[str]:
    scan = engine.graph.program.scans[block.scan]
    return [n for n in scan.sites if n in block.variables]


def _root(cov: Array) -> Array:
    """A square root that also serves covariances with zero rows (elements that are data)."""
    values, vectors = jnp.linalg.eigh(cov)
    return vectors * jnp.sqrt(jnp.maximum(values, 0.0))[..., None, :]
