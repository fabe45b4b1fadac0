"""The belief of a chain some members of which follow from the others with certainty.

    d_t = c_t + F_t z_{t-1} + G_t w_t,

w the sites that are drawn in a step, d the leaves of the carry (`jopa_ppl.program.recursions`). The
density is one of w alone; moments are those of both, so that factors see d as they see a site.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jopa_ppl.beliefs.base import Clamp
from jopa_ppl.beliefs.chain import ChainBelief, between, square
from jopa_ppl.beliefs.gaussian import log_density, restrict, unit_where_fixed
from jopa_ppl.errors import JopaError
from jopa_ppl.linalg import recursion
from jopa_ppl.linalg.families import symmetric
from jopa_ppl.linalg.recursion import Rules


class RecursionChain(NamedTuple):
    """`chain.Chain`, with the rules by which groups follow: before and within (G, *b, D, D)."""

    mean: Array
    cov: Array
    cross: Array
    logdet: Array
    diag: Array
    off: Array
    before: Array
    within: Array

    @property
    def rules(self) -> Rules:
        return Rules(self.before, self.within)


class Tied(NamedTuple):
    """A `Clamp`, and how members that are certain follow: constant (G, *b, D), before, within."""

    free: Array
    value: Array
    constant: Array
    before: Array
    within: Array


class RecursionBelief(ChainBelief):
    """One joint Gaussian over what is drawn in all steps of a scan, and what follows from it."""

    kind, label = "recursion", "chain (block-tridiagonal Gaussian with recursions)"

    @property
    def drawn(self) -> np.ndarray:
        """(G, 1 a plate, D), 1 where an element of a group is drawn."""
        own = np.ones(self.dims)
        for name, (start, size) in self.node.items():
            if self.latents[name].site.rules.certain:
                own[start:start + size] = 0
        found = np.tile(own, (self.groups + self.h, 1))
        found[:self.h] = 1
        return found.reshape((len(found), *(1,) * len(self.batch), self.dims))

    def zero(self) -> RecursionChain:
        q = super().zero()
        eye = jnp.broadcast_to(jnp.eye(self.dims), q.diag.shape)
        return RecursionChain(*q, jnp.zeros_like(q.diag), eye)

    def tied(self, mask: Clamp, rows: Mapping[str, Array], head_dims: int) -> Tied:
        """The mask, with M of z = M h for every member that is certain, {name: (T, *b, n, H)} on
        h = (1, head, z_{t-1}, z_t); `head_dims`: of the head in h."""
        drawn, D, w, k = jnp.asarray(self.drawn), self.dims, self.width, 1 + head_dims
        shape = (self.length, *self.batch)
        constant, before, within = jnp.zeros((*shape, D)), *(jnp.zeros((*shape, D, D)),) * 2
        for name, M in rows.items():
            at = slice(self.node[name][0], sum(self.node[name]))
            constant = constant.at[..., at].set(M[..., 0])
            before = before.at[..., at, :w].set(M[..., k:k + w])
            if self.h and not self.seeds:      # before the first step stands the head itself
                before = before.at[0, ..., at, :].set(0.0)
                before = before.at[0, ..., at, :head_dims].set(M[0, ..., 1:k])
            within = within.at[..., at, :w].set(M[..., k + w:])
        pads = [jnp.zeros((self.h, *x.shape[1:])) for x in (constant, before, within)]
        constant, before, within = (jnp.concatenate([p, x]) for p, x in zip(
            pads, (constant, before, within)))
        if not self.h:
            before = before.at[0].set(0.0)
        # What follows may follow from what follows in the same step.
        eye, keep = jnp.eye(D), (1 - drawn) * mask.free
        links = jnp.concatenate([constant[..., None], before, within * drawn[..., None, :]], -1)
        found = jnp.linalg.solve(eye - keep[..., None] * within * (1 - drawn)[..., None, :],
                                 keep[..., None] * links)
        return Tied(mask.free, mask.value, found[..., 0], found[..., 1:1 + D],
                    found[..., 1 + D:] + drawn[..., None] * eye)

    @property
    def turns(self) -> dict[str, set[str]]:
        """None: the rules by which members follow would turn as well."""
        return {}

    def free_dims(self, mask: Clamp | Tied) -> Array:
        return jnp.sum(self._free(mask))

    def _free(self, mask: Clamp | Tied) -> Array:
        """What is drawn and not data, (G, *b, D)."""
        return mask.free * self.drawn

    def update(self, q: RecursionChain, message: tuple[Array, Array, Array], mask: Tied
               ) -> RecursionChain:
        return self.watched(q, message, mask)[0]

    def watched(self, q: RecursionChain, message: tuple[Array, Array, Array], mask: Tied
                ) -> tuple[RecursionChain, Array]:
        """What is drawn is as precise as all that follows from it tells, given the steps before."""
        g_mean, g_cov, g_cross = message
        rules, free = Rules(mask.before, mask.within), self._free(mask)
        J, off = restrict(-2 * symmetric(g_cov), mask.free), between(-g_cross, mask.free)
        # The message is a gradient at the means; they need not follow one another there.
        here = jnp.where(mask.free > 0, q.mean, mask.value)
        drawn = jnp.where(free > 0, q.mean, mask.value * self.drawn)
        there = recursion.follow(drawn, mask.constant, rules)
        gap = (there - here) * mask.free
        pull = g_mean * mask.free - recursion.product(J, off, gap)
        found, tied = recursion.marginals(J, off, pull, rules, free)
        mean = jnp.where(mask.free > 0, there + found.mean, mask.value)
        q = RecursionChain(mean, found.cov, found.cross, found.logdet,
                           J + unit_where_fixed(mask.free), off, *rules)
        own, C = self.precisions(message, mask), self.variances(q)
        return q, jnp.maximum(own, jnp.where((mask.free > 0) & (C > 0), tied / C, 0.0))

    def draw(self, q: RecursionChain, key: Array, mask: Clamp | Tied
             ) -> tuple[RecursionChain, dict[str, Array]]:
        J = q.diag - unit_where_fixed(mask.free)
        z = q.mean + recursion.sample(key, J, q.off, q.rules, self._free(mask))
        return self.without_spread(q, jnp.where(mask.free > 0, z, mask.value))

    def log_prob(self, q: RecursionChain, mask: Clamp | Tied, values: Mapping[str, Array]
                 ) -> Array:
        hidden = [n for n, v in self.latents.items()
                  if n not in values and not v.site.rules.certain]
        if hidden:
            shown = self.latents[hidden[0]].site.noise_of or hidden[0].removesuffix(".noise")
            raise JopaError(
                "log q of these draws is not to be had", expected="noise with a density",
                found=f"'{shown}', whose covariance is singular, or so "
                "small that its noise was drawn apart", fix="ask for draws, means and variances")
        z = self.vector({n: v.vectors(values[n]) if n in values else self.site(q, n)[0]
                         for n, v in self.latents.items()})
        drawn = jnp.where(self._free(mask) > 0, z - q.mean, 0.0)
        gap = recursion.follow(drawn, jnp.zeros_like(drawn), q.rules) * mask.free
        return log_density(square(q, gap), q.logdet, self.free_dims(mask))
