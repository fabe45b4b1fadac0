"""The sites of a chain's step as linear maps on one vector: what planning and prediction share.

At step t the vector is h = (1, head, z_{t-k}, .., z_t), k the order of the chain, and every
Gaussian site of the step has a residual r = K(theta) h. The first k steps may have maps of
their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jopa_ppl.beliefs import Belief
from jopa_ppl.beliefs.layout import align
from jopa_ppl.engine.arithmetic import Arithmetic
from jopa_ppl.engine.coordinates import Coordinates, rows
from jopa_ppl.engine.evidence import Evidence, FactorArrays
from jopa_ppl.graph.factor import Factor
from jopa_ppl.linalg.coefficients import Coefficients, Tensor
from jopa_ppl.linalg.factors import Moments, batch_einsum
from jopa_ppl.linalg.families import inverse_and_logdet


class SiteMap(NamedTuple):
    """One site of a step. Batch axes: (steps of the segment, *plates of the factor).

    K (*batch|1, n, slots.., H): its residual on h; slots: moments of what K is uncertain of;
    precision E[P] (n,) or (n, n) and covariance E[P^-1] (n, n); weight (*batch, n|1).
    """

    K: Coefficients
    slots: tuple[Moments, ...]
    precision: Array
    covariance: Array
    weight: Array

    @property
    def independent(self) -> bool:
        """Whether its elements are, and the precision holds theirs, no matrix."""
        return self.precision.ndim == self.K.ndim - 1 - len(self.slots)


def site_map(engine: Arithmetic, coordinates: Coordinates, factor: Factor, bound: Evidence,
             moments: dict) -> SiteMap:
    """The map of the site of a scan, residual = K h, from its numbers and the beliefs about what it
    shares with other steps; axes (T or 1, *plates) in front, h as `coordinates` lays it out.

    Args:
        engine: what computes with the graph; coordinates: of the chain.
        factor: a Gaussian factor of the chain's scan, in one of its segments.
        bound: the numbers of the run; moments: the belief about every block, by name.
    """
    arrays = bound.arrays[factor.name]
    energy, stats = engine.energy, engine.stats(moments, bound.clamps)
    precision, _ = energy.noise(factor, arrays, stats)
    slots = tuple(b.view(stats[b.name], factor) for b, _ in energy.slots[factor.name]
                  if b is not None and b is not coordinates.belief)
    K = rows(coordinates, factor, arrays, energy.slots[factor.name])
    weight = arrays.weight
    covariance = noise_covariance(engine, factor, arrays, moments, stats)
    return SiteMap(K, slots, precision, covariance, weight)


def mixture(maps: Sequence[SiteMap], shares: Sequence[Array]) -> SiteMap:
    """The map of a site that is one of several, each with its share (*batch) of probability.

    Which one it is is one more thing that the map is uncertain of: it is linear in the indicator of
    that, of mean p and covariance diag(p) - p p'.

    Args:
        maps: one for each value, alike in n, H, slots and weight, their coefficients tensors
            (`graph.matrices` takes no other where discrete latents choose).
        shares: of each, arrays (*batch) that broadcast.
    """
    batch = jnp.broadcast_shapes(*(s.shape for s in shares),
                                 *(m.K.shape[:s.ndim] for m, s in zip(maps, shares)))
    lead = len(batch)
    p = jnp.stack([jnp.broadcast_to(s, batch) for s in shares], -1)
    indicator = Moments(p, p[..., None] * jnp.eye(len(maps)) - p[..., :, None] * p[..., None, :])
    Ks = [jnp.broadcast_to(m.K.array, (*batch, *m.K.shape[lead:])) for m in maps]
    K = jnp.stack([jnp.zeros_like(Ks[0]), *Ks], lead + 1)

    def mean(parts: Sequence[Array]) -> Array:
        return sum(p[..., i].reshape((*batch, *(1,) * (x.ndim - lead))) * x
                   for i, x in enumerate(parts))

    tails = 1 if maps[0].independent else 2
    precision = mean([jnp.broadcast_to(m.precision, (*batch, *m.precision.shape[-tails:]))
                      for m in maps])
    covariance = mean([jnp.broadcast_to(m.covariance, (*batch, *m.covariance.shape[-2:]))
                       for m in maps])
    return SiteMap(Tensor(K), (indicator, *maps[0].slots), precision, covariance, maps[0].weight)


def noise_covariance(engine: Arithmetic, factor: Factor, arrays: FactorArrays, moments: dict,
                     stats: dict) -> Array:
    """E[P^-1] of a Gaussian site as (.., n, n): exact for known, Gamma and Wishart precisions.

    P is linear in every precision it is a product of, so E[P^-1] is P^-1 at their harmonic means,
    1 / E[1 / tau] = (a - 1) / b and (nu - n - 1) V^-1; at E[P] where they do not exist.

    Args:
        engine: what computes with the graph.
        factor: of a Gaussian site; arrays: its numbers.
        moments: the belief about every block, by name; stats: what is expected under them.
    """
    harmonic = dict(stats)
    for name in factor.noise:
        block = engine.graph.block_of(name)
        mean, log = stats[block.name]
        harmonic[block.name] = mean * block.harmonic(moments[block.name]), log
    if factor.site.rules.certain:
        return jnp.zeros((*arrays.precision.shape, factor.dims))
    if factor.spread:
        variance = engine.energy.of_power(factor, arrays, harmonic, -1)[0]
        return jnp.eye(variance.shape[-1], dtype=variance.dtype) * variance[..., None]
    precision = engine.energy.noise(factor, arrays, harmonic)[0]
    if factor.site.rules.elementwise:
        return jnp.eye(precision.shape[-1], dtype=precision.dtype) / precision[..., None]
    return inverse_and_logdet(precision)[0]


def quadratic(K: Coefficients, slots: Sequence[Moments], precision: Array) -> Array:
    """E[K' P K] over what K is uncertain of, (*batch, H, H).

    Args:
        K, slots: as of a `SiteMap`, (*batch|1, n, slots.., H).
        precision: P, (*batch|1, n) of independent elements, or (*batch|1, n, n).
    """
    nbatch = K.ndim - 2 - len(slots)
    mean = K.at_mean(slots)
    p, other = ("n", "n") if precision.ndim == nbatch + 1 else ("nm", "m")
    total = batch_einsum([(mean, "nl"), (precision, p), (mean, other + "k")], "lk", [True] * nbatch)
    return total + K.excess(slots, precision)


def to_chain_plates(array: Array, factor: Factor, block: Belief, tail: int) -> Array:
    """Sum over the factor's plates that the chain has not, order the rest as the chain's.

    Args:
        array: (T or 1, *plates of the factor, *tail).
        factor: of a site of the chain's scan; block: the belief about the chain.
        tail: number of axes after the plates.

    Returns:
        (T or 1, *plates of the chain, *tail), 1 for a plate that the factor has not.
    """
    have = [p.name for p in factor.plates]
    drop = tuple(1 + i for i, p in enumerate(have) if p not in block.plates)
    kept = [p for p in have if p in block.plates]
    return align(array.sum(axis=drop) if drop else array, 1, kept, block.plates, tail)
