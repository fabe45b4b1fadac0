"""The sites of a chain's step as linear maps on one vector: what planning and prediction share.

At step t the vector is h = (1, head, z_{t-k}, .., z_t), k the order of the chain, and every
Gaussian site of the step has a residual r = K(theta) h. The first k steps may have maps of
their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jopa_ppl.beliefs import Belief, ChainBelief
from jopa_ppl.beliefs.layout import align
from jopa_ppl.graph.factor import Factor
from jopa_ppl.linalg.factors import Moments, at_mean, batch_einsum, moving
from jopa_ppl.linalg.families import inverse_and_logdet
from jopa_ppl.linalg.matrix import MatrixProduct
from jopa_ppl.program.refs import Ref

if TYPE_CHECKING:
    from jopa_ppl.engine.engine import Engine, Evidence
    from jopa_ppl.engine.evidence import FactorArrays, Slot


class SiteMap(NamedTuple):
    """One site of a step. Batch axes: (steps of the context, *plates of the factor).

    K (*batch|1, n, slots.., H): its residual on h; slots: moments of what K is uncertain of;
    precision E[P] (n,) or (n, n) and covariance E[P^-1] (n, n); weight (*batch, n|1).
    """

    K: Array
    slots: tuple[Moments, ...]
    precision: Array
    covariance: Array
    weight: Array

    @property
    def independent(self) -> bool:
        """Whether its elements are, and the precision holds theirs, no matrix."""
        return self.precision.ndim == self.K.ndim - 1 - len(self.slots)


class Coordinates:
    """Where sites lie in h."""

    def __init__(self, belief: ChainBelief) -> None:
        self.belief = belief
        self.k, self.width = belief.k, belief.width
        self.head_dims = 0 if belief.seeds else sum(n for _, n in belief.head_at.values())
        self.state = self.head_dims + self.k * self.width
        self.size = 1 + self.state + self.width

    def of(self, ref: Ref) -> np.ndarray:
        """Indices of a latent of the chain in h."""
        if ref.back is None:
            start, size = self.belief.head_at[ref.site]
            start += 1
        else:
            at, size = self.belief.node[ref.site]
            start = 1 + self.head_dims + (self.k - ref.back) * self.width + at
        return np.arange(start, start + size)

    def shift(self) -> np.ndarray:
        """Indices in h_t of the state of step t + 1 (with the leading 1)."""
        nodes = np.arange(1 + self.head_dims + self.width, self.size)
        return np.concatenate([np.arange(1 + self.head_dims), nodes])


def site_map(engine: Engine, coordinates: Coordinates, factor: Factor, bound: Evidence,
             moments: dict) -> SiteMap:
    """The map of a factor's site, from its numbers and the beliefs about what it shares."""
    arrays = bound.arrays[factor.name]
    energy, stats = engine.energy, engine.stats(moments, bound.clamps)
    precision, _ = energy.noise(factor, arrays, stats)
    slots = tuple(b.view(stats[b.name], factor) for b, _ in energy.slots[factor.name]
                  if b is not None and b is not coordinates.belief)
    K = rows(coordinates, factor, arrays, energy.slots[factor.name])
    weight = arrays.weight
    covariance = noise_covariance(engine, factor, arrays, moments, stats)
    if not factor.in_bulk:
        K, precision, covariance, weight, slots = jax.tree.map(
            lambda x: x[None], (K, precision, covariance, weight, slots))
    return SiteMap(K, slots, precision, covariance, weight)


