"""Beliefs of Gaussian blocks: how factors see their moments, and their exact updates.

Every kind answers the same few questions: `zero` (an empty belief), `stats` (what the energy is
differentiated in), `view` (the moments of the latents a factor touches), `update` (from the
gradient of the energy), `entropy` (of Gaussians; precisions add their divergence from the prior to
F), and `moved` (how far an update went).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jopa_ppl.compilation import once
from jopa_ppl.engine.layout import align, take
from jopa_ppl.graph.factor import Block, Factor, Graph
from jopa_ppl.linalg import elimination
from jopa_ppl.linalg.factors import Moments
from jopa_ppl.linalg.families import (
    Gaussian,
    gaussian_entropy,
    gaussian_update,
    inverse_and_logdet,
    symmetric,
)
from jopa_ppl.program.carry import base_name, lag


class Clamp(NamedTuple):
    """Elements of a block that are not inferred: where `free` is 0 the mean is `value`."""

    free: Array
    value: Array


class Belief(Protocol):
    """What the schedule asks of a block."""

    block: Block

    def zero(self) -> Any: ...
    def stats(self, moments: Any, clamp: Clamp | None) -> Any: ...
    def view(self, stats: Any, factor: Factor) -> Moments: ...
    def update(self, moments: Any, gradient: Any, clamp: Clamp | None) -> Any: ...
    def moved(self, old: Any, new: Any) -> Array: ...


class GaussianBelief(Belief, Protocol):
    """What else is asked of Gaussians: `gradient`, under which `update` returns the same belief,
    and `diagonals`, its means and the diagonals of its precision and of its covariance."""

    def entropy(self, moments: Any, clamp: Clamp | None) -> Array: ...
    def gradient(self, moments: Any, clamp: Any) -> Any: ...
    def diagonals(self, moments: Any, gradient: Any, clamp: Any) -> tuple[Any, Any, Any]: ...


def only(matrix: Array, free: Array) -> Array:
    """A matrix (*batch, n, n) without the rows and columns where `free` (*batch, n) is 0."""
    return matrix * free[..., :, None] * free[..., None, :]


def clamped(mean: Array, cov: Array, clamp: Clamp) -> tuple[Array, Array]:
    """Moments with the elements that are data at their values, without spread."""
    return jnp.where(clamp.free > 0, mean, clamp.value), only(cov, clamp.free)


def identity(free: Array) -> Array:
    """Unit precision on what is not inferred keeps J positive definite and adds nothing to F."""
    return (1 - free)[..., None] * jnp.eye(free.shape[-1], dtype=free.dtype)


def diagonal(matrix: Array) -> Array:
    """The diagonals of matrices (.., n, n)."""
    return jnp.diagonal(matrix, axis1=-2, axis2=-1)


def at_mean(stats: tuple) -> tuple:
    """The expected statistics of a Gaussian belief without its spread."""
    return stats[0], *jax.tree.map(jnp.zeros_like, stats[1:])


def free_dims(clamp: Clamp | Mapping[str, Clamp]) -> Array:
    """How many numbers of a Gaussian block are inferred."""
    parts = jax.tree.leaves(clamp, is_leaf=lambda x: isinstance(x, Clamp))
    return sum(jnp.sum(c.free) for c in parts)


def in_spreads(change: Array, variance: Array) -> Array:
    """Root mean square of a change of means, in standard deviations."""
    return jnp.sqrt(jnp.mean(change**2 / jnp.where(variance > 0, variance, 1.0)))


class DenseBelief:
    """One joint Gaussian over all members, per element of the block's plates."""

    def __init__(self, block: Block, graph: Graph) -> None:
        self.block, self.graph = block, graph
        self.pieces: dict[str, tuple[int, int]] = {}
        at = 0
        for name in block.members:
            size = graph.variables[name].dims
            self.pieces[name] = (at, size)
            at += size
        self.dims = at
        self.batch = tuple(graph.sizes[p] for p in block.plates)

    def zero(self) -> Gaussian:
        shape = (*self.batch, self.dims)
        return Gaussian(jnp.zeros(shape), jnp.zeros((*shape, self.dims)), jnp.zeros(self.batch))

    def stats(self, moments: Gaussian, clamp: Clamp) -> tuple[Array, Array]:
        return clamped(moments.mean, moments.cov, clamp)

    def view(self, stats: tuple[Array, Array], factor: Factor) -> Moments:
        pieces = [self.pieces[n] for n in slot_of(self.block, factor)]
        want = [p.name for p in factor.plates]
        mean = align(take(stats[0], pieces, [-1]), 0, self.block.plates, want, 1)
        cov = align(take(stats[1], pieces, [-2, -1]), 0, self.block.plates, want, 2)
        if in_bulk(factor):
            mean, cov = mean[None], cov[None]
        return Moments(mean, cov)

    def update(self, moments: Gaussian, gradient: tuple[Array, Array], clamp: Clamp) -> Gaussian:
        precision = only(-2 * symmetric(gradient[1]), clamp.free) + identity(clamp.free)
        mean = jnp.where(clamp.free > 0, moments.mean, clamp.value)
        return gaussian_update(mean, gradient[0] * clamp.free, precision)

    def entropy(self, moments: Gaussian, clamp: Clamp) -> Array:
        return jnp.sum(gaussian_entropy(moments.logdet, clamp.free.sum(-1)))

    def gradient(self, moments: Gaussian, clamp: Clamp) -> tuple[Array, Array]:
        precision, _ = inverse_and_logdet(moments.cov)
        return jnp.zeros_like(moments.mean), -0.5 * (precision - identity(clamp.free))

    def diagonals(self, moments: Gaussian, gradient: tuple, clamp: Clamp
                  ) -> tuple[Array, Array, Array]:
        return moments.mean, diagonal(-2 * gradient[1]) * clamp.free, diagonal(moments.cov)

    def moved(self, old: Gaussian, new: Gaussian) -> Array:
        return in_spreads(new.mean - old.mean, diagonal(new.cov))

    def site(self, moments: Gaussian, name: str) -> tuple[Array, Array]:
        """Marginal of a site: mean (*plates, dims), covariance (*plates, dims, dims)."""
        piece = [self.pieces[name]]
        return take(moments.mean, piece, [-1]), take(moments.cov, piece, [-2, -1])


