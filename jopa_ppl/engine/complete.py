"""Latents outside scans that no observation reaches: predicted after inference, from their priors.

Such a latent z = M h + noise was left out, as its prior would have counted as data about M and the
noise. Its conditional, with noise E[P^-1] and the spread of M due to other blocks, is normalised,
so that adding it to the block's belief moves nothing but z.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.beliefs import Belief
from jopa_ppl.beliefs.layout import align
from jopa_ppl.engine.arithmetic import Arithmetic
from jopa_ppl.engine.evidence import Evidence
from jopa_ppl.engine.steps import noise_covariance
from jopa_ppl.graph.factor import Factor
from jopa_ppl.linalg.families import inverse_and_logdet


def complete(engine: Arithmetic, moments: dict, bound: Evidence,
             blocks: tuple[Belief, ...] | None = None) -> tuple[dict, Evidence]:
    """Beliefs with what is not inferred in its place: data without spread, and latents outside
    scans that nothing observed reaches by the program's conditionals (steps of Gaussian chains:
    `forward`).

    Args:
        moments: q of every block, by name, as a sweep leaves it. blocks: which to complete; all.

    Returns:
        Of these blocks q with the shapes it had; and the evidence with masks by which all that was
        completed counts as inferred. What was inferred has not moved.
    """
    graph, bound = engine.graph, engine.at(moments, bound)
    for block in graph.blocks if blocks is None else blocks:
        for f in graph.factors if block.gaussian else ():
            name = f.site.name
            if f.segment.scan is None and name in block.members and not graph.stands_alone(name):
                moments, bound = _predict(engine, block, f, moments, bound)
        if block.follows:
            moments = {**moments, block.name: _followed(engine, block, moments, bound)}
        q = block.completed(moments[block.name], bound.clamps[block.name])
        moments = {**moments, block.name: q}
    return moments, bound


def _followed(engine: Arithmetic, block: Belief, moments: dict, bound: Evidence) -> Any:
    """The belief of a discrete block, what nothing observed reaches following the program, by the
    means of the probabilities."""
    stats, energy = engine.stats(moments, bound.clamps), engine.energy
    own = [f for f in energy.touching(block) if f.site.name in block.members]
    means = {b.name: b.averaged(stats[b.name], moments[b.name]) for b in engine.graph.blocks}
    unseen = {f.name: bound.arrays[f.name]._replace(
        weight=jnp.where(bound.arrays[f.name].weight == 0, 1.0, 0.0)) for f in own}
    mask = bound.clamps[block.name]
    message = block.following(jax.grad(lambda mine: energy(
        own, unseen, {**means, block.name: mine}))(stats[block.name]), mask)
    total = jax.tree.map(jnp.add, block.message(moments[block.name], mask), message)
    return block.update(moments[block.name], total, mask)


def _predict(engine: Arithmetic, block: Belief, f: Factor, moments: dict, bound: Evidence
             ) -> tuple[dict, Evidence]:
    """One site's prior, added where the site is unseen."""
    old, alive, name = bound.clamps[block.name], bound.alive[f.site.name], f.site.name
    unseen = align(~alive, 0, engine.graph.variables[name].plates, [p.name for p in f.plates], 0)
    unseen = jnp.broadcast_to(unseen, tuple(p.size for p in f.plates))
    bound = bound._replace(alive={**bound.alive, name: jnp.ones_like(alive)})
    bound = bound._replace(clamps={**bound.clamps, block.name: engine.clamp(block, bound)})

    arrays = bound.arrays[f.name]
    stats = engine.stats(moments, bound.clamps)
    mine = stats[block.name]
    fixed = {b.name: stats[b.name] if b is block or b.scan is not None else b.at_mean(stats[b.name])
             for b in engine.graph.blocks}
    each = [True] * len(f.plates)

    def square(given: dict[str, Any]) -> Array:
        return engine.energy.square(f, arrays._replace(weight=jnp.ones((*unseen.shape, 1))), given,
                                    each, False)

    noise = noise_covariance(engine, f, arrays, moments, stats)
    precision, _ = inverse_and_logdet(noise + square(stats) - square(fixed))

    def energy(own: Any) -> Array:
        here = jnp.where(unseen[..., None, None], precision * square({**fixed, block.name: own}), 0)
        return -0.5 * jnp.sum(here)

    total = jax.tree.map(jnp.add, block.message(moments[block.name], old), jax.grad(energy)(mine))
    new = block.update(moments[block.name], total, bound.clamps[block.name])
    return {**moments, block.name: new}, bound
