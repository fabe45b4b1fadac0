"""Blocks that are exact given all else: their evidence in one pass, its gradient, their draws.

Where every factor touches one block at most, each block's update is its posterior, and

    log Z = U(q*; numbers) + entropy of q*,        d log Z = dU(q*; numbers), q* held fixed

for q* is where the free energy is least (the envelope theorem). So a gradient goes back through the
numbers of the factors alone, and through no recursion over time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.engine.engine import Engine
from jopa_ppl.engine.evidence import Evidence, FactorArrays
from jopa_ppl.graph.factor import Factor
from jopa_ppl.linalg.nonconjugate import expected_score

Bind = Callable[[Sequence[Array]], Evidence]       # from the arrays of a call


def reasons(engine: Engine) -> dict[str, str]:
    """By latent, what keeps its block from being exact given all else: {} where nothing does."""
    found = {}
    for block in engine.graph.blocks:
        for f in engine.energy.touching(block):
            others = [b.name for b in engine.energy.blocks_of(f) if b is not block]
            why = (f"'{f.site.name}' ties it to '{others[0]}', another belief" if others else
                   f"the message of '{f.site.name}' to it is not exact"
                   if f.bends(block) or f.message == "amortised" else "")
            if why:
                found |= dict.fromkeys(block.members, why)
    return found


def solve(engine: Engine, bound: Evidence) -> dict[str, Any]:
    """The beliefs, by one update of every block."""
    moments = {b.name: b.zero() for b in engine.graph.blocks}
    for block, factors in ((u.block, list(u.factors)) for u in engine.schedule.updates):
        moments = engine.update(block, factors, moments, bound)
    return moments


def log_evidence(engine: Engine, factors: list[Factor], moments: dict[str, Any], bound: Evidence
                 ) -> Array:
    """log Z of some factors, in nats, once all blocks are solved."""
    stats, entropy = engine.stats(moments, bound.clamps), jnp.zeros(())
    for block in engine.graph.blocks:
        mask = bound.clamps[block.name]
        stats[block.name], more = block.once_solved(stats[block.name], mask)
        entropy += block.entropy(moments[block.name], mask) + more
    return _energy(engine, factors, bound.arrays, stats) + entropy


def _energy(engine: Engine, factors: list[Factor], arrays: dict[str, FactorArrays],
            stats: dict[str, Any]) -> Array:
    """U of some factors, differentiable in all that they are made of: messages, which `Energy` is
    there for, teach nothing to the data that a density is scored with."""
    plain, total, energy = [f for f in factors if not f.scored], jnp.zeros(()), engine.energy


    def scored(f: Factor, a: FactorArrays) -> Array:
        return expected_score(*energy.scored(f, energy.shared(f, a, stats), stats), f.message)

    for f in (f for f in factors if f.scored):
        total += jnp.sum(energy.each(f, scored, arrays[f.name]))
    return total + energy(plain, arrays, stats)


def value_and_gradient(engine: Engine, factors: list[Factor], bind: Bind, leaves: Sequence[Array]
                       ) -> tuple[Array, dict[int, Array]]:
    """log Z, and its gradient in those arrays of a call that hold real numbers, by position."""
    real = {i: jnp.asarray(x, float) for i, x in enumerate(leaves) if _is_real(x)}

    def parts(bound: Evidence) -> tuple[list, Any]:
        return jax.tree.flatten(({f.name: bound.arrays[f.name] for f in factors}, bound.clamps))

    def numbers(real: dict[int, Array]) -> tuple[list[Array], Evidence]:
        bound = bind([real.get(i, x) for i, x in enumerate(leaves)])
        return list(filter(_is_real, parts(bound)[0])), bound

    given, back, bound = jax.vjp(numbers, real, has_aux=True)
    moments, (all_, tree) = solve(engine, bound), parts(bound)

    def energy(given: list[Array]) -> Array:
        new = iter(given)
        arrays, clamps = tree.unflatten([next(new) if _is_real(x) else x for x in all_])
        return _energy(engine, factors, arrays, engine.stats(moments, clamps))

    (gradient,) = back(jax.grad(energy)(given))
    return log_evidence(engine, factors, moments, bound), gradient


def _is_real(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)