class Eliminated(NamedTuple):
    """Moments of a block solved by elimination: means by site, covariances by factor, and the
    precision they come from; `free` as in `Clamp`."""

    mean: dict[str, Array]
    cov: dict[str, Array]
    logdet: Array
    precision: dict[str, Array]
    free: dict[str, Array]


class EliminationBelief:
    """A joint Gaussian over latents in different plates (trees, hierarchies), by Funsor."""

    def __init__(self, block: Block, graph: Graph) -> None:
        self.block, self.graph = block, graph
        self.variables = {n: elimination.Variable(graph.variables[n].dims,
                                                  graph.variables[n].plates)
                          for n in block.members}
        self.factors = {f.name: f for f in graph.factors if slot_of(block, f)}
        self.sizes = dict(graph.sizes)
        self._joints: dict[tuple[str, ...], Callable] = {}

    def _shape(self, name: str) -> tuple[int, ...]:
        v = self.variables[name]
        return (*(self.sizes[p] for p in v.plates), v.dim)

    def zero(self) -> Eliminated:
        cov = {}
        for key, factor in self.factors.items():
            n = sum(self.variables[base_name(i)].dim for i in slot_of(self.block, factor))
            cov[key] = jnp.zeros((*(p.size for p in factor.plates), n, n))
        mean = {n: jnp.zeros(self._shape(n)) for n in self.variables}
        return Eliminated(mean, cov, jnp.zeros(()), {k: jnp.zeros_like(v) for k, v in cov.items()},
                          {n: jnp.ones_like(m) for n, m in mean.items()})

    def stats(self, moments: Eliminated, clamp: dict[str, Clamp]) -> tuple[dict, dict]:
        mean = {n: jnp.where(c.free > 0, moments.mean[n], c.value) for n, c in clamp.items()}
        return mean, self._only(moments.cov, {n: c.free for n, c in clamp.items()})

    def _only(self, matrices: dict[str, Array], free: dict[str, Array]) -> dict[str, Array]:
        """Matrices by factor without the rows and columns of what is not free."""
        return {k: only(m, self.view((free, matrices), self.factors[k]).mean)
                for k, m in matrices.items()}

    def view(self, stats: tuple[dict, dict], factor: Factor) -> Moments:
        want = [p.name for p in factor.plates]
        sizes = tuple(p.size for p in factor.plates)
        means = []
        for name in slot_of(self.block, factor):
            mean = align(stats[0][name], 0, self.variables[name].plates, want, 1)
            means.append(jnp.broadcast_to(mean, (*sizes, mean.shape[-1])))
        return Moments(jnp.concatenate(means, -1), stats[1][factor.name])

    def terms(self, precision: dict[str, Array], free: dict[str, Array]
              ) -> tuple[list[str], list[elimination.Term]]:
        """The block's precision in cliques: the factors named, then what is not free."""
        keys = list(precision)
        terms = [elimination.Term(tuple(slot_of(self.block, self.factors[k])),
                                  tuple(p.name for p in self.factors[k].plates), precision[k])
                 for k in keys]
        terms += [elimination.Term((name,), self.variables[name].plates, identity(own))
                  for name, own in free.items()]
        return keys, terms

    def update(self, moments: Eliminated, gradient: tuple[dict, dict],
               clamp: dict[str, Clamp]) -> Eliminated:
        free = {n: c.free for n, c in clamp.items()}
        precision = self._only({k: -2 * symmetric(g) for k, g in gradient[1].items()}, free)
        keys, terms = self.terms(precision, free)
        vectors = {n: g * free[n] for n, g in gradient[0].items()}
        found = elimination.marginals(self.variables, self.sizes, terms, vectors)
        mean = {n: jnp.where(c.free > 0, moments.mean[n] + found.mean[n], c.value)
                for n, c in clamp.items()}
        return Eliminated(mean, dict(zip(keys, found.cov)), found.logdet, precision, free)

    def entropy(self, moments: Eliminated, clamp: dict[str, Clamp]) -> Array:
        return gaussian_entropy(moments.logdet, free_dims(clamp))

    def gradient(self, moments: Eliminated, clamp: dict[str, Clamp]) -> tuple[dict, dict]:
        return (jax.tree.map(jnp.zeros_like, moments.mean),
                {k: -0.5 * p for k, p in moments.precision.items()})

    def diagonals(self, moments: Eliminated, gradient: tuple, clamp: dict[str, Clamp]
                  ) -> tuple[dict, dict, dict]:
        def by_factor(mean: dict[str, Array]) -> dict[str, Array]:
            return {k: self.view((mean, moments.cov), f).mean for k, f in self.factors.items()}

        # What a factor says of a variable is added up over its plates: the transpose of its view.
        _, gather = jax.vjp(by_factor, moments.mean)
        (precision,) = gather({k: diagonal(-2 * g) for k, g in gradient[1].items()})
        return (moments.mean, {n: precision[n] * c.free for n, c in clamp.items()},
                {n: diagonal(self.site(moments, n)[1]) for n in clamp})

    def moved(self, old: Eliminated, new: Eliminated) -> Array:
        change = {n: new.mean[n] - old.mean[n] for n in new.mean}
        total = 0.0
        for key, factor in self.factors.items():
            step = self.view((change, new.cov), factor).mean
            total += jnp.einsum("...i,...ij,...j->...", step, new.precision[key], step).sum()
        return jnp.sqrt(total / sum(jnp.size(m) for m in change.values()))

    def site(self, moments: Eliminated, name: str) -> tuple[Array, Array]:
        """Marginal of a site, from a factor whose plates are the site's own."""
        own = set(self.variables[name].plates)
        for key, factor in self.factors.items():
            members = slot_of(self.block, factor)
            if name in members and {p.name for p in factor.plates} == own:
                at = sum(self.variables[n].dim for n in members[:members.index(name)])
                cov = take(moments.cov[key], [(at, self.variables[name].dim)], [-2, -1])
                have = [p.name for p in factor.plates]
                return moments.mean[name], align(cov, 0, have, self.variables[name].plates, 2)
        raise KeyError(name)

    def joint(self, moments: Eliminated, names: tuple[str, ...]) -> tuple[Array, Array]:
        """Mean (n,) and covariance (n, n) of members outside plates, jointly.

        The covariance is the slope of their means in a potential <h, z> on them.
        """
        if names not in self._joints:
            cuts = np.cumsum([self.variables[n].dim for n in names])

            def slopes(precision: dict[str, Array], free: dict[str, Array]) -> Array:
                _, terms = self.terms(precision, free)

                def mean(h: Array) -> Array:
                    vectors = {n: jnp.zeros_like(f) for n, f in free.items()}
                    vectors |= dict(zip(names, jnp.split(h, cuts[:-1])))
                    found = elimination.marginals(self.variables, self.sizes, terms, vectors)
                    return jnp.concatenate([found.mean[n] for n in names])

                own = jnp.concatenate([free[n] for n in names])
                return only(jax.vmap(mean)(jnp.eye(cuts[-1], dtype=own.dtype)), own)

            self._joints[names] = jax.jit(slopes, compiler_options=once())
        return (jnp.concatenate([moments.mean[n] for n in names]),
                self._joints[names](moments.precision, moments.free))


def slot_of(block: Block, factor: Factor) -> list[str]:
    """The instances of a block that a factor touches, in the order of its slot."""
    members = block.members
    mine = [n for n in factor.latents if base_name(n) in members]
    return sorted(mine, key=lambda n: (-(lag(n) if lag(n) is not None else 10**6),
                                       members.index(base_name(n))))


def in_bulk(factor: Factor) -> bool:
    """Whether a factor has a time axis."""
    return factor.context.scan is not None and factor.context.at is None