def rows(coordinates: Coordinates, factor: Factor, arrays: FactorArrays, table: Sequence[Slot]
         ) -> Any:
    """The residual of a site as rows on h, (*batch|1, n, slots.., H), from its numbers and the
    slots that they are about."""
    names = next((n for b, n in table if b is coordinates.belief), [])
    slots = [b for b, _ in table if b is not None and b is not coordinates.belief]
    q = sum(len(coordinates.of(n)) for n in names)
    known, offset = arrays.known, arrays.offset

    def without_known(K: Array) -> Array:
        if not known.shape[-1]:
            return K[..., :1 + q]
        seen = known.reshape((*known.shape[:-1], *(1,) * (K.ndim - known.ndim), known.shape[-1]))
        return _with_constant(K[..., :1 + q], (K[..., 1 + q:] * seen).sum(-1))

    K = on_h(without_known, arrays.K)
    if factor.value is None and isinstance(K, MatrixProduct):
        K = K._replace(constant=_with_constant(K.constant, offset))
    elif factor.value is None:
        constant = offset.reshape((*offset.shape, *(1,) * len(slots)))
        pads = [(0, 0)] * offset.ndim + [(0, n - 1) for n in K.shape[offset.ndim:-1]]
        K = _with_constant(K, jnp.pad(constant, pads))
    where = np.concatenate([[0], *(coordinates.of(n) for n in names)]).astype(int)
    spread = np.zeros((len(where), coordinates.size))
    spread[np.arange(len(where)), where] = 1
    return on_h(lambda K: jnp.einsum("...l,lh->...h", K, spread), K)


def tied(engine: Engine, block: Belief, mask: Any, arrays: dict[str, FactorArrays]) -> Any:
    """The mask of a chain with how its members follow that are certain given the rest."""
    found: dict[str, list[Array]] = {}
    for f in engine.graph.factors:
        if f.site.name not in block.members or not f.site.rules.certain:
            continue
        c, table = Coordinates(block), engine.energy.slots[f.name]
        K = -rows(c, f, arrays[f.name], table)
        K = K if f.in_bulk else K[None]
        K = align(K, 1, [p.name for p in f.plates], block.plates, 2)
        K = K.at[..., c.of(f.site.ref())].set(0.0)
        steps = engine.graph.program.scans[f.context.scan].length - f.context.first
        shape = (steps if f.in_bulk else 1, *block.batch, *K.shape[-2:])
        found.setdefault(f.site.name, []).append(jnp.broadcast_to(K, shape))
    if not found:
        return mask
    return block.tied(mask, {n: jnp.concatenate(x) for n, x in found.items()}, c.head_dims)


def mixture(maps: Sequence[SiteMap], shares: Sequence[Array]) -> SiteMap:
    """The map of a site that is one of several, each with its share (*batch) of probability.

    Which one it is is one more thing that the map is uncertain of: it is linear in the indicator of
    that, of mean p and covariance diag(p) - p p'.
    """
    batch = jnp.broadcast_shapes(*(s.shape for s in shares),
                                 *(m.K.shape[:s.ndim] for m, s in zip(maps, shares)))
    lead = len(batch)
    p = jnp.stack([jnp.broadcast_to(s, batch) for s in shares], -1)
    indicator = Moments(p, p[..., None] * jnp.eye(len(maps)) - p[..., :, None] * p[..., None, :])
    Ks = [jnp.broadcast_to(m.K, (*batch, *m.K.shape[lead:])) for m in maps]
    K = jnp.stack([jnp.zeros_like(Ks[0]), *Ks], lead + 1)

    def mean(parts: Sequence[Array]) -> Array:
        return sum(p[..., i].reshape((*batch, *(1,) * (x.ndim - lead))) * x
                   for i, x in enumerate(parts))

    tails = 1 if maps[0].independent else 2
    precision = mean([jnp.broadcast_to(m.precision, (*batch, *m.precision.shape[-tails:]))
                      for m in maps])
    covariance = mean([jnp.broadcast_to(m.covariance, (*batch, *m.covariance.shape[-2:]))
                       for m in maps])
    return SiteMap(K, (indicator, *maps[0].slots), precision, covariance, maps[0].weight)


def on_h(fn: Callable[[Array], Array], K: Any) -> Any:
    """Coefficients with `fn` on their last axis, that of h."""
    if isinstance(K, MatrixProduct):
        return K._replace(constant=fn(K.constant), carried=fn(K.carried))
    return fn(K)


