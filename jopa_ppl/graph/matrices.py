"""Which blocks have a precision W (x) S + U (x) V: matrices that multiply a step from the left.

Here it is read from shapes and from what depends on what; whether the coefficients have that form
(`A @ x`, not `A.T @ x`) is checked on the numbers of every run (`MatrixBelief.fits`).
"""

from __future__ import annotations

from collections.abc import Mapping

from jopa_ppl.beliefs import Belief, Variable
from jopa_ppl.graph.factor import Factor

LEAST = 100         # numbers of a block from which on its own form pays (tests.benchmarks.matrices)


def of_a_matrix(latents: Mapping[str, Variable], factors: tuple[Factor, ...],
                variables: Mapping[str, Variable]) -> bool:
    """Whether a block is a matrix M (n, p), its members side by side, in the mean of one site

        z ~ N(M f(h), W^-1),    M ~ N(m, (U (x) V)^-1), V of one member apart from those of others

    with f affine in one step's states, actions and data (or any function of them, where its message
    is linearised: `engine.bent`), no discrete latent choosing between several, and the noise
    alike at all steps and in all elements of its plates (of known noise, `MatrixBelief.fits` sees
    to that).
    """
    if sum(v.dims for v in latents.values()) < LEAST:
        return False
    rows = {v.site.shape[:1] for v in latents.values()}
    flat = all(not v.local and 1 <= len(v.site.shape) <= 2 and not v.is_series
               for v in latents.values())
    priors = [f for f in factors if f.site.name in latents]
    links = [f for f in factors if f not in priors
             and any(n in latents for n in (*(r.site for r in f.touched), *f.noise))]
    if len(rows) > 1 or not flat or len({f.site.name for f in links}) != 1:
        return False
    ((n,),) = rows
    shared = not any(variables[n].site.axes for f in links for n in f.noise)
    return (shared and all(map(_is_prior, priors))
            and all(_is_link(f, latents, n) for f in links))


def met_by_one(block: Belief, blocks: tuple[Belief, ...], factors: tuple[Factor, ...]) -> bool:
    """Whether each of its factors touches one other block at most."""
    touching = [f for f in factors if f.instances_of(block)]
    return all(sum(bool(f.instances_of(b)) for b in blocks) <= 2 for f in touching)


def _is_prior(f: Factor) -> bool:
    """Of data alone: an independent normal for every element, or a MatrixNormal."""
    return (f.touched == (f.site.ref(),) and not f.noise and not f.plates and not f.site.partial
            and not f.scored
            and (f.site.outputs.keys() >= {"scale"} or f.site.outputs.keys() >= {"row", "column"})
            and not f.site.weighted)


def _is_link(f: Factor, latents: Mapping[str, Variable], n: int) -> bool:
    """A product of the matrix with what belongs to one step, the same at all steps."""
    products = [[r.site for r in p] for p in f.products]
    apart = all(sum(i in latents for i in p) == len(p) - 1 for p in products if len(p) > 1)
    alike = bool(f.curved) or not (f.varying or f.varying_in_time)
    affine = f.message == "exact" or (f.curved and f.message == "linearise" and not f.spread
                                      and latents.keys().isdisjoint(r.site for r in f.curved))
    return (affine and not f.fixed and not f.noise_varying and f.dims == n and alike and apart
            and f.segment.scan is not None and not f.site.partial and not f.site.weighted
            and all(len(p) <= 2 for p in products))
