"""A joint Gaussian over latents in different plates (trees, hierarchies): by Funsor, and of few
numbers as one dense matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from jopa_ppl.beliefs.base import Clamp, Factor, Variable
from jopa_ppl.beliefs.gaussian import (
    NARROW,
    GaussianBelief,
    free_dims,
    log_density,
    restrict,
    unit_where_fixed,
)
from jopa_ppl.beliefs.layout import align, take
from jopa_ppl.compilation import once
from jopa_ppl.linalg import elimination, together
from jopa_ppl.linalg.factors import Moments
from jopa_ppl.linalg.families import diagonal, symmetric


class Eliminated(NamedTuple):
    """Moments of a block solved by elimination: means by site, covariances by factor, and the
    precision they come from; `free` as in `Clamp`."""

    mean: dict[str, Array]
    cov: dict[str, Array]
    logdet: Array
    precision: dict[str, Array]
    free: dict[str, Array]


class TreeBelief(GaussianBelief):
    """A joint Gaussian over latents in different plates, as sparse as the factors between them."""

    kind, label, rank = "elimination", "joint Gaussian (Funsor)", 1
    structured = True

    def __init__(self, latents: Mapping[str, Variable], *, factors: Iterable[Factor],
                 **about: Any) -> None:
        super().__init__(latents, **about)
        self.nodes = {n: elimination.Variable(v.dims, v.plates) for n, v in latents.items()}
        self.factors = {f.name: f for f in factors if f.instances_of(self)}
        self._joints: dict[tuple[str, ...], Callable] = {}
        few = together.count(self.nodes, self.sizes) <= together.FEW
        self.solver = together if few else elimination
        self.label = "joint Gaussian (dense)" if few else self.label

    @classmethod
    def read(cls, latents: Mapping[str, Variable], factors: Iterable[Factor],
             about: Mapping[str, Any]) -> TreeBelief:
        return cls(latents, factors=factors, **about)

    def _members(self, factor: Factor) -> tuple[str, ...]:
        """Its members that a factor touches."""
        return tuple(r.site for r in factor.instances_of(self))

    def _shape(self, name: str) -> tuple[int, ...]:
        v = self.nodes[name]
        return (*(self.sizes[p] for p in v.plates), v.dim)

    def zero(self) -> Eliminated:
        cov = {}
        for key, factor in self.factors.items():
            n = sum(self.nodes[name].dim for name in self._members(factor))
            cov[key] = jnp.zeros((*(p.size for p in factor.plates), n, n))
        mean = {n: jnp.zeros(self._shape(n)) for n in self.nodes}
        return Eliminated(mean, cov, jnp.zeros(()), {k: jnp.zeros_like(v) for k, v in cov.items()},
                          {n: jnp.ones_like(m) for n, m in mean.items()})

    def mask(self, one: Callable[[str], Clamp]) -> dict[str, Clamp]:
        return {n: one(n) for n in self.members}

    def stats(self, q: Eliminated, mask: dict[str, Clamp]) -> tuple[dict, dict]:
        mean = {n: jnp.where(c.free > 0, q.mean[n], c.value) for n, c in mask.items()}
        return mean, self._restrict(q.cov, {n: c.free for n, c in mask.items()})

    def _restrict(self, matrices: dict[str, Array], free: dict[str, Array]) -> dict[str, Array]:
        """Matrices by factor without the rows and columns of what is not free."""
        return {k: restrict(m, self._joined(free, self.factors[k]))
                for k, m in matrices.items()}

    def view(self, stats: tuple[dict, dict], factor: Factor) -> Moments:
        found = Moments(self._joined(stats[0], factor), stats[1][factor.name])
        return Moments(found.mean[None], found.cov[None]) if factor.in_time else found

    def _joined(self, values: dict[str, Array], factor: Factor) -> Array:
        """What members hold, side by side on the plates of a factor."""
        want = [p.name for p in factor.plates]
        sizes = tuple(p.size for p in factor.plates)
        means = []
        for name in self._members(factor):
            mean = align(values[name], 0, self.nodes[name].plates, want, 1)
            means.append(jnp.broadcast_to(mean, (*sizes, mean.shape[-1])))
        return jnp.concatenate(means, -1)

    def terms(self, precision: dict[str, Array], free: dict[str, Array]
              ) -> tuple[list[str], list[elimination.Term]]:
        """The block's precision in cliques: the factors named, then what is not free."""
        keys = list(precision)
        terms = [elimination.Term(self._members(self.factors[k]),
                                  tuple(p.name for p in self.factors[k].plates), precision[k])
                 for k in keys]
        terms += [elimination.Term((name,), self.nodes[name].plates, unit_where_fixed(own))
                  for name, own in free.items()]
        return keys, terms

    def update(self, q: Eliminated, message: tuple[dict, dict],
               mask: dict[str, Clamp]) -> Eliminated:
        free = {n: c.free for n, c in mask.items()}
        precision = self._restrict({k: -2 * symmetric(g) for k, g in message[1].items()}, free)
        keys, terms = self.terms(precision, free)
        vectors = {n: g * free[n] for n, g in message[0].items()}
        found = self.solver.marginals(self.nodes, self.sizes, terms, vectors)
        mean = {n: jnp.where(c.free > 0, q.mean[n] + found.mean[n], c.value)
                for n, c in mask.items()}
        return Eliminated(mean, dict(zip(keys, found.cov)), found.logdet, precision, free)

    def message(self, q: Eliminated, mask: dict[str, Clamp]) -> tuple[dict, dict]:
        return (jax.tree.map(jnp.zeros_like, q.mean),
                {k: -0.5 * p for k, p in q.precision.items()})

    def precisions(self, message: tuple, mask: dict[str, Clamp]) -> dict[str, Array]:
        def by_factor(mean: dict[str, Array]) -> dict[str, Array]:
            return {k: self._joined(mean, f) for k, f in self.factors.items()}

        # What a factor says of a variable is added up over its plates: the transpose of its view.
        _, gather = jax.vjp(by_factor, {n: jnp.zeros(self._shape(n)) for n in self.nodes})
        (precision,) = gather({k: diagonal(-2 * g) for k, g in message[1].items()})
        return {n: precision[n] * c.free for n, c in mask.items()}

    def variances(self, q: Eliminated) -> dict[str, Array]:
        return {n: diagonal(self.site(q, n)[1]) for n in q.mean}

    def moved(self, old: Eliminated, new: Eliminated) -> Array:
        change = {n: new.mean[n] - old.mean[n] for n in new.mean}
        total = 0.0
        for key, factor in self.factors.items():
            step = self._joined(change, factor)
            total += jnp.einsum("...i,...ij,...j->...", step, new.precision[key], step).sum()
        return jnp.sqrt(total / sum(jnp.size(m) for m in change.values()))

    def site(self, q: Eliminated, name: str) -> tuple[Array, Array]:
        """Marginal of a site, from the factor with the fewest plates that touches it: along those
        that are not the site's own it is the same."""
        own = self.nodes[name].plates
        key, factor = min(((k, f) for k, f in self.factors.items() if name in self._members(f)),
                          key=lambda pair: len(pair[1].plates))
        members, have = self._members(factor), [p.name for p in factor.plates]
        at = sum(self.nodes[n].dim for n in members[:members.index(name)])
        cov = take(q.cov[key], [(at, self.nodes[name].dim)], [-2, -1])
        cov = cov[tuple(slice(None) if p in own else 0 for p in have)]
        return q.mean[name], align(cov, 0, [p for p in have if p in own], own, 2)

    def scattered(self, q: Eliminated, key: Array, size: Array | float) -> Eliminated:
        keys = dict(zip(q.mean, random.split(key, len(q.mean))))
        sds = jax.tree.map(jnp.sqrt, self.variances(q))
        return q._replace(mean={n: m + size * sds[n] * random.normal(keys[n], m.shape, m.dtype)
                                for n, m in q.mean.items()})

    def break_symmetry(self, q: Eliminated, key: Array, size: Array | float) -> Eliminated:
        means = {n: m + size * random.normal(random.fold_in(key, i), m.shape, m.dtype)
                 for i, (n, m) in enumerate(q.mean.items())}
        return q._replace(mean=means, cov={k: NARROW * c for k, c in q.cov.items()})

    def draw(self, q: Eliminated, key: Array, mask: Any) -> tuple[Eliminated, dict[str, Array]]:
        _, terms = self.terms(q.precision, q.free)
        drawn = self.solver.sample(key, self.nodes, self.sizes, terms)
        mean = {n: q.mean[n] + drawn[n] * q.free[n] for n in q.mean}
        point = q._replace(mean=mean, cov=jax.tree.map(jnp.zeros_like, q.cov))
        return point, {n: self.latents[n].values(mean[n]) for n in mean}

    def log_prob(self, q: Eliminated, mask: dict[str, Clamp], values: Mapping[str, Array]
                 ) -> Array:
        gap = {n: (self.latents[n].vectors(values[n]) - q.mean[n]) * c.free
               for n, c in mask.items()}
        square = jnp.zeros(())
        for key, factor in self.factors.items():
            here = self._joined(gap, factor)
            square += jnp.einsum("...i,...ij,...j->", here, q.precision[key], here)
        return log_density(square, q.logdet, free_dims(mask))

    def jointly(self, chosen: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(n for n in self.members if n in chosen and not self.latents[n].plates)
        return names if len(names) > 1 else ()

    def joint(self, q: Eliminated, names: tuple[str, ...]) -> tuple[Array, Array]:
        """Mean (n,) and covariance (n, n) of members outside plates.

        The covariance is the slope of their means in a potential <h, z> on them.
        """
        if names not in self._joints:
            cuts = np.cumsum([self.nodes[n].dim for n in names])

            def slopes(precision: dict[str, Array], free: dict[str, Array]) -> Array:
                _, terms = self.terms(precision, free)

                def mean(h: Array) -> Array:
                    vectors = {n: jnp.zeros_like(f) for n, f in free.items()}
                    vectors |= dict(zip(names, jnp.split(h, cuts[:-1])))
                    found = self.solver.marginals(self.nodes, self.sizes, terms, vectors)
                    return jnp.concatenate([found.mean[n] for n in names])

                own = jnp.concatenate([free[n] for n in names])
                return restrict(jax.vmap(mean)(jnp.eye(cuts[-1], dtype=own.dtype)), own)

            self._joints[names] = jax.jit(slopes, compiler_options=once())
        return (jnp.concatenate([q.mean[n] for n in names]),
                self._joints[names](q.precision, q.free))