def _with_constant(K: Array, constant: Array) -> Array:
    shape = jnp.broadcast_shapes(K.shape[:-1], constant.shape)
    first = jnp.broadcast_to(K[..., 0], shape) + constant
    rest = jnp.broadcast_to(K[..., 1:], (*shape, K.shape[-1] - 1))
    return jnp.concatenate([first[..., None], rest], -1)


def noise_covariance(engine: Engine, factor: Factor, arrays: FactorArrays, moments: dict,
                     stats: dict) -> Array:
    """E[P^-1] of a Gaussian site as (.., n, n): exact for known, Gamma and Wishart precisions.

    P is linear in every precision it is a product of, so E[P^-1] is P^-1 at their harmonic means,
    1 / E[1 / tau] = (a - 1) / b and (nu - n - 1) V^-1; at E[P] where they do not exist.
    """
    harmonic = dict(stats)
    for name in factor.noise:
        block = engine.graph.block_of(name)
        mean, log = stats[block.name]
        harmonic[block.name] = mean * block.harmonic(moments[block.name]), log
    if factor.site.rules.certain:
        return jnp.zeros((*arrays.precision.shape, factor.dims))
    if factor.spread:
        bent = engine.energy.bent[factor.name]
        variance = bent.noise(engine.energy, arrays, harmonic, -1)[0]
        return jnp.eye(variance.shape[-1], dtype=variance.dtype) * variance[..., None]
    precision = engine.energy.noise(factor, arrays, harmonic)[0]
    if factor.site.rules.elementwise:
        return jnp.eye(precision.shape[-1], dtype=precision.dtype) / precision[..., None]
    return inverse_and_logdet(precision)[0]


def quadratic(K: Array, slots: Sequence[Moments], precision: Array) -> Array:
    """E[K' P K] over what K is uncertain of, (*batch, H, H); P is (n,) or (n, n)."""
    nbatch = K.ndim - 2 - len(slots)
    mean = at_mean(K, slots)
    p, other = ("n", "n") if precision.ndim == nbatch + 1 else ("nm", "m")
    total = batch_einsum([(mean, "nl"), (precision, p), (mean, other + "k")], "lk", [True] * nbatch)
    return total + excess(K, slots, precision)


def excess(K: Array, slots: Sequence[Moments], precision: Array) -> Array:
    """E[K' P K] less what it is at the mean of K."""
    nbatch = K.ndim - 2 - len(slots)
    if isinstance(K, MatrixProduct):
        if precision.ndim == nbatch + 1:
            precision = precision[..., None] * jnp.eye(precision.shape[-1], dtype=precision.dtype)
        return K.excess(*slots, precision)
    p, other = ("n", "n") if precision.ndim == nbatch + 1 else ("nm", "m")
    total = jnp.zeros(())
    for part, a, b, spreads in moving(K, slots, nbatch):
        total += batch_einsum([(part, "n" + a + "l"), (precision, p), (part, other + b + "k"),
                               *spreads], "lk", [True] * nbatch)
    return total


def spread_of(K: Array, slots: Sequence[Moments], second: Array) -> Array:
    """Covariance of K h that is due to K, for E[h h'] = second (H, H): (*batch, n, n)."""
    if isinstance(K, MatrixProduct):
        return K.spread_of(*slots, second)
    nbatch = K.ndim - 2 - len(slots)
    total = jnp.zeros(())
    for part, a, b, spreads in moving(K, slots, nbatch):
        total += batch_einsum([(part, "n" + a + "l"), (second, "lk"), (part, "m" + b + "k"),
                               *spreads], "nm", [True] * nbatch)
    return total


def to_chain_plates(array: Array, factor: Factor, block: Belief, tail: int) -> Array:
    """Sum over the factor's plates that the chain has not, order the rest as the chain's."""
    have = [p.name for p in factor.plates]
    drop = tuple(1 + i for i, p in enumerate(have) if p not in block.plates)
    kept = [p for p in have if p in block.plates]
    return align(array.sum(axis=drop) if drop else array, 1, kept, block.plates, tail)
