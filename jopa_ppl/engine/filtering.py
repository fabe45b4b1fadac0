"""A path for a chain that bends: a filter of sigma points forward, and its smoother backward.

Sweeps go down the slope of F from where they begin. Over many steps that is the nearest valley,
which need not be the one of the data; a filter, which takes one step at a time into a belief about
those before it, is led by the data, and its spread tells how far each of them counts.

Source: Arasaratnam & Haykin 2009, "Cubature Kalman filters"; Rauch, Tung & Striebel 1965.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jopa_ppl.beliefs import Belief, ChainBelief
from jopa_ppl.beliefs.gaussian import square_root
from jopa_ppl.beliefs.layout import align
from jopa_ppl.engine.coordinates import Coordinates
from jopa_ppl.engine.engine import Engine
from jopa_ppl.engine.evidence import Evidence, FactorArrays
from jopa_ppl.engine.forward import over_time, smoothed
from jopa_ppl.engine.functions import affine, mean_of
from jopa_ppl.engine.likelihoods import Placement
from jopa_ppl.engine.numbers import own_value, to_precision
from jopa_ppl.engine.reading import Source
from jopa_ppl.engine.steps import site_map
from jopa_ppl.graph.factor import Factor
from jopa_ppl.linalg.factors import augment
from jopa_ppl.linalg.families import inverse_and_logdet
from jopa_ppl.program.refs import Ref
from jopa_ppl.program.segments import Segment

LEAST, MOST = 3, 32     # steps from which it is worth while; numbers that a step, a site may have


class Numbers(NamedTuple):
    """What of a site differs from step to step (axes: time or 1, then the chain's plates).

    own: of its residual. cov: of its noise. weight: of elements that are data, which of a latent
    are its `value`; of an observed site the residual is 0 there.
    """

    own: Any
    cov: Array
    weight: Array
    value: Array


class Met(NamedTuple):
    """A site of a step: residual(own numbers, h) ~ N(0, cov), of a latent with its own value 0.

    places: of the latent in h; none of an observed site. straight: the residual is numbers times h.
    """

    places: np.ndarray
    residual: Callable[[Any, Array], Array]
    straight: bool


def fits(engine: Engine, block: Belief) -> bool:
    """Whether a block is a chain all of whose sites are Gaussian, of its plates, and small, with
    beliefs about all else that do not move."""
    if block.scan is None or block.length < LEAST or Coordinates(block).size > MOST:
        return False
    held = {n for b in (block, *engine.graph.blocks) if b is block or b.held for n in b.members}
    return all(f.site.rules.location == "loc" and not (f.spread or f.fixed)
               and f.dims <= MOST and {p.name for p in f.plates} <= {*block.plates}
               and {r.site for r in f.latents} <= held
               and (not f.scored or _noise_is_data(engine, f))
               for f in engine.energy.touching(block) if f.in_time)


def begun(engine: Engine, block: ChainBelief, moments: dict, bound: Evidence) -> Any:
    """The belief about a chain, moved to the path of a filter."""
    q = moments[block.name]
    return q._replace(mean=block.with_means((q.mean,), path(engine, block, moments, bound))[0])


def path(engine: Engine, block: ChainBelief, moments: dict, bound: Evidence) -> Array:
    """Means (T, *plates, w) of the steps of a chain given all data, from the belief about its first
    state and at the means of everything else."""
    c, start, bound = (Coordinates(block), smoothed(engine, block, moments, bound),
                       engine.at(moments, bound))
    shift, state = c.shift()[1:], slice(1, 1 + c.state)
    carry, found = (start.state_mean[0], start.state_cov[0]), []
    for segment in engine.graph.reader.segments(engine.graph.program.scans[block.scan]):
        sites = _sites(engine, c, segment, moments, bound)

        def step(carry: tuple[Array, Array], numbers: list[Numbers], sites: list = sites
                 ) -> tuple[Any, Any]:
            mean, cov = carry
            none = [(0, 0)] * (mean.ndim - 1)
            h = jnp.pad(augment(mean), [*none, (0, c.width)])
            S = jnp.pad(cov, [*none, (1, c.width), (1, c.width)])
            live = np.arange(1, 1 + c.state)
            for (site, _), its in zip(sites, numbers):
                h, S = _after(site, its, h, S, live)
                live = np.concatenate([live, site.places])
            return (h[..., shift], S[..., shift, :][..., :, shift]), (h, S)

        carry, steps = over_time(step, carry, [n for _, n in sites], segment.length)
        found.append(steps)
    h, S = jax.tree.map(lambda *x: jnp.concatenate(x), *found)

    def back(later: Array, here: tuple[Array, Array]) -> tuple[Array, Array]:
        h, S = here
        gap = _solved(S[..., shift, :][..., :, shift], (later - h[..., shift])[..., None])
        h = h + (S[..., shift] @ gap)[..., 0]
        return h[..., state], h

    _, before = jax.lax.scan(back, h[-1][..., state], (h[:-1], S[:-1]), reverse=True)
    return jnp.concatenate([before, h[-1:]])[..., c.size - c.width:]


def _sites(engine: Engine, c: Coordinates, segment: Segment, moments: dict, bound: Evidence
           ) -> list[tuple[Met, Numbers]]:
    """The sites of a step that meet the chain, in the order of the program."""
    block, found = c.belief, []
    touching = {f.site.name: f for f in engine.energy.touching(block) if f.segment == segment}
    for name in engine.graph.program.scans[block.scan].sites:
        if name not in touching:
            continue
        f, arrays = touching[name], bound.arrays[touching[name].name]
        have = [p.name for p in f.plates]
        if f.scored:
            K, cov = None, _noise(engine, f, block, arrays)
            offset = own_value(f, Source(engine.graph, engine.energy.slots, {}, {}, bound.series))
        else:
            site = site_map(engine, c, f, bound, moments)
            K, cov, offset = site.K.at_mean(site.slots), site.covariance, arrays.offset
        places = np.zeros(0, int)
        weight, value = (align(x, 1, have, block.plates, 1) for x in (arrays.weight, offset))
        if name in block.members:
            places = c.of(Ref(name, 0))
            shape = (segment.length, *block.batch, len(places))
            weight, value = (
                jnp.broadcast_to(x[name][segment.steps] if name in x else 0.0, shape).astype(float)
                for x in (bound.present, bound.values))
            K = None if K is None else K.at[..., places].set(0.0)
        if f.curved or f.scored:
            mean = mean_of(engine, f, block, bound, moments)
            residual = lambda own, h, mean=mean: own[1] - mean(own[0], h)
            own = jnp.arange(segment.length), jnp.zeros_like(value) if len(places) else value
        else:
            residual, own = affine, align(K, 1, have, block.plates, 2)
        found.append((Met(places, residual, residual is affine),
                      Numbers(own, align(cov, 1, have, block.plates, 2), weight, value)))
    return found


def _noise_is_data(engine: Engine, f: Factor) -> bool:
    """Whether the noise of a site that is scored depends on no latent."""
    noise = f.site.outputs[f.site.rules.noise_key(f.site.outputs)]
    (found,) = engine.graph.reader.dependence([noise], f.segment)
    return f.site.observed and not found.names & {*f.latents}


def _noise(engine: Engine, f: Factor, block: ChainBelief, arrays: FactorArrays) -> Array:
    """The covariance (T, *plates, n, n) of the noise of a site that is scored."""
    f = replace(f, noise_key=f.site.rules.noise_key(f.site.outputs))
    place = Placement(engine.graph, f, f.instances_of(block), arrays)
    (noise,) = place.each([f.site.outputs[f.noise_key]], None)
    precision, _ = jax.vmap(lambda noise: to_precision(f, noise))(noise)
    if f.site.rules.elementwise:
        return jnp.eye(f.dims) / precision[..., None]
    return inverse_and_logdet(precision)[0]


def _after(site: Met, its: Numbers, h: Array, S: Array, live: np.ndarray) -> tuple[Array, Array]:
    """Mean and covariance of h with one more site put in its place, or taken for data; `live`:
    where h has values yet."""
    if site.straight:
        mean = affine(its.own, h)
        across = jnp.einsum("...nh,...hk->...nk", its.own, S)
        cov = jnp.einsum("...nh,...mh->...nm", across, its.own) + its.cov
    else:
        root = square_root(S[..., live, :][..., :, live]) * len(live)**0.5
        root = jnp.moveaxis(root, -1, 0)
        points = jnp.zeros((2 * len(live), *h.shape)).at[..., live].set(
            jnp.concatenate([root, -root]))
        found = jax.vmap(lambda point: site.residual(its.own, h + point))(points)
        mean = found.mean(0)
        across = jnp.einsum("p...n,p...h->...nh", found - mean, points) / len(points)
        cov = jnp.einsum("p...n,p...m->...nm", found - mean, found - mean) / len(points) + its.cov
    if not len(at := site.places):
        return _given(h, S, -mean, across, cov, its.weight)
    h = h.at[..., at].set(-mean)
    S = S.at[..., at, :].set(-across).at[..., :, at].set(-jnp.swapaxes(across, -1, -2))
    S = S.at[..., at[:, None], at].set(cov)
    return _given(h, S, its.value - h[..., at], S[..., at, :], cov, its.weight)


def _given(h: Array, S: Array, gap: Array, across: Array, cov: Array, weight: Array
           ) -> tuple[Array, Array]:
    """h and S when numbers of covariance `cov`, and `across` (.., n, H) with h, are seen to be
    `gap` off their means; those that weigh nothing tell nothing."""
    seen = jnp.broadcast_to(weight > 0, gap.shape)
    across = jnp.where(seen[..., None], across, 0.0)
    cov = jnp.where(seen[..., :, None] & seen[..., None, :], cov, jnp.eye(cov.shape[-1]))
    gain = jnp.swapaxes(_solved(cov, across), -1, -2)
    return h + (gain @ jnp.where(seen, gap, 0.0)[..., None])[..., 0], S - gain @ across


def _solved(cov: Array, rest: Array) -> Array:
    """cov^-1 rest (.., n, m) of a covariance that may be singular: what is data has no spread."""
    size = jnp.sqrt(jnp.diagonal(cov, axis1=-2, axis2=-1))
    unit = jnp.where(size > 0, size, 1.0)[..., None]
    scaled = cov / unit / jnp.swapaxes(unit, -1, -2)
    return jnp.linalg.pinv(scaled, rtol=1e-10, hermitian=True) @ (rest / unit) / unit
