"""The mean of a chain's site as the program's own function of a step, where it is not affine."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jax import Array

from jopa_ppl.beliefs import ChainBelief
from jopa_ppl.beliefs.layout import align
from jopa_ppl.engine.coordinates import Coordinates
from jopa_ppl.engine.engine import Engine
from jopa_ppl.engine.evidence import Evidence
from jopa_ppl.engine.likelihoods import Placement
from jopa_ppl.graph.factor import Factor

Mean = Callable[[Array, Array], Array]      # (step of its segment, h (*plates, H)) -> (*plates, n)


def mean_of(engine: Engine, f: Factor, block: ChainBelief, bound: Evidence, moments: Mapping
            ) -> Mean:
    """The mean of one site, all that is outside its chain at its own mean.

    Args:
        engine: of the program; f: the site's factor; block: its chain.
        bound: the numbers of the run; moments: beliefs by block.
    """
    c, refs, own = Coordinates(block), f.instances_of(block), f.site.ref()
    want, shared = [p.name for p in f.plates], {}
    for r in f.latents:
        if r not in refs:
            other = engine.graph.block_of(r.site)
            shared[r] = other.shaped(r.site, other.marginal(moments[other.name])[r.site])[0]
    place = Placement(engine.graph, f, refs, bound.arrays[f.name])

    def at(step: Array, h: Array) -> Array:
        parts = [jnp.zeros((*h.shape[:-1], f.dims)) if r == own else h[..., c.of(r)] for r in refs]
        x = align(jnp.concatenate(parts, -1), 0, block.plates, want, 1)
        return align(-place.residual_at(step, x, shared), 0, want, block.plates, 1)

    return at


def means_of(engine: Engine, block: ChainBelief, bound: Evidence, moments: Mapping
             ) -> list[dict[str, Mean]]:
    """By segment of a chain's scan, the sites whose mean is not affine.

    Args:
        engine, block, bound, moments: as in `mean_of`.

    Returns:
        {site: mean} for every segment of the scan.
    """
    scan = engine.graph.program.scans[block.scan]
    return [{f.site.name: mean_of(engine, f, block, bound, moments) for f in engine.graph.factors
             if f.segment == segment and f.curved and f.value is not None and not f.fixed}
            for segment in engine.graph.reader.segments(scan)]


def affine(gain: Array, h: Array) -> Array:
    """gain h, as a mean of `forward.walk`."""
    return jnp.einsum("...nh,...h->...n", gain, h)
