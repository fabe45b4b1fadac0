"""The likelihood of an observed site, as its program scores it: a function of what it sees."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.beliefs.layout import align, join
from jopa_ppl.engine.evidence import FactorArrays, evaluate_in
from jopa_ppl.graph.factor import Factor, Graph
from jopa_ppl.linalg.nonconjugate import Score
from jopa_ppl.program.refs import Ref


def score_of(graph: Graph, factor: Factor, refs: Sequence[Ref], arrays: FactorArrays) -> Score:
    """log p(value | x) with x the latents `refs` side by side, for all steps and plates at once.

    An element that weighs nothing is no function of x, whatever the program does there.

    Args:
        arrays: of the factor; its weights temper the density and leave out what is missing.
    """
    likelihood = factor.site.likelihood
    plates = [p.name for p in factor.plates]
    length = arrays.offset.shape[0] if factor.in_bulk else None
    lead = 0 if length is None else 1
    avals = [v.aval for v in graph.program.jaxpr.jaxpr.outvars]
    shape = avals[likelihood.value].shape

    def place(x: Array) -> dict[Ref, Array]:
        values, at = {}, 0
        for ref in refs:
            variable = graph.variables[ref.site]
            piece, own = x[..., at:at + variable.dims], list(variable.plates)
            for axis in reversed(range(len(plates))):
                if plates[axis] not in own:
                    piece = jax.lax.index_in_dim(piece, 0, axis, keepdims=False)
            piece = align(piece, 0, [p for p in plates if p in own], own, 1)
            values[ref] = join(piece, variable.site, variable.local)
            at += variable.dims
        return values

    def each(outputs: Sequence[int], x: Array | None) -> list[Array]:
        def one(step: Array | int, x: Array | None) -> list[Array]:
            values = {} if x is None else place(x)
            return evaluate_in(graph.reader, factor, arrays.env, outputs, values, step)

        if length is None:
            return one(0, x)
        if x is None:
            return jax.vmap(lambda step: one(step, None))(jnp.arange(length))
        return jax.vmap(one)(jnp.arange(length), jnp.broadcast_to(x, (length, *x.shape[1:])))

    real = [jnp.issubdtype(avals[i].dtype, jnp.floating) for i in likelihood.leaves]
    moving = [i for i, r in zip(likelihood.leaves, real) if r]
    value, *held = each([likelihood.value,
                         *(i for i, r in zip(likelihood.leaves, real) if not r)], None)

    def log_prob(leaves: list[Array]) -> Array:
        found, fixed = iter(leaves), iter(held)
        whole = [next(found if r else fixed) for r in real]
        one = lambda leaves, value: likelihood.tree.unflatten(leaves).log_prob(value)
        density = (one if length is None else jax.vmap(one))(whole, value)
        # What the base distribution has for an event is summed already.
        own = shape[:density.ndim - lead]
        density = jnp.broadcast_to(density, (*density.shape[:lead], *own))
        axes = range(lead, lead + len(plates))
        moved = jnp.moveaxis(density, [lead + p.axis for p in factor.plates], axes)
        flat = moved.reshape((*moved.shape[:lead + len(plates)], -1))
        return jnp.sum(arrays.weight * flat, -1)

    def score(x: Array) -> Array:
        seen = (arrays.weight > 0).any(-1)
        shared = tuple(i for i, n in enumerate(x.shape[:-1]) if n == 1)
        used = seen.any(shared, keepdims=True)[..., None]
        x = jnp.where(used, x, jax.lax.stop_gradient(x))      # no 0 * NaN in its derivatives
        return jnp.where(seen, log_prob(each(moving, x)), 0.0)

    return score
