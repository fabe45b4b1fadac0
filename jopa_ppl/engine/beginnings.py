"""Beliefs before the first sweep: priors, and where messages approximate a way to the data.

Pure functions of an `Engine`, its evidence and arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, random

from jopa_ppl.arrays import where
from jopa_ppl.beliefs import Belief
from jopa_ppl.engine.engine import Engine, finite, halved
from jopa_ppl.engine.evidence import Evidence
from jopa_ppl.engine.state import State
from jopa_ppl.engine.tempering import linearised, towards_data
from jopa_ppl.graph.factor import Factor

NUDGE = 0.1          # of a spread that globals begin off their priors
SETTLING = 30        # steps from a standard normal to the Gaussian nearest to a prior


def start(engine: Engine, key: Array | None, bound: Evidence, scattered: bool = False) -> State:
    """Beliefs before the first sweep: the priors.

    Messages that approximate start from there too: chains from their roll-out, and sums over
    points, which may not be finite for a wide prior, after a step from the mean alone.

    Args:
        engine: of the program.
        key: globals are nudged off their priors by it; None: they stay there.
        bound: the numbers of the run.
        scattered: they go as far as their priors are wide instead.

    Returns:
        a state of no sweep, whose F is not known yet.
    """
    prior = bound._replace(arrays={**bound.arrays, **bound.priors})
    moments = {b.name: b.zero() for b in engine.graph.blocks}
    order = list(engine.graph.program.sites)
    blocks = sorted(engine.graph.blocks, key=lambda b: (
        b.scan is not None, min(order.index(m) for m in b.members)))
    for i, block in enumerate(blocks):
        touching = engine.energy.touching(block)
        own = [f for f in touching if f.site.name in block.members]
        bent = [linearised(f) for f in touching if f.bends(block)]
        if block.scan is not None and not bent:
            continue
        # A prior may be singular to rounding (1e8 beside 1) where the posterior is not.
        begun = {**moments, block.name: _begun(engine, block, own, moments, prior)}
        if any(f.curved for f in bent):
            # What is linearised is no guide far away: chains roll off as no state of them does.
            begun[block.name] = block.at_rest(begun[block.name])
        moments = _if_finite(begun, moments, block)
        alone = [f for f in own if f.scored and f.bends(block) and not f.fixed]
        if alone:           # a prior that is no Gaussian, by the nearest one
            moments = jax.lax.fori_loop(
                0, SETTLING, lambda _, m, b=block, own=own: engine.step(b, own, m, prior)[0],
                moments)
        if key is not None and not block.held:
            move, most = (block.scattered, 1.0) if scattered else (block.break_symmetry, NUDGE)
            moments = _nudged(engine, block, bent, moments, bound, random.fold_in(key, i), move,
                              most)
    for update in engine.schedule.updates:
        bends = [f for f in update.factors if f.bends(update.block)]
        seen = [f for f in bends if f.site.observed
                and (f.scored or (f.curved and f.message != "quadrature"))]
        far = seen + [f for f in bends if f.curved and f not in seen]
        # No scale of what has yet to be found, and nothing that has yet to fall into parts.
        if far and all((f.scored or f in far) and not f.fixed for f in bends):
            moments = _if_finite(towards_data(engine, update, far, moments, bound), moments,
                                 update.block)
    zero, none = jnp.zeros(()), engine.digits(moments, engine.unwatched(moments))
    return State(moments, zero, jnp.zeros((), int), jnp.full((), -1), jnp.zeros((), bool),
                 none, zero, cancelled=(zero, zero))


def _begun(engine: Engine, block: Belief, own: list[Factor], moments: dict[str, Any],
           prior: Evidence) -> Any:
    """The belief by the priors of a block; by a standard normal where a prior is no Gaussian
    (of the log of a scale, say)."""
    plain = [linearised(f) for f in own if not f.scored]
    local = engine.energy_of(block, plain, moments, prior)
    scored = [f for f in own if f.scored]

    def standard(mine: Any) -> Array:
        here = {**local.stats, block.name: mine}
        views = (engine.energy.joined[f.name].view(prior.arrays[f.name], here) for f in scored)
        return local.energy(mine) - 0.5 * sum(
            ((v.mean**2).sum() + jnp.trace(v.cov, axis1=-2, axis2=-1).sum() for v in views),
            jnp.zeros(()))

    return block.update(moments[block.name], jax.grad(standard)(local.own),
                        prior.clamps[block.name])


def _nudged(engine: Engine, block: Belief, bent: list[Factor], moments: dict[str, Any],
            bound: Evidence, key: Array, move: Callable[..., Any], most: float) -> dict[str, Any]:
    """A block moved off its prior, by no more than what costs log p of the factors `bent` a
    nat: a tenth of a wide prior is far away."""
    def score(moments: dict[str, Any]) -> Array:
        stats = engine.stats(moments, bound.clamps)
        arrays = engine.energy.linearised(bent, bound.arrays, stats)
        return engine.energy(bent, arrays, stats, engine.energy.no_remainders(bent))

    def moved(size: Array | float) -> dict[str, Any]:
        return {**moments, block.name: move(moments[block.name], key, size)}

    if not bent or moved(most)[block.name] is moments[block.name]:
        return moved(most)

    def tried(size: Array, least: Array) -> tuple[dict[str, Any], Array, Array]:
        now = where(size == 0, moments, moved(size))
        found = score(now)
        least = jnp.where(size == 0, jnp.nan_to_num(found, nan=-jnp.inf) - 1.0, least)
        return now, least, found >= least

    return halved(most, moments, tried)[0]


def _if_finite(new: dict[str, Any], old: dict[str, Any], block: Belief) -> dict[str, Any]:
    """The `new` beliefs, or the old ones where that about a block went wrong."""
    return where(finite(new[block.name]), new, old)
